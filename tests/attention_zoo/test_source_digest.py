"""The digest of a program: changed by every change of its code, by nothing else."""

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from attention_zoo.source_digest import code_digest, program_text, source_digest

MIXER = '''
    """A module."""
    import math
    from . import helpers
    from .scale import factor


    def mix(q, k):
        """Mix."""
        from .late import shift  # imported when it is needed
        return factor * q @ k + shift + helpers.ONE
'''
FILES = {
    "my_mixers/__init__.py": "",
    "my_mixers/mixer.py": MIXER,
    "my_mixers/helpers.py": "from other_folder_module import ONE\n",
    "my_mixers/scale.py": "import shared\nfactor = shared.F\n",
    "my_mixers/late.py": "import importlib\nshift = importlib.import_module('my_mixers.deep.down').S\n",
    "my_mixers/deep/__init__.py": "",
    "my_mixers/deep/down.py": "S = 0\n",
    "my_mixers/unused.py": "X = 1\n",
    "shared.py": "F = 2\n",
}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the path; one for all tests, since a changed path makes all distributions be read again."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


@pytest.fixture
def project(tmp_path: Path, elsewhere: Path) -> Path:
    """A folder with a package, a module beside it, and one in another folder on the path."""
    for name, text in FILES.items():
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    (elsewhere / "other_folder_module.py").write_text("ONE = 1\n")
    return tmp_path / "home"


def digest(project: Path) -> str:
    return source_digest([project / "my_mixers" / "mixer.py"])


def replaced(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("my_mixers/mixer.py", "factor * q @ k", "0 * q @ k"),
        ("my_mixers/mixer.py", "factor * q", "(factor, q)[0] * q"),
        ("my_mixers/__init__.py", "", "import torch\ntorch.set_default_dtype(torch.float64)\n"),
        ("my_mixers/scale.py", "shared.F", "-shared.F"),
        ("my_mixers/late.py", "down').S", "down').S + 1"),
        ("my_mixers/deep/down.py", "0", "0.0"),
        ("my_mixers/deep/__init__.py", "", "X = 1"),
        ("shared.py", "2", "3"),
        ("{elsewhere}/other_folder_module.py", "1", "True"),
    ],
)
def test_a_change_of_the_code_anywhere_in_the_program_changes_the_digest(project, elsewhere, file, old, new):
    before = digest(project)
    replaced(project / file.format(elsewhere=elsewhere), old, new)
    assert digest(project) != before


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("my_mixers/mixer.py", "A module.", "Another text."),
        ("my_mixers/mixer.py", "  # imported when it is needed", ""),
        ("my_mixers/mixer.py", "factor * q @ k + shift", "(\n        factor * q @ k\n        + shift)"),
        ("my_mixers/unused.py", "1", "2"),
        ("shared.py", "F = 2", "# a comment\n\nF = 2  # more\n"),
    ],
)
def test_comments_layout_and_what_is_not_imported_do_not_count(project, file, old, new):
    before = digest(project)
    replaced(project / file, old, new)
    assert digest(project) == before


def test_the_folder_does_not_count(project, tmp_path):
    before = digest(project)
    assert digest(project.rename(tmp_path / "moved")) == before


def test_two_files_are_one_program_whatever_their_order(project):
    files = [project / "my_mixers" / "mixer.py", project / "my_mixers" / "unused.py"]
    assert source_digest(files) == source_digest(files[::-1]) != digest(project)


def distribution(folder: Path, name: str, version: str, modules: list[str]) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "top_level.txt").write_text("\n".join(modules))
    (info / "RECORD").write_text("".join(f"{module}.py,,\n" for module in modules))


