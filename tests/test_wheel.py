"""The wheel, built from the tracked files, works outside the tree: data, commands, and libraries by themselves."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.test_project import PROJECT, ROOT, SOURCES, tracked

pytestmark = pytest.mark.nightly

DATA = {".yaml", ".j2", ".js", ".css", ".typed"}
WITHOUT_LRA = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "lra":
            raise ImportError("lra may not be needed")
sys.meta_path.insert(0, Refuse())
import torch
"""
COMMANDS = """
import sys
from importlib.metadata import entry_points
from click.testing import CliRunner
import attention_zoo, contextpool, lra
for package in (attention_zoo, contextpool, lra):
    assert package.__file__.startswith(sys.argv[1]), package.__file__
scripts = {point.name: point for point in entry_points(group="console_scripts") if point.name.startswith("lra-")}
assert len(scripts) == 7, scripts
for name, point in sorted(scripts.items()):
    module = sys.modules.get(point.module) or __import__(point.module, fromlist=["x"])
    done = CliRunner().invoke(getattr(module, "command", module.main), ["--help"], prog_name=name)
    assert done.exit_code == 0 and "Usage:" in done.output, done.output
    print(name, "helps")
"""


VERSIONS = """
import json, sys
from importlib.metadata import version
from pathlib import Path
import contextpool, lra
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.results.bench_records import bench_records
from lra.results.records import Store
site, evidence, task = sys.argv[1:]
assert lra.__file__.startswith(site) and contextpool.__file__.startswith(site), lra.__file__
found = {}
for record in Store(Path(evidence)).records():  # raises where one is an error
    found[record.run_id] = record.config.run_id(record.data_digest, record.numerics_version)
def run_id(variant):
    return resolve(task=task, variant=variant, profile=load_profile("quick"), seed=0, overrides={}).run_id("d" * 64)
variants = {name: run_id(name) for name in ("contextpool", "contextpool_conv_only", "full")}
measured = sum(not isinstance(record, Exception) for record in bench_records(Path(evidence)))
print(json.dumps({"version": version("lra-harness"), "found": found, "ids": variants, "measured": measured}))
"""


def build_wheel(folder: Path, version: str | None = None) -> Path:
    """Build the wheel from a copy of the tracked files, under another version number if one is given."""
    for path in tracked():
        relative = path.relative_to(ROOT)
        if relative.parts[0] in SOURCES or len(relative.parts) == 1:
            (folder / "tree" / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / "tree" / relative)
    if version is not None:
        project = folder / "tree" / "pyproject.toml"
        own = f'version = "{PROJECT["project"]["version"]}"'
        assert project.read_text().count(own) == 1
        project.write_text(project.read_text().replace(own, f'version = "{version}"'))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist"]
    done = subprocess.run([*command, "./tree"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory):
    """Unpack the wheel where nothing else of the project is."""
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def python(site: Path, folder: Path, code: str, *arguments: str) -> str:
    """Run code with the unpacked wheel, in a folder outside the tree."""
    settings = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "LRA_HOME": str(folder / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, env=os.environ | settings
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command(site: Path, folder: Path, name: str, *arguments: str) -> str:
    """Run one of the commands as its script would."""
    module, _, function = PROJECT["project"]["scripts"][name].partition(":")
    code = f"import sys; sys.argv[0] = {name!r}; from {module} import {function}; {function}()"
    return python(site, folder, code, *arguments)


def test_the_wheel_holds_every_file_and_nothing_else(wheel):
    mapped = {folder: package.replace(".", "/") for package, folder in
              PROJECT["tool"]["setuptools"]["package-dir"].items()}  # fmt: skip
    expected = set()
    for path in tracked():
        top, *rest = path.relative_to(ROOT).parts
        if top in SOURCES and path.suffix in {".py", *DATA}:
            expected.add("/".join([mapped.get(top, top), *rest]))
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == expected
    assert {Path(name).suffix for name in names} == {".py", *DATA}
    assert {name for name in names if name.endswith("py.typed")} == {
        "lra/py.typed", "attention_zoo/py.typed", "contextpool/py.typed"
    }  # fmt: skip


def test_every_command_helps(site, tmp_path):
    assert python(site, tmp_path, COMMANDS, str(site)).count("helps") == 7


def test_a_run_a_sweep_and_a_report_work(site, tmp_path):
    tiny = {
        "name": "tiny", "title": "For tests", "source": "this test",
        "tasks": {"listops": {
            "data": {"train": 64, "validation": 32, "test": 32, "min_length": 4, "max_length": 24, "max_depth": 3,
                     "max_args": 4},
            "model": {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "max_length": 24},
            "train": {"batch_size": 8, "steps": 4, "eval_every": 2, "lr": 0.01},
        }},
    }  # fmt: skip
    suite = {"name": "s", "title": "t", "profile": "tiny.yaml", "tasks": ["listops"], "seeds": [0]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite | {"variants": {"full": {}}}))
    run = ("--attn", "contextpool", "--task", "listops", "--profile", "tiny.yaml", "--device", "cpu", "--quiet")
    assert "contextpool" in command(site, tmp_path, "lra-run", *run)
    command(site, tmp_path, "lra-sweep", "run", "suite.yaml", "--slots", "1", "--device", "cpu")
    table = command(site, tmp_path, "lra-report", "table", "accuracy")
    assert "ContextPool" in table
    assert "Full attention" in table
    command(site, tmp_path, "lra-report", "html", "--out", "page.html")
    assert "<script>" in (tmp_path / "page.html").read_text()
    assert "published" in command(site, tmp_path, "lra-report", "table", "published")


def test_shipped_profiles_and_suites_and_variants_are_found(site, tmp_path):
    shown = command(
        site, tmp_path, "lra-run", "--attn", "full", "--task", "listops", "--profile", "official", "--dry-run"
    )
    assert "profile: official" in shown
    assert "not run" in command(site, tmp_path, "lra-sweep", "plan", "depth")
    assert "contextpool_conv_only" in command(site, tmp_path, "lra-zoo", "list")


ALONE = """
from attention_zoo import available, get_variant
from contextpool import ContextPool
from contextpool.conv2d import ContextPool2d
assert ContextPool(16)(torch.randn(1, 9, 16)).shape == (1, 9, 16)
assert len([*map(get_variant, available())]) >= 39
ContextPool2d(4, stride=2)(torch.randn(1, 4, 8, 8))
"""


def test_the_libraries_work_without_lra(site, tmp_path):
    python(site, tmp_path, f"{WITHOUT_LRA}\n{ALONE}")
    with pytest.raises(AssertionError, match="lra may not be needed"):
        python(site, tmp_path, f"{WITHOUT_LRA}\nimport lra.errors")


@pytest.mark.nightly
def test_another_version_finds_every_committed_record_under_the_same_ids(site, tmp_path):
    """Install the project as 0.2.0: no run id, and so no file name, depends on the version."""
    built = build_wheel(tmp_path, "0.2.0")
    target = tmp_path / "site-0.2.0"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target), str(built)]
    done = subprocess.run(pip, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    store = ROOT / "benchmarks" / "evidence" / "store"
    now, later = (
        json.loads(python(folder, tmp_path, VERSIONS, str(folder), str(store), "listops")) for folder in (site, target)
    )
    assert (now["version"], later["version"]) == (PROJECT["project"]["version"], "0.2.0")
    committed = {path.stem for path in (store / "results").glob("*/*.json")}
    assert len(committed) >= 283
    assert later["found"] == {run_id: run_id for run_id in committed}
    assert later["ids"] == now["ids"]
    assert later["measured"] == len(list((store / "bench").glob("*.json")))
