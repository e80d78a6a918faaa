"""docs/tasks.md has every task, every known defect, and tests that exist."""

import re
from pathlib import Path

from lra.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tasks.md").read_text()


def absent(named):
    return [(file, name) for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]


def test_the_page_names_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) >= 50
    assert absent(named) == []
    assert absent([("tests/docs/test_tasks.py", "test_that_is_not" + "_there")]) != []


def test_the_page_has_every_task_and_every_defect_once():
    tables = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert [name for name in tables if name in TASKS][: len(TASKS)] == list(TASKS)
    assert re.findall(r"^\| (B\d+) \|", PAGE, re.MULTILINE) == [f"B{number}" for number in range(1, 29)]
