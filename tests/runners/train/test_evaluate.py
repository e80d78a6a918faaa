"""Evaluation of a whole split, with models whose answers are known."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from lra.data.split import Split
from lra.seeding import seed_all
from runners.train import evaluate as evaluate_module
from runners.train.distributed import RankInfo
from runners.train.evaluate import DivergedError, evaluate

LENGTHS = np.array([5, 30, 2, 9, 30, 17, 1, 12])


class Reader(nn.Module):
    """Answers with the first token, and is sure of it."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens, mask=None):
        return self.dropout(10.0 * nn.functional.one_hot(tokens[:, 0].long(), 10).float())


def split(wrong=()):
    """Examples of unequal lengths whose first token is the label, but for those of the given numbers."""
    labels = np.arange(len(LENGTHS)) % 7 + 1
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    tokens = np.full(offsets[-1], 9, dtype=np.uint8)
    tokens[offsets[:-1]] = labels
    tokens[offsets[list(wrong)]] = 0
    return Split(tokens=tokens, offsets=offsets, labels=labels.astype(np.uint8))


def score(model, examples, max_tokens=64):
    return evaluate(
        model, examples, device=torch.device("cpu"), precision="float32", padded_length=None, limit=32,
        max_tokens=max_tokens,
    )  # fmt: skip


@pytest.mark.parametrize("max_tokens", [1, 64, 1000])
def test_answers_come_in_the_order_of_the_split(max_tokens):
    found, correct = score(Reader(), split(wrong=(1, 5, 6)), max_tokens)
    assert correct.tolist() == [True, False, True, True, True, False, False, True]
    assert (found.correct, found.total) == (5, 8)
    sure, missed = np.log1p(9 * np.exp(-10.0)), 10.0 + np.log1p(9 * np.exp(-10.0))
    assert found.loss == pytest.approx((5 * sure + 3 * missed) / 8, rel=1e-5)


@pytest.mark.parametrize(("size", "steps"), [(1, [1] * 8), (3, [3, 3, 2])])
def test_progress_counts_what_all_processes_do(monkeypatch, size, steps):
    seen = []

    def as_if_all_had_answered(values, ranks, operation=None):
        if len(values) == 4:  # loss, examples, answers, whether an output is broken
            values[1] = len(LENGTHS)
        return values

    monkeypatch.setattr(evaluate_module, "all_reduce", as_if_all_had_answered)
    evaluate(
        Reader(), split(), device=torch.device("cpu"), precision="float32", padded_length=None, limit=32, max_tokens=1,
        progress=seen.append, ranks=RankInfo(0, size),
    )  # fmt: skip
    assert seen == steps


def test_dropout_is_off():
    model = Reader(dropout=0.9).train()
    assert score(model, split())[0].correct == 8
    assert not model.training


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_output_that_is_not_a_number_is_no_score(value):
    class Broken(Reader):
        def forward(self, tokens, mask=None):
            logits = super().forward(tokens)
            return torch.where(tokens[:, :1] == 3, value, logits)

    examples = split()
    assert (examples.labels == 3).sum() == 1
    with pytest.raises(DivergedError, match="not finite"):
        score(Broken(), examples)


class Guesser(nn.Module):
    """Adds to what it has read what it draws from each of the three generators."""

    def forward(self, tokens, mask=None):
        noise = torch.rand(10) + random.random() + np.random.random()  # noqa: NPY002
        return nn.functional.one_hot(tokens[:, 0].long(), 10).float() + noise


def test_a_model_that_draws_when_it_is_evaluated_has_one_score():
    found = []
    for before in (0, 1):
        seed_all(before, "something else")
        found.append(score(Guesser(), split())[0])
    assert found[0] == found[1]


def test_all_generators_are_seeded_each_purpose_apart():
    def drawn(*purpose):
        seed_all(3, *purpose)
        return torch.rand(()).item(), random.random(), np.random.random()  # noqa: NPY002

    first, again, other = drawn("step", 1), drawn("step", 1), drawn("step", 2)
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))
