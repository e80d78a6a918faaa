"""The seeded mistakes still fit the tree, and the script that judges them can tell. All of them take minutes: run
`python -m tests.mutation`."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tests.mutation.__main__ import (
    PROBE,
    ROOT,
    Mistake,
    NotSeededError,
    check_copy,
    copy_tracked,
    judge,
    load_mistakes,
    run_tests,
)

MISTAKES = load_mistakes()
WILSON = next(mistake for mistake in MISTAKES if mistake.name == "wilson-interval")


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshot") / "tree"
    copy_tracked(folder)
    return folder


def test_there_are_many_and_in_every_folder():
    assert len(MISTAKES) >= 36
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES)
    folders = Counter(Path(mistake.file).parts[0] for mistake in MISTAKES)
    assert set(folders) == {"lra", "runners", "attention_zoo", "contextpool", "reports"}
    assert min(folders.values()) >= 5


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_fits_the_tree_and_its_tests_are_there(mistake, tmp_path):
    copy = tmp_path / mistake.file
    copy.parent.mkdir(parents=True)
    copy.write_text((ROOT / mistake.file).read_text())
    mistake.apply(tmp_path)
    compile(copy.read_text(), mistake.file, "exec")
    assert copy.read_text() != (ROOT / mistake.file).read_text()
    assert mistake.tests
    for test in mistake.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file()
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text() or not name


@pytest.mark.parametrize(
    "change", [{"file": "lra/metric.py"}, {"old": "text that is nowhere"}, {"old": "total"}, {"new": WILSON.old}]
)
def test_a_mistake_that_does_not_fit_is_told(snapshot, change):
    with pytest.raises(NotSeededError, match="wilson-interval"):
        replace(WILSON, **change).apply(snapshot)


def test_the_copy_is_what_is_tested_and_another_is_found_out(snapshot, tmp_path):
    assert check_copy(snapshot) is None
    (tmp_path / "tests").mkdir()  # a copy without the packages: those that are installed would be tested
    (tmp_path / "tests" / "test_probe.py").write_text(PROBE)
    code, output = run_tests(tmp_path, ["tests/test_probe.py"])
    assert code == 1, output


def test_one_is_caught_and_a_harmless_one_survives(snapshot):
    verdict = judge(snapshot, WILSON)
    assert (verdict.word, verdict.by.partition("[")[0]) == (
        "caught",
        "tests/lra/test_metrics.py::test_wilson_equals_scipy",
    )
    harmless = replace(WILSON, name="harmless", new="total * total * 4")
    assert judge(snapshot, harmless).word == "SURVIVED"
    broken = replace(WILSON, name="broken", new="4 * total *")
    assert judge(snapshot, broken).word == "NO VERDICT"


def test_one_in_a_process_that_a_test_starts_is_caught(snapshot):
    test = "tests/runners/cli/test_run.py::test_mistakes_are_one_line_each_and_leave_nothing"
    mistake = Mistake(
        name="another-message",
        file="runners/cli/options.py",
        old="runs backwards",
        new="runs forwards",
        tests=(f"{test}[change3-2-'3-1' runs backwards; write 1-3]",),
    )
    assert judge(snapshot, mistake).word == "caught"


def test_the_page_on_reliability_has_the_verdict_on_each():
    page = (ROOT / "docs" / "reliability.md").read_text()
    section = page.partition("## Seeded mistakes")[2].partition("\n## ")[0]
    told = re.findall(r"^\| ([\w-]+) \| `([\w/.]+)` \| caught by `(tests/[\w/.]+::\w+)` \|$", section, re.MULTILINE)
    assert {(name, file) for name, file, _ in told} == {(mistake.name, mistake.file) for mistake in MISTAKES}
    named = {mistake.name: mistake.tests for mistake in MISTAKES}
    assert [
        name for name, _, test in told if not any(test.startswith(each.partition("[")[0]) for each in named[name])
    ] == []
