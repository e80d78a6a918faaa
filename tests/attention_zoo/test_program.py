"""The program of a variant: whatever it runs counts, however Python came to it, and nothing else does."""

import cProfile
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from attention_zoo import LayerDims, program, source_digest
from attention_zoo.foreign import import_place
from attention_zoo.program import (
    ProgramError,
    check_files,
    check_programs,
    opened,
    program_of,
    program_text,
    reads_below,
    remember_imports,
)
from attention_zoo.source_digest import loaded_program
from attention_zoo.trial import TRIAL_SIZES

MIXER = """
    import torch
    from attention_zoo import LayerDims, SequenceMixer, Traits, VariantConfig
    {imports}

    class Mine(torch.nn.Module):
        def __init__(self, dim):
            super().__init__()
            {built}

        def forward(self, x, mask=None):
            {called}
            return x
"""


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


def mixer(imports="", built="", called=""):
    return textwrap.dedent(MIXER).format(imports=imports, built=built or "pass", called=called or "pass")


def digest(*modules, variant="", sizes=None, **options):
    program_of.cache_clear()
    program._imported.clear()  # each call stands for a new process
    program._hashed.clear()
    program._refused.clear()
    return program_text("p", modules, variant, options, sizes=sizes)


FILE, PACKAGE = ["mine.py"], ["pack.mine"]
LAYOUTS = {
    "file": (FILE, {"mine.py": "S = 0\n"}, "mine.py"),
    "beside": (FILE, {"mine.py": "import helper\n", "helper.py": "S = 0\n"}, "helper.py"),
    "namespace": (
        FILE,
        {"mine.py": "from lib.core import S\n", "lib/core.py": "from lib.util import S\n", "lib/util.py": "S = 0\n"},
        "lib/util.py",
    ),
    "swapped-namesakes": (
        FILE,
        {"mine.py": "import xa.util, xb.util\n", "xa/util.py": "S = 0\n", "xb/util.py": "S = 1\n"},
        "xa/util.py",
    ),
    "path": (
        FILE,
        {
            "mine.py": "import sys\nsys.path.insert(0, 'deep')\nimport helper\n",
            "deep/helper.py": "S = 0\n",
            "helper.py": "S = 0\n",
        },
        "deep/helper.py",
    ),
    "package": (
        PACKAGE,
        {"pack/__init__.py": "", "pack/mine.py": "from .part import S\n", "pack/part.py": "S = 0\n"},
        "pack/part.py",
    ),
    "init": (PACKAGE, {"pack/__init__.py": "S = 0\n", "pack/mine.py": ""}, "pack/__init__.py"),
    "star": (
        FILE,
        {"mine.py": "from pack import *\n", "pack/__init__.py": "__all__ = ['part']\n", "pack/part.py": "S = 0\n"},
        "pack/part.py",
    ),
    "call": (
        FILE,
        {"mine.py": "import importlib\nim = importlib.import_module\nim('hel' + 'per')\n", "helper.py": "S = 0\n"},
        "helper.py",
    ),
    "executed": (FILE, {"mine.py": "exec(open('helper.txt').read())\n", "helper.txt": "S = 0\n"}, "helper.txt"),
    "read": (FILE, {"mine.py": "import json\njson.load(open('s.json'))\n", "s.json": "0\n"}, "s.json"),
    "read-in-its-own-folder": (
        FILE,
        {"mine.py": "import os\nos.chdir('deep')\nopen('s.txt').read()\nos.chdir('..')\n", "deep/s.txt": "0\n"},
        "deep/s.txt",
    ),
    "by-hand": (
        FILE,
        {
            "mine.py": "from importlib.util import *\nspec = spec_from_file_location('h', 'helper.py')\n"
            "spec.loader.exec_module(module_from_spec(spec))\n",
            "helper.py": "S = 0\n",
        },
        "helper.py",
    ),
    "in-a-function": (FILE, {"mine.py": "def f():\n    import helper\n", "helper.py": "S = 0\n"}, "helper.py"),
    "under-our-name": (FILE, {"mine.py": "import lra_helper\n", "lra_helper.py": "S = 0\n"}, "lra_helper.py"),
    "in-a-folder-under-our-name": (
        FILE,
        {"mine.py": "from runners.helper import S\nimport reports.helper\n", "runners/helper.py": "S = 0\n"}
        | {"reports/helper.py": "import runners.helper\n", "runners/__init__.py": "", "reports/__init__.py": ""},
        "runners/helper.py",
    ),
    "file-under-our-name": (["contextpool.v2.py"], {"contextpool.v2.py": "S = 0\n"}, "contextpool.v2.py"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whatever_runs_counts(layout, tmp_path, monkeypatch):
    modules, files, edited = LAYOUTS[layout]
    write(tmp_path, files | {"unused.py": "X = 1\n"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = digest(*modules)
    write(tmp_path, {"unused.py": "X = 2\n"})
    (tmp_path / "not_read.txt").write_text("1")
    assert digest(*modules) == before
    (tmp_path / edited).write_text((tmp_path / edited).read_text().replace("0", "30"))
    assert digest(*modules) != before


def test_what_a_variant_imports_and_reads_when_it_is_built_and_called_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    built, called = "__import__('hel' + 'per')", "open('scale.txt').read()"
    write(tmp_path, {"mine.py": mixer(built=built, called=called), "helper.py": "S = 0\n", "scale.txt": "0\n"})
    found = {digest("mine.py", variant="mine.py:Mine")}
    for edited in ("helper.py", "scale.txt"):
        (tmp_path / edited).write_text("S = 1\n")
        found.add(digest("mine.py", variant="mine.py:Mine"))
    assert len(found) == 3


READ = "open('scale.txt').read()"
IN_BACKWARD = f"""
class Reading(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        {READ}
        return gradient
"""
METHOD = f"""
from attention_zoo import LayerDims, SequenceMixer, VariantConfig


class Mine(SequenceMixer):
    def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)

    def forward(self, x, mask=None):
        return x

    def {{}}(self):
        {READ}
"""
MOMENTS = {
    "in-training": mixer(called=f"self.training and {READ}"),
    "in-evaluation": mixer(called=f"self.training or {READ}"),
    "without-gradients": mixer(imports="import torch", called=f"torch.is_grad_enabled() or {READ}"),
    "a-library-of-its-own": mixer(imports="import ctypes, os", called="ctypes.CDLL(os.path.abspath('scale.txt'))"),
    "of-padded-sequences": mixer(called=f"mask is None or {READ}"),
    "in-the-backward-pass": mixer(called="x = Reading.apply(x)") + IN_BACKWARD,
    "on-a-grid-alone": f"""
        from attention_zoo import LayerDims, SequenceMixer, VariantConfig

        class Mine(SequenceMixer):
            def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
                super().__init__(config, dims)
                rows, columns = dims.grid
                {READ}

            def forward(self, x, mask=None):
                return x
        """,
    "by-an-option": mixer(built="table is None or open(table).read()").replace(
        "(self, dim)", "(self, dim, table=None)"
    ),
    "in-a-whole-model": f"""
        import torch

        def Mine(vocabulary_size, max_length, num_classes):
            {READ}
            return torch.nn.Linear(max_length, num_classes)
        """,
    "of-a-raw-file": mixer(built="io.FileIO('scale.txt', 'br').read()", imports="import io"),
    "of-a-database": mixer(built="sqlite3.connect('scale.txt')", imports="import sqlite3"),
    "after-a-step": METHOD.format("after_step"),
    "for-an-auxiliary-loss": METHOD.format("auxiliary_loss"),
    "for-the-groups-of-parameters": METHOD.format("parameter_groups"),
    "to-be-read-and-appended": mixer(built="open('scale.txt', 'a+').read()"),
    "of-a-database-by-its-address": mixer(
        built="sqlite3.connect('file:scale.txt?mode=ro', uri=True)", imports="import sqlite3"
    ),
    "of-a-database-by-an-escaped-address": mixer(
        built="sqlite3.connect('file://localhost' + os.getcwd() + '/sc%61le.txt?mode=ro', uri=True)",
        imports="import os, sqlite3",
    ),
    "under-a-hidden-name": mixer(built="open('.scale.txt').read()"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_file_counts_whenever_a_variant_reads_it(moment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.py": MOMENTS[moment], "scale.txt": "0\n", ".scale.txt": "0\n"})
    options = {"table": "scale.txt"} if moment == "by-an-option" else {}
    before = digest("mine.py", variant="mine.py:Mine", **options)
    assert digest("mine.py", variant="mine.py:Mine", **options) == before
    write(tmp_path, {"scale.txt": "1\n", ".scale.txt": "1\n"})
    assert digest("mine.py", variant="mine.py:Mine", **options) != before


@pytest.mark.parametrize("moment", ["imported", "built", "called"])
def test_what_a_variant_draws_in_its_trial_is_the_same_in_each_process(moment, tmp_path, monkeypatch):
    """Else a table that is chosen by a draw is in the id of one process and not in that of another."""
    monkeypatch.chdir(tmp_path)
    draws = "random.random() + numpy.random.random() + torch.rand(()).item() + hash(__file__) / 2**70"
    reads = f"open(str(int(({draws}) * 1e9) % 8) + '.txt').read()"
    imports = "import random, numpy" + (f"; {reads}" if moment == "imported" else "")
    write(tmp_path, {f"{number}.txt": f"{number}\n" for number in range(8)})
    write(tmp_path, {"mine.py": mixer(imports, **{} if moment == "imported" else {moment: reads})})
    found = set()
    for _ in range(3):
        program._clean_process.cache_clear()
        found.add(digest("mine.py", variant="mine.py:Mine"))
    assert len(found) == 1


SIZED = {
    "by-the-width": "open(f'{dims.dim}.txt').read()",
    "by-the-length": "open(f'{dims.max_length}.txt').read()",
    "with-dropout-alone": "dims.dropout and open('8.txt').read()",
    "where-other-sizes-fail": "1 / (dims.dim == 8); open('8.txt').read()",
}


@pytest.mark.parametrize("when", SIZED)
def test_a_file_counts_that_a_variant_reads_at_the_sizes_of_the_run_alone(when, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = f"""
        from attention_zoo import LayerDims, SequenceMixer, VariantConfig

        class Mine(SequenceMixer):
            def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
                super().__init__(config, dims)
                {SIZED[when]}

            def forward(self, x, mask=None):
                return x
        """
    found = {}
    for content in "01":
        write(tmp_path, {"mine.py": source, "8.txt": content})
        for dim in (8, 16):
            sizes = asdict(LayerDims(dim=dim, num_heads=2, max_length=dim, dropout=0.1 if dim == 8 else 0.0))
            found[content, dim] = digest("mine.py", variant="mine.py:Mine", sizes=sizes)
    assert found["0", 8] != found["1", 8]
    assert found["0", 16] == found["1", 16]


def test_a_file_counts_that_a_whole_model_reads_at_the_sizes_of_the_run_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = """
        import torch

        def Mine(vocabulary_size, max_length, num_classes):
            open(f"{max_length}.txt").read()
            return torch.nn.Linear(max_length, num_classes)
        """
    found = []
    for content in "01":
        write(tmp_path, {"mine.py": source, "40.txt": content})
        found.append(digest("mine.py", variant="mine.py:Mine", sizes=dict(TRIAL_SIZES, max_length=40)))
    assert found[0] != found[1]


def test_a_file_counts_that_is_read_in_the_precision_of_the_run_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    called = f"(torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16 and {READ}"
    sizes = asdict(LayerDims(dim=8, num_heads=2, max_length=8))
    found = {}
    for content in "01":
        write(tmp_path, {"mine.py": mixer(imports="import torch", called=called), "scale.txt": content})
        for precision in ("float32", "bfloat16"):
            found[content, precision] = digest(
                "mine.py", variant="mine.py:Mine", sizes=sizes | {"precision": precision}
            )
    assert found["0", "float32"] == found["1", "float32"]
    assert found["0", "bfloat16"] != found["1", "bfloat16"]


def reader(*arguments):
    """Runs what a plug-in has, as the function of a run does."""
    return arguments[0](*arguments[1:])


@pytest.mark.parametrize("way", ["called", "of-a-text", "of-a-package", "in-a-thread", "in-a-pool"])
def test_what_a_plug_in_reads_in_a_run_and_not_in_its_trial_is_refused(way, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "from pathlib import Path\n\ndef read(name):\n    return Path(name).read_text()\n"
    if way == "of-a-text":
        source = f"exec({source!r})\n"
    if way == "of-a-package":
        write(tmp_path / "site", {"theirs_that_read.py": source})
        distribution(tmp_path / "site", "theirs-that-read", "1.0", ["theirs_that_read"])
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        source = "from theirs_that_read import read\n"
    write(tmp_path, {"mine_reads.py": source + "\nTABLE = read('known.txt')\n", "known.txt": "1", "late.txt": "2"})
    text = digest("mine_reads.py")
    mine = import_place("mine_reads.py")
    threaded = way.startswith("in-")

    def call(name):
        if not threaded:
            return reader(mine.read, name)
        if way == "in-a-thread":
            thread = threading.Thread(target=mine.read, args=(name,))
            thread.start()
            return thread.join()
        with ThreadPoolExecutor(1) as pool:  # whose thread has no code of the plug-in
            return pool.submit(Path(name).read_text).result()

    with reads_below(reader) as read:
        call("known.txt")
        reader(Path(tmp_path / "late.txt").read_text)  # our own code may read what it likes
        if not threaded:
            mine.read("late.txt")  # so may a script that calls a plug-in outside of the run
    check_programs(text, read)
    assert read
    with reads_below(reader) as read:
        call("late.txt")
    with pytest.raises(ProgramError, match=r"late\.txt was read now, but not in the trial"):
        check_programs(text, read)
    read.clear()
    call("late.txt")  # nobody watches
    assert read == set()
    with pytest.raises(ProgramError, match=r"late\.txt was read now"):
        check_programs(text)  # it may have kept what it read


def test_a_file_that_is_gone_since_it_was_read_is_a_change(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.py": mixer(built=READ), "scale.txt": "0\n"})
    text = digest("mine.py", variant="mine.py:Mine")
    (tmp_path / "scale.txt").unlink()
    with pytest.raises(ProgramError, match=r"scale\.txt has changed since it was imported or read"):
        check_programs(text)


def test_files_are_compared_as_they_are_now_after_other_processes_had_them(tmp_path, monkeypatch):
    """Such a process imports them again, and this one would not notice by what it has imported itself."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.py": "S = 0\n"})
    text = digest("mine.py")
    import_place("mine.py")
    remember_imports()
    check_files(text)
    assert program_text("p", ["mine.py"]) == text
    write(tmp_path, {"mine.py": "S = 1\n"})
    check_programs(text)
    with pytest.raises(ProgramError, match=r"mine\.py has changed since it was imported or read"):
        check_files(text)
    with pytest.raises(ProgramError, match=r"mine\.py has changed since it was imported or read; start again"):
        program_text("p", ["mine.py"])  # as in a notebook, which keeps the code before the edit


def test_a_file_that_changes_between_its_import_and_its_question_is_refused(tmp_path, monkeypatch):
    """The process that hashes starts for seconds, and a file may be saved meanwhile."""
    monkeypatch.chdir(tmp_path)
    source = "from pathlib import Path\n\nTABLE = Path('table.txt').read_text()\n"
    write(tmp_path, {"mine_at_once.py": source, "table.txt": "0\n"})
    import_place("mine_at_once.py")
    write(tmp_path, {"table.txt": "1\n"})
    program_of.cache_clear()
    with pytest.raises(ProgramError, match=r"table\.txt has changed since it was imported or read"):
        program_text("p", ["mine_at_once.py"])


def test_a_file_that_changes_between_two_questions_of_one_process_is_refused(tmp_path, monkeypatch):
    """The process may have kept what it read, and would give the old content the id of the new one."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.py": mixer(built=READ), "scale.txt": "0\n"})
    digest("mine.py", variant="mine.py:Mine")
    write(tmp_path, {"scale.txt": "1\n"})
    program_of.cache_clear()
    with pytest.raises(ProgramError, match=r"scale\.txt has changed since it was imported or read"):
        program_text("p", ["mine.py"], "mine.py:Mine", {}, sizes=None)


def test_a_linked_file_is_a_plug_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"elsewhere/mine_linked.py": "S = 0\n"})
    (tmp_path / "linked.py").symlink_to("elsewhere/mine_linked.py")
    before = digest("linked.py")
    write(tmp_path, {"elsewhere/mine_linked.py": "S = 1\n"})
    assert digest("linked.py") != before


def test_a_file_in_a_folder_of_this_project_is_no_plug_in():
    """Its edits would change no id."""
    with pytest.raises(ProgramError, match=r"masking\.py is in a folder of this project or of Python"):
        digest(str(Path(source_digest.__file__).parent / "masking.py"))


def test_two_files_of_one_name_that_change_places_count(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(source_digest, "libraries", set(sys.modules))
    found = []
    for contents in ("01", "10"):
        for folder, content in zip("ab", contents, strict=True):
            write(tmp_path, {f"{folder}/table.txt": content})
        found.append(loaded_program((), {}, [str(tmp_path / folder / "table.txt") for folder in "ab"]).digest)
    assert found[0] != found[1]


def test_where_files_of_one_name_lie_counts_below_the_code_alone(tmp_path, monkeypatch):
    found = {}
    for folder, first, second in (("here", 1, 2), ("there", 1, 2), ("swapped", 2, 1)):
        reads = "from pathlib import Path\nPath(__file__).with_name('scale.txt').read_text()\n"
        packages = {f"{name}/__init__.py": reads for name in ("suba", "subb")}
        scales = {"suba/scale.txt": f"{first}\n", "subb/scale.txt": f"{second}\n"}
        write(tmp_path / folder, {"mine.py": "import suba, subb\n"} | packages | scales)
        monkeypatch.chdir(tmp_path / folder)
        found[folder] = digest("mine.py")
    assert found["here"] == found["there"] != found["swapped"]


def test_an_environment_beside_the_code_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    write(tmp_path, {"tables/scale.txt": "0\n", "venv/lib/theirs.txt": "0\n"})
    files = [str(tmp_path / name) for name in ("tables/scale.txt", "venv/lib/theirs.txt")]
    assert source_digest.files_that_count(files, [str(tmp_path / "mine.py")]) == {files[0]: "tables/scale.txt"}
    # A program in it has its own files there.
    assert source_digest.files_that_count(files[1:], [str(tmp_path / "venv/mine.py")]) == {files[1]: "lib/theirs.txt"}


def test_files_in_other_folders_count_unless_these_are_temporary_or_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(source_digest, "libraries", set(sys.modules))  # what the tests have loaded is not the program
    files = [tmp_path / place for place in ("data/table.txt", "data/.scale", "temporary/table.txt", ".cache/table.txt")]
    found = []
    for edited in (None, *files):
        for file in files:
            write(tmp_path, {str(file.relative_to(tmp_path)): "1" if file == edited else "0"})
        found.append(loaded_program((), {}, [str(file) for file in files]).digest)
    assert len(set(found[:3])) == 3
    assert found[0] == found[3] == found[4]


def test_a_file_that_is_edited_between_the_plan_and_the_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.py": mixer(built=READ), "scale.txt": "0\n"})
    text = digest("mine.py", variant="mine.py:Mine")
    check_programs(text)
    write(tmp_path, {"scale.txt": "1\n"})
    with pytest.raises(ProgramError, match=r"scale\.txt has changed since it was imported or read"):
        check_programs(text)


def test_a_swap_of_namesakes_counts_and_the_folder_does_not(tmp_path, monkeypatch):
    files = {"mine.py": "import xa.util, xb.util\n", "xa/util.py": "S = 0\n", "xb/util.py": "S = 1\n"}
    found = []
    for name, (a, b) in {"one": (0, 1), "moved": (0, 1), "swapped": (1, 0)}.items():
        write(tmp_path / name, files | {"xa/util.py": f"S = {a}\n", "xb/util.py": f"S = {b}\n"})
        monkeypatch.chdir(tmp_path / name)
        found.append(digest("mine.py"))
    assert found[0] == found[1] != found[2]


def test_compiled_modules_and_archives_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.py": "import sys\nsys.path.insert(0, 'a.zip')\nimport fast, packed\n"})
    found = set()
    for value in (0, 1):
        write(tmp_path, {"source.py": f"S = {value}\n"})
        py_compile.compile("source.py", cfile="fast.pyc", doraise=True)
        with zipfile.ZipFile("a.zip", "w") as archive:
            archive.writestr("packed.py", "S = 0\n")
        found.add(digest("mine.py"))
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("packed.py", "S = 1\n")
    found.add(digest("mine.py"))
    assert len(found) == 3


UNLISTED = """
    from importlib.util import *
    spec = spec_from_file_location("helper", "helper.py")
    spec.loader.exec_module(module_from_spec(spec))
    """


@pytest.mark.parametrize("importing", ["import helper\n", UNLISTED])
def test_compiled_code_of_another_version_is_refused(importing, tmp_path, monkeypatch):
    """Python takes compiled code for that of a source with its size and time."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.py": importing, "helper.py": "S = 30.0\n"})
    py_compile.compile("helper.py", doraise=True)
    digest("mine.py")
    times = Path("helper.py").stat()
    write(tmp_path, {"helper.py": "S = 00.0\n"})
    os.utime("helper.py", ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(ProgramError, match=r"not that of .*helper\.py.*remove its folder __pycache__"):
        digest("mine.py")
    shutil.rmtree("__pycache__")
    digest("mine.py")


def test_an_edit_after_the_import_is_refused(tmp_path, monkeypatch):
    from attention_zoo import get_variant

    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"edited.py": mixer(imports="S = 0")})
    spec = get_variant("edited.py:Mine")
    write(tmp_path, {"edited.py": mixer(imports="S = 1.5")})
    with pytest.raises(TypeError, match=r"edited\.py has changed since it was imported"):
        __import__("attention_zoo.registry").registry.program_origin(spec.name, spec.config())


def test_what_is_imported_here_and_not_in_the_trial_is_refused(tmp_path, monkeypatch):
    """The trial has one thread, and the run may have more."""
    monkeypatch.chdir(tmp_path)
    source = "import importlib, torch\n\nimportlib.import_module(f'by_{torch.get_num_threads()}_threads')\n"
    write(tmp_path, {"mine_by_threads.py": source, "by_1_threads.py": "S = 0\n", "by_2_threads.py": "S = 0\n"})
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        import_place("mine_by_threads.py")
    finally:
        torch.set_num_threads(before)
    text = digest("mine_by_threads.py")
    with pytest.raises(ProgramError, match=r"by_2_threads\.py was read now, but not in the trial"):
        check_programs(text)


def test_an_edit_between_the_plan_and_a_late_import_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write(tmp_path, {"mine.py": "def f():\n    import imported_late\n", "imported_late.py": "S = 0\n"})
    text = digest("mine.py")
    check_programs(text)
    write(tmp_path, {"imported_late.py": "S = 1\n"})
    __import__("imported_late")
    check_programs("p source of another program")
    with pytest.raises(ProgramError, match="has changed since it was imported"):
        check_programs(f"another; {text}")


def distribution(folder: Path, name: str, version: str, modules: list[str]) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text("\n".join(modules))
    (info / "RECORD").write_text("".join(f"{module}.py,,\n" for module in modules))


def test_the_version_counts_of_a_distribution_that_comes_with_another_one(tmp_path, monkeypatch):
    source = "import importlib, theirs_1\nimportlib.import_module('theirs' + '_3')\n"
    write(
        tmp_path,
        {"mine.py": source, "theirs_1.py": "import theirs_2\nimport yaml\n", "theirs_2.py": "", "theirs_3.py": ""},
    )
    for number in "123":
        distribution(tmp_path / "site", f"theirs-{number}", "1.0", [f"theirs_{number}"])
        (tmp_path / f"theirs_{number}.py").rename(tmp_path / "site" / f"theirs_{number}.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = [digest("mine.py")]
    for number in "123":
        metadata = tmp_path / "site" / f"theirs_{number}-1.0.dist-info" / "METADATA"
        metadata.write_text(metadata.read_text().replace("1.0", "2.0"))
        found.append(digest("mine.py"))
    assert len(set(found)) == 4
    assert "pyyaml" in source_digest._needed_anyway()  # so its version is none of a plug-in's


def test_of_other_distributions_the_version_counts_and_of_the_own_one_the_code(tmp_path, monkeypatch):
    write(tmp_path, {"ours.py": "import ours_too, theirs\n", "ours_too.py": "A = 1\n", "theirs.py": "B = 1\n"})
    distribution(tmp_path, "ours-dist", "1.0", ["ours", "ours_too"])
    distribution(tmp_path, "theirs-dist", "1.0", ["theirs"])
    monkeypatch.syspath_prepend(str(tmp_path))
    first = digest("ours")
    write(tmp_path, {"theirs.py": "B = 2\n"})
    assert digest("ours") == first
    metadata = tmp_path / "theirs_dist-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    second = digest("ours")
    write(tmp_path, {"ours_too.py": "A = 2\n"})
    assert len({first, second, digest("ours")}) == 3


def test_a_loop_of_imports_a_missing_module_and_broken_code_end(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {
        "mine.py": "import second\ntry:\n    import nowhere_to_be_found\nexcept ImportError:\n    pass\n",
        "second.py": "import mine as again\n",
    })  # fmt: skip
    before = digest("mine.py")
    write(tmp_path, {"nowhere_to_be_found.py": "S = 0\n"})
    assert digest("mine.py") != before
    write(tmp_path, {"second.py": "def (\n"})
    with pytest.raises(ProgramError, match="SyntaxError"):
        digest("mine.py")
    with pytest.raises(ProgramError, match="no such file"):
        digest("other.py")


def test_what_ends_the_process_is_an_error_and_the_next_question_is_answered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.py": "import os\nos._exit(3)\n", "sound.py": "S = 0\n"})
    with pytest.raises(ProgramError, match="ended the process"):
        digest("mine.py")
    assert digest("sound.py").startswith("p source ")


def test_a_table_that_a_variant_keeps_for_later_counts_from_the_first_time_on(tmp_path, monkeypatch):
    """Else the run that is made with it has another id than the one that makes it."""
    monkeypatch.chdir(tmp_path)
    keeps = "table = f'{dim}.txt'; open(table).read() if os.path.isfile(table) else open(table, 'w').write('1')"
    write(tmp_path, {"mine.py": mixer("import os", built=keeps)})
    sizes = {**asdict(LayerDims(dim=8, num_heads=2, max_length=16)), "layer": 0}
    assert digest("mine.py", variant="mine.py:Mine", sizes=sizes) == digest(
        "mine.py", variant="mine.py:Mine", sizes=sizes
    )


def test_a_variant_that_ends_the_process_when_it_is_called_is_known_by_what_it_imports(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.py": mixer(imports="import os, helper", called="os.abort()"), "helper.py": "S = 0\n"})
    before = digest("mine.py", variant="mine.py:Mine")
    write(tmp_path, {"helper.py": "S = 1\n"})
    assert digest("mine.py", variant="mine.py:Mine") != before


def test_a_file_that_is_written_anew_is_not_read():
    """Such as a picture that a plug-in draws: Pillow opens it in "w+b"."""
    emptied = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    new = os.O_RDWR | os.O_CREAT | os.O_EXCL
    for mode, flags in (("w+b", emptied), ("x+", new), (None, emptied), (None, new)):
        assert opened("open", ("picture.png", mode, flags)) == []
    assert opened("open", ("picture.png", "a+", os.O_RDWR))


def test_a_compiled_module_is_read_where_it_is_imported():
    """It is not opened by Python, which only says that it is imported."""
    assert opened("import", ("kernels.long", "/mine/long.so", None, None, None)) == ["/mine/long.so"] * 2
    assert opened("import", ("json", None, [], [], [])) == []
    assert opened("os.remove", ("/mine/long.so", -1)) == []


def test_a_file_of_the_users_in_a_folder_with_an_installed_package_counts(tmp_path, monkeypatch):
    """As `pip install --target .` makes one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))  # what is there does not count
    distribution(tmp_path, "theirs-beside", "1.0", ["theirs_beside"])
    write(tmp_path, {"data/t.json": "1", "theirs_beside/t.json": "1", "mine/att.py": ""})
    monkeypatch.syspath_prepend(str(tmp_path))
    read = [str(tmp_path / "data/t.json"), str(tmp_path / "theirs_beside/t.json")]
    assert list(source_digest.files_that_count(read, [str(tmp_path / "mine/att.py")])) == read[:1]


def test_a_module_that_a_library_makes_of_a_text_is_no_file_of_the_user():
    """Such as one of torch, which `torch._dynamo` loads."""
    made = types.ModuleType("made_of_a_text")
    made.__spec__ = ModuleSpec("made_of_a_text", None, origin="torch-git")
    sys.modules[made.__name__] = made
    try:
        assert made.__name__ not in source_digest.user_modules()
    finally:
        del sys.modules[made.__name__]


def test_what_an_installer_has_loaded_when_python_starts_is_no_file_of_the_user(tmp_path, monkeypatch):
    """It is listed under no package, and is read when modules are hashed."""
    started = types.ModuleType("__editable___theirs_1_0_finder")
    started.__spec__ = ModuleSpec(started.__name__, None, origin=str(tmp_path / "finder.py"))
    monkeypatch.setitem(sys.modules, started.__name__, started)
    assert started.__name__ not in source_digest.user_modules()


def test_code_of_a_notebook_is_refused_since_nothing_can_be_hashed(monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    with pytest.raises(ProgramError, match="it is in a notebook or was typed in"):
        digest("__main__")


def test_code_of_a_script_that_a_profiler_runs_is_refused(monkeypatch):
    """The profiler is `__main__` then, and nothing of the script can be hashed."""
    monkeypatch.setattr(sys.modules["__main__"], "__file__", cProfile.__file__, raising=False)
    with pytest.raises(ProgramError, match=r"it is in a script that .*cProfile\.py runs, which hides its file"):
        digest("__main__")


def test_what_a_compiler_keeps_for_later_is_not_read_by_a_plug_in(tmp_path, monkeypatch):
    """What is there already depends on what was compiled before."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"mine.py": "S = 0\n", "kept/graph": "0\n"})
    read, code = [str(tmp_path / "kept/graph")], [str(tmp_path / "mine.py")]
    assert source_digest.files_that_count(read, code) == {read[0]: "kept/graph"}
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "kept")
    assert not source_digest.files_that_count(read, code)


SCRIPT = """
from attention_zoo.program import program_text
print(program_text("script", ["__main__"]))
"""


@pytest.mark.nightly
def test_a_script_that_registers_a_variant_is_its_own_program(tmp_path):
    def run(text):
        (tmp_path / "script.py").write_text(text)
        return subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True).stdout

    assert run(SCRIPT) == run(SCRIPT + "# more\n") != run(SCRIPT + "S = 1\n")
    assert run(SCRIPT).startswith("script source ")
