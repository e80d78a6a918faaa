"""The seeded mistakes still fit the tree, and the script that judges them can tell. All of them take minutes: run
`python -m tests.mutation`."""

import ast
import re
from collections import Counter
from dataclasses import replace

import pytest

from tests.mutation.mutations import (
    PACKAGES,
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
    folders = Counter(mistake.where.partition(".")[0] for mistake in MISTAKES)
    assert set(folders) == set(PACKAGES)
    assert min(folders.values()) >= 5


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_a_mistake_fits_the_tree_and_its_tests_are_there(mistake):
    path, module = mistake.seed_tree(ROOT)
    compile(ast.fix_missing_locations(module), path, "exec")
    assert mistake.tests
    for test in mistake.tests:
        file, _, name = test.partition("::")
        assert (ROOT / file).is_file()
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text() or not name


@pytest.mark.parametrize(
    "change",
    [
        {"where": "lra.metrics.no_such_interval"},
        {"where": "lra.metrics.Score.wilson_interval"},
        {"where": "lra.metrics.Score.accuracy"},
        {"change": "code_that_is_nowhere"},
        {"change": "total"},
        {"change": "method ="},
        {"to": "method ="},
        {"to": WILSON.change},
    ],
)
def test_a_mistake_that_does_not_fit_is_told(change):
    with pytest.raises(NotSeededError, match="wilson-interval"):
        replace(WILSON, **change).seed(ROOT)


CODE = """
class Pool:
    def sizes(self, counts):
        total = sum(counts)
        return merge(counts, total, strict=True)

LIMITS = {1, 2}
"""
MOVED = """
LIMITS = {
    1,
    2,  # the most
}

class Pool:
    def sizes(self, counts):
        # all of them
        total = sum(
            counts
        )
        return (merge(counts, total,
                      strict=True))
"""
SEEDS = [
    ("Pool.sizes", "sum(counts)", "len(counts)", "total = len(counts)"),
    ("Pool.sizes", "strict=True", "strict=False", "return merge(counts, total, strict=False)"),
    ("Pool.sizes", "total = sum(counts)\nreturn merge(counts, total, strict=True)", "pass", "counts):\n        pass"),
    ("Pool", "total = sum(counts)", "pass", "pass\n        return merge"),
    ("LIMITS", "2", "3", "LIMITS = {1, 3}"),
]


@pytest.mark.parametrize(("where", "change", "to", "seeded"), SEEDS)
def test_formatting_comments_and_moves_do_not_matter(tmp_path, where, change, to, seeded):
    mistake = Mistake(name="one", where=f"lra.data.{where}", change=change, to=to, tests=())
    (tmp_path / "lra").mkdir()
    before, after = tmp_path / "lra" / "data.py", tmp_path / "lra" / "elsewhere.py"
    before.write_text(CODE)
    path, code = mistake.seed(tmp_path)
    assert path == before
    assert seeded in code
    before.write_text("")
    after.write_text(MOVED)
    moved, code = mistake.seed(tmp_path)
    assert moved == after
    assert seeded in code
    (tmp_path / "lra" / "again.py").write_text(MOVED)
    with pytest.raises(NotSeededError, match=r"several: lra/again\.py, lra/elsewhere\.py"):
        mistake.seed(tmp_path)


@pytest.mark.parametrize("extra", ["def f():\n    return sum(counts)\n", "class Pool:\n    pass\n"])
def test_another_function_with_the_same_code_is_no_obstacle(tmp_path, extra):
    mistake = Mistake(name="one", where="lra.Pool.sizes", change="sum(counts)", to="0", tests=())
    (tmp_path / "lra").mkdir()
    (tmp_path / "lra" / "__init__.py").write_text(CODE + extra)
    assert mistake.seed(tmp_path)[1].count("sum(counts)") == extra.count("sum(counts)")


@pytest.mark.nightly
def test_the_copy_is_what_is_tested_and_another_is_found_out(snapshot, tmp_path):
    assert check_copy(snapshot) is None
    (tmp_path / "tests").mkdir()  # a copy without the packages: those that are installed would be tested
    (tmp_path / "tests" / "test_probe.py").write_text(PROBE)
    code, output = run_tests(tmp_path, ["tests/test_probe.py"])
    assert code == 1, output


@pytest.mark.nightly
def test_one_is_caught_and_a_harmless_one_survives(snapshot):
    verdict = judge(snapshot, WILSON)
    assert (verdict.word, verdict.by.partition("[")[0]) == (
        "caught",
        "tests/lra/test_metrics.py::test_wilson_equals_that_of_scipy",
    )
    harmless = replace(WILSON, name="harmless", change="total < 1", to="total <= 0")
    assert judge(snapshot, harmless).word == "SURVIVED"
    broken = replace(
        WILSON, name="broken", where="lra.metrics.Score", change="correct: int", to="correct: int = no_such_name"
    )
    assert judge(snapshot, broken).word == "NO VERDICT"
    elsewhere = replace(WILSON, name="elsewhere", where="lra.metrics.no_such_interval")
    assert judge(snapshot, elsewhere).word == "NOT SEEDED"


@pytest.mark.nightly
def test_one_in_a_process_that_a_test_starts_is_caught(snapshot):
    test = "tests/runners/cli/test_run.py::test_a_broken_profile_is_one_line_with_its_place"
    mistake = Mistake(
        name="duplicate-accepted",
        where="lra.config.yaml_loader._mapping",
        change="key in result",
        to="key in {}",
        tests=(test,),
    )
    assert judge(snapshot, mistake).word == "caught"


def test_the_table_of_verdicts_has_each():
    page = (ROOT / "docs" / "appendix" / "fault-tests.md").read_text()
    section = page.partition("## Seeded mistakes")[2].partition("\n## ")[0]
    told = re.findall(r"^\| ([\w-]+) \| `([\w/.]+)` \| caught by `(tests/[\w/.]+::\w+)` \|$", section, re.MULTILINE)
    assert {(name, where) for name, where, _ in told} == {(mistake.name, mistake.where) for mistake in MISTAKES}
    named = {mistake.name: mistake.tests for mistake in MISTAKES}
    assert [
        name for name, _, test in told if not any(test.startswith(each.partition("[")[0]) for each in named[name])
    ] == []
