"""Causal pooling with weights of any range: the first tokens of a rising sequence count no less than the last."""

import functools

import pytest
import torch

from contextpool.functional import context_pool
from contextpool.reference import reference_pool
from tests.contextpool.backends import cases


@pytest.mark.parametrize("backend", ["dense", "tree"])
@pytest.mark.parametrize("sigma", ["mixed", *(pytest.param(s, marks=pytest.mark.nightly) for s in ("paper", "tiny"))])
@pytest.mark.parametrize("name", cases.PROFILES)
def test_every_row_has_a_scale_of_its_own(backend, sigma, name):
    cases.check_wide_range(functools.partial(context_pool, backend=backend), name, sigma)


def with_one_scale(x, log_weight, sigma, mask, **options):
    """What the backends did once: nothing weighs less than exp(-60) of the sequence's largest."""
    largest = log_weight.detach().masked_fill(~mask, -torch.inf).amax(dim=1, keepdim=True)
    return reference_pool(x, (log_weight - largest).clamp_min(-60.0), sigma, mask, **options)


@pytest.mark.parametrize("name", ["rising", "falling", "hill", "valley", "steps"])
def test_the_check_catches_one_scale_for_the_sequence(name):
    with pytest.raises(AssertionError):
        cases.check_wide_range(with_one_scale, name, "paper")


@pytest.mark.parametrize("backend", ["dense", "tree"])
def test_a_weight_of_minus_infinity_is_the_lightest(backend):
    x, log_weight, sigma, _, _ = cases.Case(300).inputs()
    log_weight[:, 150] = -torch.inf
    y = context_pool(x, log_weight, sigma, causal=True, backend=backend)
    kept = torch.arange(300) != 150
    other = context_pool(x, log_weight.clamp_min(-1e4), sigma, causal=True, backend=backend)
    torch.testing.assert_close(y[:, kept], other[:, kept], rtol=1e-5, atol=1e-6)
    assert y.isfinite().all()
