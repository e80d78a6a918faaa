"""Causal pooling with weights of any range: the first tokens of a rising sequence count no less than the last."""

import functools

import pytest
import torch

from contextpool.backends.tree import pool as causal
from contextpool.backends.tree import truncation
from contextpool.functional import context_pool
from contextpool.reference import reference_pool
from tests.contextpool.backends import cases

LENGTH = 700
PROFILES = {
    "rising": lambda place: 300 * place,
    "falling": lambda place: -300 * place,
    "hill": lambda place: 300 * (1 - (2 * place - 1).abs()),
    "valley": lambda place: 300 * (2 * place - 1).abs(),
    "steps": lambda place: 300 * ((7 * place).floor() % 2),
    "spikes": lambda place: 15.0 * ((LENGTH * place).round() % 97 == 5),
}
"""What is added to the log-weights, by place in the sequence from 0 to 1."""


def over_a_wide_range(pool, name):
    """Pool with a profile added to the log-weights, rounded to float32 in every precision, so that inputs agree."""

    def wide(x, log_weight, sigma, mask, **options):
        shift = PROFILES[name](torch.linspace(0, 1, LENGTH))
        total = (log_weight.detach().float() + shift).to(log_weight)
        return pool(x, total + (log_weight - log_weight.detach()), sigma, mask, **options)

    return wide


def errors(pool, name, sigma, dtype=torch.float32):
    """Return relative errors of y and the gradients of x, log_weight and sigma, and that of the worst row of y."""
    case = cases.Case(LENGTH, sigma=sigma, causal=True)
    actual = cases.run(over_a_wide_range(pool, name), case, dtype)
    expected = cases.run(over_a_wide_range(reference_pool, name), case, torch.float64)
    norms = [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(actual, expected, strict=True)]
    rows = (actual[0] - expected[0]).norm(dim=2) / expected[0].norm(dim=2).clamp_min(1e-2)
    return [*norms, float(rows.max())]


def check(pool, name, sigma):
    # In float32 an exponent of 300 is rounded by 2e-5 of a weight; in float64 only the tree's own error is left.
    single, double = (errors(pool, name, sigma, dtype) for dtype in (torch.float32, torch.float64))
    assert max(single[:3]) <= 3e-5, single
    assert single[3] <= 1e-3, single
    assert max(double[:4]) <= 3e-6, double
    assert double[4] <= 2e-5, double


@pytest.mark.parametrize("backend", ["dense", "tree"])
@pytest.mark.parametrize("sigma", ["tiny", "paper", "mixed"])
@pytest.mark.parametrize("name", PROFILES)
def test_every_row_has_a_scale_of_its_own(backend, sigma, name):
    check(functools.partial(context_pool, backend=backend), name, sigma)


def with_one_scale(x, log_weight, sigma, mask, **options):
    """What the backends did once: nothing weighs less than exp(-60) of the sequence's largest."""
    largest = log_weight.detach().masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
    return reference_pool(x, (log_weight - largest).clamp_min(-60.0), sigma, mask, **options)


@pytest.mark.parametrize("name", ["rising", "falling", "hill", "valley", "steps"])
def test_the_check_catches_one_scale_for_the_sequence(name):
    with pytest.raises(AssertionError):
        check(with_one_scale, name, "paper")


@pytest.mark.parametrize(
    ("limit", "name"), [("TOLERANCE", "hill"), ("LARGEST_TAIL", "falling")], ids=["interpolation", "tail"]
)
def test_the_check_catches_a_tree_that_trusts_itself(monkeypatch, limit, name):
    """Both reasons for which a row is pooled by the formula are needed."""
    monkeypatch.setattr(causal, limit, 1e30)
    with pytest.raises(AssertionError):
        check(functools.partial(context_pool, backend="tree"), name, "paper")


def test_ordinary_weights_leave_nothing_to_the_formula(monkeypatch):
    seen = []
    monkeypatch.setattr(causal, "_rows", lambda formula: seen.append(int(formula.sum())) or [])
    for sigma in ("tiny", "paper", "mixed"):
        cases.run(functools.partial(context_pool, backend="tree"), cases.Case(3001, sigma=sigma, causal=True))
    assert seen == [0] * 6  # forward and backward


@pytest.mark.parametrize("weight", ["normal", "eight decades"])
def test_the_bound_of_the_tail_is_one(weight):
    _, log_weight, sigma, mask, _ = cases.Case(400, weight=weight).inputs()
    log_weight = log_weight.double().masked_fill(~mask, -torch.inf)
    sigma, position = sigma.double(), torch.arange(400)
    cut = (position - (4 * sigma).long()).minimum(position)
    term = log_weight[:, None, :] - (position[:, None] - position).square() / (2 * sigma[:, :, None].square())
    exact = term.masked_fill(position >= cut[:, :, None], -torch.inf).logsumexp(dim=2)
    bound = truncation.log_tail(log_weight, sigma, cut)
    assert (bound >= exact).all()
    some = exact > -torch.inf
    assert some.float().mean() > 0.3
    assert (bound[~some & (cut <= 0)] == -torch.inf).all()
    assert (bound - exact)[some].median() < 10.0


@pytest.mark.parametrize("backend", ["dense", "tree"])
def test_a_weight_of_minus_infinity_is_the_lightest(backend):
    x, log_weight, sigma, _, _ = cases.Case(300).inputs()
    log_weight[:, 150] = -torch.inf
    y = context_pool(x, log_weight, sigma, causal=True, backend=backend)
    kept = torch.arange(300) != 150
    other = context_pool(x, log_weight.clamp_min(-1e4), sigma, causal=True, backend=backend)
    torch.testing.assert_close(y[:, kept], other[:, kept], rtol=1e-5, atol=1e-6)
    assert y.isfinite().all()
