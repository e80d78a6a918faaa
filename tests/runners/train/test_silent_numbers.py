"""Numbers that would be wrong without anybody noticing: each way to one is closed."""

import numpy as np
import pytest
import torch

from attention_zoo.variants.full import FullAttention
from lra.metrics import Score
from lra.results.records import Store
from lra.tasks import get_task
from runners.train import evaluate as evaluate_module
from runners.train.evaluate import DivergedError, evaluate
from runners.train.run import RunError
from tests.runners.tiny_runs import execute, rewritten, tiny, tiny_data

SIZES = {"data.train": 512, "data.validation": 100, "data.test": 400}
LEARNT = {
    "train.steps": 100,
    "train.eval_every": 50,
    "train.batch_size": 16,
    "model.dim": 16,
    "model.pooling": "first",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


def relabelled(data, folder, label, shuffle=False):
    """Replace the labels of all splits by a function of the tokens, and perhaps put those of each in a random order."""
    splits, rng = {}, np.random.default_rng(0)
    for name, split in data.splits.items():
        labels = np.array([label(split.tokens_of(index, 0)) for index in range(len(split))], dtype=np.uint8)
        shown = rng.permutation(labels) if shuffle else labels
        splits[name] = type(split)(tokens=split.tokens, offsets=split.offsets, labels=shown)
    return rewritten(data, folder, splits)


class Constant(torch.nn.Module):
    """Gives the same logits for every example."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, tokens, mask=None):
        return self.logits.expand(len(tokens), -1)


def score(model, split, **settings):
    return evaluate(
        model,
        split,
        device=torch.device("cpu"),
        precision="float32",
        padded_length=None,
        limit=16,
        **{"max_tokens": 64} | settings,
    )


def test_nan_logits_are_never_an_accuracy(data, tmp_path):
    split = relabelled(data, tmp_path / "data", lambda tokens: 0).split("test")
    assert (torch.full((1, 10), torch.nan).argmax(dim=1) == 0).all()  # the trap: all would count as right
    for bad in (torch.nan, torch.inf):
        logits = torch.zeros(10)
        logits[3] = bad
        for broken in (torch.full((10,), bad), logits):
            with pytest.raises(DivergedError, match="not finite"):
                score(Constant(broken), split)
    assert score(Constant(torch.zeros(10)), split)[0] == Score(correct=16, total=16, loss=pytest.approx(np.log(10)))


def test_one_nan_logit_of_one_example_is_enough(data):
    split, calls = data.split("test"), []

    class OneBad(Constant):
        def forward(self, tokens, mask=None):
            logits = super().forward(tokens, mask).clone()
            calls.append(len(tokens))
            if sum(calls) == len(split):
                logits[-1, 2] = torch.nan
            return logits

    with pytest.raises(DivergedError):
        score(OneBad(torch.zeros(10)), split)
    assert len(calls) > 1


def test_a_model_that_gives_nan_in_evaluation_has_no_number(data, tmp_path, monkeypatch):
    forward = FullAttention.forward

    def broken(self, x, mask=None):
        return forward(self, x, mask) * (1.0 if self.training else torch.nan)

    monkeypatch.setattr(FullAttention, "forward", broken)
    record = execute(tiny(), data, Store(tmp_path))
    assert (record.status, record.outcome) == ("diverged", None)
    assert "outputs are not finite" in record.detail


def test_as_many_examples_are_scored_as_the_manifest_says(data, tmp_path):
    outcome = execute(tiny(), data, Store(tmp_path)).outcome
    for name, count in (("validation", outcome.validation), ("test", outcome.test)):
        assert count.total == data.manifest.splits[name].examples == 16


def test_an_evaluation_that_loses_examples_is_an_error(data, tmp_path, monkeypatch):
    whole = evaluate_module.evaluation_batches
    monkeypatch.setattr(evaluate_module, "evaluation_batches", lambda *a, **settings: list(whole(*a, **settings))[:-1])
    with pytest.raises(RunError, match="of 16 examples were evaluated"):
        execute(tiny(), data, Store(tmp_path), evaluation_tokens=64)


def test_shuffled_labels_score_at_chance_and_true_ones_do_not(tmp_path):
    """Labels that the first token gives away: easy to learn, unless they are shuffled."""
    config, task = tiny(**SIZES, **LEARNT), get_task("listops")
    data = task.prepare(task.options.model_validate(config.data), tmp_path, workers=1, progress=False)
    firsts = sorted({int(split.tokens_of(i, 0)[0]) for split in data.splits.values() for i in range(len(split))})
    assert 3 <= len(firsts) <= 10
    accuracy = {}
    for shuffle in (False, True):
        given = relabelled(data, tmp_path / f"{shuffle}-data", lambda tokens: firsts.index(int(tokens[0])), shuffle)
        test = execute(config, given, Store(tmp_path / str(shuffle))).outcome.test
        accuracy[shuffle] = test.correct / test.total
    chance = np.bincount(given.split("test").labels).max() / 400  # of the answer that is right most often
    four_sigma = 4 * np.sqrt(chance * (1 - chance) / 400)
    assert accuracy[True] <= chance + four_sigma
    assert accuracy[False] > chance + four_sigma
