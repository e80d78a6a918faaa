"""The notebook of the documentation: its cells run one after the other, in a folder and with a store of their own."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, links, pages

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"


def cells(kind: str) -> list[str]:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def run_cells(sources: list[str]) -> dict:
    """Run cells in one namespace, as a kernel does; the values of last expressions are not looked at."""
    names: dict = {"__name__": "__main__"}
    for number, source in enumerate(sources):
        exec(compile(source, f"cell {number}", "exec"), names)
    return names


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LRA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LRA_STORE", raising=False)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_it_has_ten_cells_and_a_link_to_it():
    assert len(cells("markdown")) == len(cells("code")) == 5
    assert any("notebook.ipynb" in str(link) for page in pages() for link in links(page))


@pytest.mark.nightly
@pytest.mark.usefixtures("folder")
def test_its_cells_run(capsys):
    names = run_cells(cells("code"))
    assert names["frame"]["label"].tolist() == ["ContextPool", "Full attention"]
    assert names["data"].manifest.splits["train"].examples == 2000
    assert not names["model"].training
    out = capsys.readouterr().out
    assert "train example 0: " in out
    assert "test accuracy %" in out
    assert "Classifier of " in out


def test_what_is_stored_is_what_the_cells_gave():
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [1, 2, 3, 4, 5]
    assert all(cell["outputs"] for cell in code)
    assert "error" not in {output["output_type"] for cell in code for output in cell["outputs"]}


def test_a_broken_cell_is_caught():
    with pytest.raises(AttributeError, match="load_runs"):
        run_cells(["import lra", "lra.load_runs('x')"])
