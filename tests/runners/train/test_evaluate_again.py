"""`lra-run --evaluate`: the weights of a run give the recorded counts again, and other counts are told."""

import json
import re

import pytest
import torch
from click.testing import CliRunner

from lra.results.checkpoints import weights_digest
from lra.results.records import Store
from lra.trained import TrainedRun, load_run
from runners.cli.run import command as lra_run
from runners.train import evaluate_again as module
from runners.train.evaluate_again import OtherScoreError, evaluate_again
from runners.train.run import RunOptions
from tests.lra.test_trained import VARIANTS
from tests.reports.synthetic import add_other_outcome
from tests.runners.tiny_runs import execute, tiny, tiny_data

LONGER = {"train.steps": 30, "train.eval_every": 10}
"""Steps after which some answers are right, so that a count says something."""
OPTIONS = RunOptions(device=torch.device("cpu"), progress=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def data(home):
    return tiny_data(home)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    return load_run(execute(tiny(**LONGER), data, store).run_id, store.root)


def with_count(run, split, change) -> TrainedRun:
    """The same run, as if another count had been recorded."""
    outcome = run.record.outcome
    count = getattr(outcome, split)
    other = count.model_copy(update={"correct": count.correct + change})
    record = run.record.model_copy(update={"outcome": outcome.model_copy(update={split: other})})
    return TrainedRun(record=record, store=run.store)


@pytest.mark.parametrize(
    ("variant", "padding"),
    [
        ("full", "fixed"),
        ("full", "bucketed"),
        *(pytest.param(name, "bucketed", marks=pytest.mark.nightly) for name in VARIANTS if name != "full"),
    ],
)
def test_the_recorded_counts_come_again(variant, padding, data, home, tmp_path):
    record = execute(tiny(variant, **LONGER | {"train.padding": padding}), data, Store(tmp_path))
    first, *lines = evaluate_again(load_run(record.run_id, tmp_path), OPTIONS, home)
    assert first.startswith(f"{variant}")
    counts = [re.fullmatch(r"(\w+): (\d+) of 16 right, as recorded", line).groups() for line in lines]
    outcome = record.outcome
    assert counts == [("validation", str(outcome.validation.correct)), ("test", str(outcome.test.correct))]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_another_count_is_told(run, home, split):
    recorded = getattr(run.record.outcome, split).correct
    with pytest.raises(
        OtherScoreError, match=f"right answers in {split}: {recorded}, and {recorded + 1} are recorded$"
    ):
        evaluate_again(with_count(run, split, 1), OPTIONS, home)


def test_other_answers_are_told(run, home, monkeypatch):
    assert run.record.outcome.validation.correct > 0
    broken = run.model()
    labels = run.data(home).split("validation").labels
    unlike = next(c for c in range(10) if (labels == c).sum() != run.record.outcome.validation.correct)
    with torch.no_grad():
        broken.head.out.bias[unlike] = 1e6
    monkeypatch.setattr(TrainedRun, "model", lambda self, device: broken)
    with pytest.raises(OtherScoreError, match=f"in validation: {(labels == unlike).sum()}, and"):
        evaluate_again(run, OPTIONS, home)


def test_another_environment_is_named_beside_another_count(run, home, monkeypatch):
    monkeypatch.setattr(module, "describe_environment", lambda device: run.record.environment | {"torch": "0.1"})
    with pytest.raises(OtherScoreError, match=r"from another environment \(torch .*0\.1 here\)$"):
        evaluate_again(with_count(run, "test", 1), OPTIONS, home)


def test_answers_that_are_no_numbers_are_another_count(run, home, monkeypatch):
    broken = run.model()
    with torch.no_grad():
        broken.head.out.bias.fill_(float("nan"))
    assert weights_digest(broken.state_dict()) != run.record.outcome.weights_digest
    monkeypatch.setattr(TrainedRun, "model", lambda self, device: broken)
    with pytest.raises(OtherScoreError, match="in validation: none: its outputs are not finite"):
        evaluate_again(run, OPTIONS, home)


def call(run, home, *words):
    arguments = ["--store", str(run.store.root), "--data-dir", str(home), "--device", "cpu", "--threads", "1", *words]
    return CliRunner().invoke(lra_run, arguments, catch_exceptions=False)


@pytest.mark.parametrize("option", ["--evaluate", "--from"])
def test_another_outcome_of_the_run_is_named(option, run, home):
    path = run.store.record_path(run.record.run_id)
    line = f"{path.with_suffix('.conflict-1.json')}: another outcome of the same run\n"
    arguments = [] if option == "--evaluate" else ["--attn", "full", "--task", "listops", "--dry-run"]
    assert line not in call(run, home, option, run.record.run_id[:10], *arguments).stderr
    beside = add_other_outcome(run.store, run.record.run_id)
    told = call(run, home, option, run.record.run_id[:10], *arguments).stderr
    beside.unlink()
    assert line in told


def test_the_command_scores_again_and_ends_with_4_if_a_count_differs(run, home, tmp_path, monkeypatch):
    done = call(run, home, "--evaluate", run.record.run_id[:10])
    assert done.exit_code == 0, done.stderr
    assert "of 16 right, as recorded" in done.stdout.splitlines()[-1]
    assert call(run, home, "--evaluate", str(run.store.record_path(run.record.run_id))).stdout == done.stdout
    monkeypatch.setattr("lra.trained.load_run", lambda name, store: with_count(run, "test", -1))
    done = call(run, home, "--evaluate", "x")
    assert done.exit_code == 4
    assert re.search(r"^Error: full.*right answers in test: \d+, and -?\d+ are recorded$", done.stderr, re.MULTILINE)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--evaluate", "zz"), "begins with 'zz'"),
        (("--evaluate", "nowhere.json"), "nowhere.json: no such record"),
        (("--evaluate", "ab", "--attn", "full"), "--evaluate takes a run as it is"),
        (("--evaluate", "ab", "--force"), "--evaluate takes a run as it is"),
    ],
)
def test_a_mistake_is_one_line(run, home, words, message):
    done = call(run, home, *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert json.loads(run.store.record_path(run.record.run_id).read_text())
