"""Code that computes numbers does not change without a new numerics version, or a reason why the numbers are equal."""

import shutil
from pathlib import Path

import pytest

from lra.config.schema import NUMERICS_VERSION
from tests.numerics.sources import (
    COMPUTE_NOTHING,
    COMPUTES,
    FOLDERS,
    ROOT,
    TABLE,
    UpdateError,
    digests,
    problem,
    read_table,
    updated,
    write_table,
)

FILE = "attention_zoo/masking.py"


def test_the_code_that_computes_is_that_of_the_numerics_version():
    assert len(digests()) > 80
    assert problem(digests(), NUMERICS_VERSION, TABLE.read_text()) == ""


def test_each_file_of_the_folders_that_compute_is_in_one_of_the_two_lists():
    """A file that is in neither would compute, and change, unseen."""

    def listed(patterns: tuple[str, ...]) -> set[Path]:
        return {path for pattern in patterns if "::" not in pattern for path in ROOT.glob(pattern)}

    there = {path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    computing, others = listed(COMPUTES), listed(COMPUTE_NOTHING)
    assert there <= computing | others
    assert not computing & others


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with two files that compute, and their table."""
    for name in (FILE, "attention_zoo/variants/full.py", "runners/train/run.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "table").write_text(updated(digests(tmp_path), 1, "numerics version 1\n", ""))
    return tmp_path


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def told(copy: Path, version: int = 1) -> str:
    return problem(digests(copy), version, (copy / "table").read_text())


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        (FILE, "masked_fill", "masked_scatter"),
        ("attention_zoo/variants/full.py", "self.dims.dropout", "0.0"),
        ("runners/train/run.py", "seed=config.seed", "seed=config.seed + 1"),
    ],
)
def test_a_change_of_what_computes_is_caught_and_says_what_to_do(copy, file, old, new):
    assert told(copy) == ""
    edit(copy / file, old, new)
    line = told(copy)
    assert line.startswith(file)
    assert "raise NUMERICS_VERSION in lra/config/schema.py" in line
    with pytest.raises(UpdateError, match="why the numbers are equal"):
        updated(digests(copy), 1, (copy / "table").read_text(), "")
    (copy / "table").write_text(updated(digests(copy), 1, (copy / "table").read_text(), "only names have changed"))
    assert told(copy) == ""
    assert "= only names have changed" in (copy / "table").read_text()
    (copy / "table").write_text(updated(digests(copy), 2, (copy / "table").read_text(), ""))
    assert told(copy, version=2) == ""
    assert "=" not in (copy / "table").read_text()


def test_comments_and_other_functions_do_not_count(copy):
    edit(copy / FILE, "from __future__", "# a comment\nfrom __future__")
    edit(copy / "runners/train/run.py", "def is_out_of_memory", "def is_out_of_storage")
    assert told(copy) == ""


def test_a_new_or_removed_file_needs_the_command_and_no_reason(copy):
    (copy / "attention_zoo/variants/new.py").write_text("X = 1\n")
    (copy / FILE).unlink()
    assert told(copy).startswith(f"{FILE}, attention_zoo/variants/new.py: changed")
    (copy / "table").write_text(updated(digests(copy), 1, (copy / "table").read_text(), ""))
    assert told(copy) == ""


def test_a_raised_version_needs_the_command(copy):
    assert told(copy, version=2) == "NUMERICS_VERSION is 2, the table has 1; run: python -m tests.numerics"


def test_the_table_is_read_as_it_is_written():
    text = TABLE.read_text()
    assert write_table(*read_table(text)) == text
