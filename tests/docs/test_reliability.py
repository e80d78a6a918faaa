"""docs/appendix/fault-tests.md: every row names a test, and every test that it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "appendix" / "fault-tests.md").read_text()
FAULTS = (
    "kill -9", "flipped bits", "disk full", "file-system call", "SIGTERM", "during the imports", "second Ctrl-C",
    "terminal closed", "under `nohup`",
    "RLIMIT_AS", "on a device", "NaN", "crash (SIGSEGV), hang", "200 leases", "same run", "killed, same host",
    "another host", "driver of a sweep killed", "Ray worker killed", "clock steps",
    "read-only cache", "store away", "hostile checkpoint", "foreign or newer record", "plug-in that is not named",
    "noise in the test labels", "manifest", "restored weights", "odd batch sizes", "shuffled labels", "NaN logits",
)  # fmt: skip
"""The faults and silent errors that the page must have: those that this project promises to survive."""


def rows(page):
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    return [line for line in lines if not line.startswith(("| fault", "| ---", "| what", "| mistake"))]


def named_tests(text):
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)


def problems(page):
    """List the rows without a test and the tests that are not there."""
    found = [f"no test: {row}" for row in rows(page) if not named_tests(row)]
    for file, name in named_tests(page):
        path = ROOT / file
        if not path.is_file() or not re.search(rf"^def {name}\(", path.read_text(), re.MULTILINE):
            found.append(f"missing: {file}::{name}")
    return found


def test_every_row_names_a_test_and_every_named_test_is_there():
    assert len(rows(PAGE)) >= 40
    assert len(set(named_tests(PAGE))) >= 40
    assert problems(PAGE) == []


def test_every_promised_fault_has_a_row():
    assert len(FAULTS) == 31
    assert [fault for fault in FAULTS if not any(fault in row for row in rows(PAGE))] == []


def test_a_missing_test_a_missing_file_and_a_bare_row_are_found():
    name = "test_every_row_names_a_test_and_every_named_test_is_there"
    assert problems(f"| a | b | `tests/docs/test_reliability.py::{name}` |\n") == []
    page = (
        "| a | b | `tests/docs/test_reliability.py::test_every` |\n"
        f"| a | b | `tests/nowhere.py::{name}` |\n"
        "| a | b | to be written |\n"
    )
    assert len(problems(page)) == 3