def test_of_other_distributions_the_version_counts_and_of_the_own_one_the_code(tmp_path, monkeypatch):
    for name, text in {"ours": "import ours_too, theirs\n", "ours_too": "A = 1\n", "theirs": "B = 1\n"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    distribution(tmp_path, "ours-dist", "1.0", ["ours", "ours_too"])
    distribution(tmp_path, "theirs-dist", "1.0", ["theirs"])
    monkeypatch.syspath_prepend(str(tmp_path))
    first = source_digest([tmp_path / "ours.py"])
    (tmp_path / "theirs.py").write_text("B = 2\n")
    assert source_digest([tmp_path / "ours.py"]) == first
    replaced(tmp_path / "theirs_dist-1.0.dist-info" / "METADATA", "1.0", "1.1")
    second = source_digest([tmp_path / "ours.py"])
    (tmp_path / "ours_too.py").write_text("A = 2\n")
    assert len({first, second, source_digest([tmp_path / "ours.py"])}) == 3


def test_a_distribution_that_is_installed_meanwhile_is_seen(tmp_path, monkeypatch):
    for name, text in {"mine": "import theirs_later\n", "theirs_later": "B = 1\n"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    first = source_digest([tmp_path / "mine.py"])
    distribution(tmp_path, "theirs-later-dist", "1.0", ["theirs_later"])
    second = source_digest([tmp_path / "mine.py"])
    (tmp_path / "theirs_later.py").write_text("B = 2\n")
    assert first != second == source_digest([tmp_path / "mine.py"])


def test_a_loop_of_imports_a_missing_module_and_broken_code_end(tmp_path):
    (tmp_path / "first.py").write_text("import second\nimport nowhere_to_be_found, __main__\n")
    (tmp_path / "second.py").write_text("import first, broken\n")
    (tmp_path / "broken.py").write_text("def (\n")
    before = source_digest([tmp_path / "first.py"])
    (tmp_path / "broken.py").write_text("def [\n")
    assert source_digest([tmp_path / "first.py"]) != before


@pytest.mark.parametrize(
    ("one", "other"),
    [("x = 1", "x = True"), ("x = 1", "x = 1.0"), ("f(**a)", "f(a)"), ("{**a}", "{a: 1}"), ("x = 'a'", "x = b'a'")],
)
def test_constants_and_calls_are_told_apart(one, other):
    assert code_digest(one.encode()) != code_digest(other.encode())


def test_the_digest_of_a_text_is_the_same_in_every_version_of_python():
    text = "def f(a, *, b=None, **c):\n    'doc'\n    return f'{a!r:>{b}}' 'x', [*c], {**c, 'k': -1.0}, a[1:, ...]\n"
    assert code_digest(text.encode())[:16] == "76e365b9b103f49d"


class Here:
    """A class with a file."""


def test_a_class_without_a_file_has_no_program():
    namespace: dict = {"__name__": "nowhere"}
    exec("class Typed: pass", namespace)
    with pytest.raises(TypeError):
        program_text("typed", namespace["Typed"])
    assert program_text("this test", Here).startswith("this test source ")


@pytest.mark.parametrize(
    ("main", "others", "edited"),
    [
        ("import importlib\nlate = importlib.import_module('.late', __name__)\n", {"late.py": "S = 0\n"}, "late.py"),
        ("import importlib\nx = importlib.import_module(name='side')\n", {"side.py": "S = 0\n"}, "side.py"),
        ("from importlib import import_module as load\nx = load('side')\n", {"side.py": "S = 0\n"}, "side.py"),
        (
            "from pack import *\n",
            {"pack/__init__.py": "__all__ = ['part']\n", "pack/part.py": "S = 0\n"},
            "pack/part.py",
        ),
        ("import xa.util, xb.util\n", {"xa/util.py": "S = 0\n", "xb/util.py": "S = 1\n"}, "xa/util.py"),
        ("import xa.util, xb.util\n", {"xa/util.py": "S = 0\n", "xb/util.py": "S = 1\n"}, "xb/util.py"),
        ("from xc.main import S\nFACTOR = 2 * S\n", {"xc/main.py": "S = 0\n"}, "main.py"),
    ],
    ids=["relative-call", "keyword", "alias", "star", "namesake-a", "namesake-b", "namesake-of-the-first"],
)
def test_no_form_of_import_and_no_namesake_hides_an_edit(tmp_path, main, others, edited):
    for name, text in {"main.py": main, **others}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    before = source_digest([tmp_path / "main.py"])
    path = tmp_path / edited
    path.write_text(path.read_text() + "S = 3\n")
    assert source_digest([tmp_path / "main.py"]) != before
