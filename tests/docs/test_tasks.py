"""docs/tasks.md has every task; its appendix has every known defect, and tests that exist."""

import re
from pathlib import Path

from lra.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
TASKS_PAGE = (ROOT / "docs" / "tasks.md").read_text()
DEFECTS = (ROOT / "docs" / "appendix" / "data-defects.md").read_text()


def absent(named):
    return [(file, name) for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]


def test_the_appendix_names_tests_that_exist():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", DEFECTS)
    assert len(named) >= 50
    assert absent(named) == []
    assert absent([("tests/docs/test_tasks.py", "test_that_is_not" + "_there")]) != []


def test_every_task_and_every_defect_is_there_once():
    tables = re.findall(r"^\| `(\w+)` \|", TASKS_PAGE, re.MULTILINE)
    assert [name for name in tables if name in TASKS][: len(TASKS)] == list(TASKS)
    assert re.findall(r"^\| (B\d+) \|", DEFECTS, re.MULTILINE) == [f"B{number}" for number in range(1, 29)]
