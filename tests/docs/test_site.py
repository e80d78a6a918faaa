"""The site: it builds without a warning, its navigation has every page, and a dead link is an error."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, pages

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        not all(find_spec(name) for name in ("mkdocs", "material", "mkdocstrings")),
        reason="needs the extra docs: pip install -c constraints.txt '.[docs]'",
    ),
]


def build(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    assert "WARNING  -" not in done.stderr
    return folder


def test_the_site_has_every_page_of_the_docs(site):
    names = [page.path.relative_to(ROOT / "docs") for page in pages() if page.path.is_relative_to(ROOT / "docs")]
    assert len(names) >= 18
    index = (site / "index.html").read_text(encoding="utf-8")
    for name in names:
        address = name.parent if name.stem == "README" else name.with_suffix("")
        assert (site / address / "index.html").is_file()
        assert name.stem == "README" or f'href="{address}/"' in index


def test_the_notebook_is_a_page_that_other_pages_link(site):
    page = (site / "notebook" / "index.html").read_text(encoding="utf-8")
    assert "The harness in ten cells" in page
    assert "torch.Size([2, 50, 32])" in page  # what a cell printed
    assert 'href="../notebook/"' in (site / "trained-models" / "index.html").read_text(encoding="utf-8")
    assert (site / "notebook.ipynb").is_file()
    assert not (site / "notebook_page.py").exists()


def test_the_reference_has_the_public_names(site):
    import attention_zoo
    import contextpool

    for package in (attention_zoo, contextpool):
        page = (site / "api" / package.__name__ / "index.html").read_text(encoding="utf-8")
        assert len(package.__all__) >= 4
        assert [name for name in package.__all__ if f'id="{package.__name__}.{name}"' not in page] == []


def test_the_site_fetches_nothing_from_another_host(site):
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "<script" in page
    assert "fonts.googleapis" not in page
    assert not [part for part in page.split("<script")[1:] if 'src="http' in part.partition(">")[0]]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("[x](nowhere.md)", "nowhere.md"),
        ("[x](protocol.md#nothing)", "#nothing"),
        ("::: contextpool.nothing", "contextpool.nothing"),
    ],
)
def test_a_broken_page_is_an_error(line, complaint, tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "protocol.md").write_text("# Protocol\n")
    (tmp_path / "docs" / "index.md").write_text(f"# Index\n\n{line}\n")
    settings, _, _ = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")
    settings = settings.replace("paths: [.]", f"paths: [{ROOT}]").replace("hooks: [docs/notebook_page.py]", "")
    (tmp_path / "mkdocs.yml").write_text(settings)
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert complaint in done.stderr
