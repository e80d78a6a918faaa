"""The project as a whole: layers, packages, lazy imports, documents."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = ("lra", "attention_zoo", "contextpool", "runners", "reports", "configs")


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in listing.splitlines() if (ROOT / line).is_file()]


def test_the_wheel_lists_every_folder_with_code_or_configuration():
    settings = PROJECT["tool"]["setuptools"]
    mapped = {folder: package for package, folder in settings["package-dir"].items()}
    folders = {
        path.parent for path in tracked() if path.suffix in {".py", ".yaml"} and path.parts[len(ROOT.parts)] in SOURCES
    }
    found = set()
    for folder in folders:
        top, *rest = folder.relative_to(ROOT).parts
        found.add(".".join([mapped.get(top, top), *rest]))
    assert len(found) >= 8
    assert found == set(settings["packages"])
    assert {package.partition(".")[0] for package in settings["packages"]} == {"lra", "attention_zoo", "contextpool"}


def test_the_layers_hold_and_a_breach_is_caught(tmp_path):
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    kept = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert "1 kept, 0 broken" in kept.stdout, kept.stdout + kept.stderr
    for folder in ("lra", "attention_zoo", "contextpool", "runners", "reports"):
        for path in tracked():
            if path.suffix == ".py" and path.is_relative_to(ROOT / folder):
                copy = tmp_path / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(path.read_bytes())
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    with (tmp_path / "attention_zoo" / "base.py").open("a") as file:
        file.write("\nimport lra.errors\n")
    broken = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert "0 kept, 1 broken" in broken.stdout, broken.stdout + broken.stderr


@pytest.mark.parametrize("script", sorted(PROJECT["project"]["scripts"]))
def test_help_teaches_and_does_not_import_torch(script):
    module, _, function = PROJECT["project"]["scripts"][script].partition(":")
    module = module.removeprefix("lra.") if module.startswith(("lra.runners", "lra.reports")) else module
    code = (
        f"import sys; sys.argv = ['{script}', '--help']\nfrom {module} import {function}\n"
        f"try:\n    {function}()\nexcept SystemExit as stop:\n"
        "    print('HEAVY', sorted({'torch', 'pandas', 'matplotlib', 'scipy'} & set(sys.modules)), stop.code)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "HEAVY [] 0" in done.stdout
    assert "Usage:" in done.stdout


LAZY = """
import sys
import attention_zoo
attention_zoo.available()
assert not [name for name in sys.modules if name.startswith("attention_zoo.variants.")], "listing imports variants"
import lra.models.transformer, lra.models.convnet
assert "contextpool" not in sys.modules, "the harness imports contextpool"
import contextpool.variant
assert "contextpool.backends.triton_kernels" not in sys.modules, "contextpool imports triton"
"""


def test_nothing_is_imported_before_it_is_needed():
    done = subprocess.run([sys.executable, "-c", LAZY], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_nothing_names_a_machine_or_an_absolute_home():
    pattern = re.compile(r"(?<![\w./:~<-])/(?:work|home|root|mnt|Users)/\w")
    texts = [path for path in tracked() if path.suffix in {".py", ".md", ".toml", ".yaml", ".txt", ""}]
    assert len(texts) > 40
    assert [str(path) for path in texts if pattern.search(path.read_text(errors="replace"))] == []
    assert pattern.search("see " + "/home/" + "someone")


def test_the_readme_has_the_two_commands_and_the_architecture_the_tree():
    readme = (ROOT / "README.md").read_text()
    assert re.search(r"^pip install -c constraints.txt .* && lra-run --attn contextpool --task listops$", readme, re.M)
    assert re.search(r"^pip install -c constraints.txt .* && pytest$", readme, re.M)
    tree = (ROOT / "docs" / "architecture.md").read_text().partition("## The tree\n")[2].partition("\n## ")[0]
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if path.relative_to(ROOT).parent != Path()}
    told = set(re.findall(r"^([a-z_]+)/ ", tree, re.MULTILINE))
    assert told == {folder for folder in folders if not folder.startswith(".")}
