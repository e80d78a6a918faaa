"""Mamba against its recurrence, stepped one token at a time from each end."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import LayerDims, get_variant
from attention_zoo.masking import zero_masked
from attention_zoo.variants import mamba
from attention_zoo.variants.mamba import Mamba, SelectiveStateSpace
from tests.attention_zoo.variants.helpers import (
    BOTH,
    LENGTH,
    assert_equals_definition,
    assert_keeps_the_contract,
    assert_same,
    inputs,
    make,
    perturb,
    share_of_full_attention,
)


def silu(x: Tensor) -> Tensor:
    return x / (1.0 + (-x).exp())


def stepped(part: SelectiveStateSpace, values: Tensor, mask: Tensor, order: list[int]) -> Tensor:
    """Go through the tokens in an order; a masked token changes no state, and is zero in the convolution."""
    rank, size, _ = part.sizes
    state = torch.zeros(len(values), values.shape[2], size, dtype=values.dtype)
    rows = {}
    for number, place in enumerate(order):
        u = part.convolution.bias
        for tap, weight in enumerate(part.convolution.weight[:, 0].flip(1).unbind(1)):
            if tap <= number:
                u = u + weight * values[:, order[number - tap]]
        u = silu(u).expand(len(values), -1)
        low, b, c = (u @ part.select.weight.T).split((rank, size, size), dim=1)
        step = torch.log1p(part.step(low).exp())
        factor = torch.exp(step[:, :, None] * -part.log_rate.exp().T)
        after = factor * state + step[:, :, None] * b[:, None, :] * u[:, :, None]
        state = torch.where(mask[:, place, None, None], after, state)
        rows[place] = (state * c[:, None, :]).sum(-1) + part.skip * u
    return torch.stack([rows[place] for place in sorted(rows)], dim=1)


def naive(mixer: Mamba, x: Tensor, mask: Tensor | None) -> Tensor:
    values, gate = mixer.expand(x).chunk(2, dim=2)
    values = zero_masked(values, mask)
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    order = list(range(x.shape[1]))
    mixed = stepped(mixer.past, values, real, order)
    if mixer.future is not None:
        mixed = mixed + stepped(mixer.future, values, real, order[::-1])
    return zero_masked(mixer.out(mixed * silu(gate)), mask)


@BOTH
@pytest.mark.parametrize("options", [{}, {"state_size": 3, "inner_size": 7, "kernel_size": 2}], ids=str)
def test_equals_its_recurrence_in_outputs_and_gradients(options, causal):
    assert_equals_definition("mamba", naive, length=LENGTH, causal=causal, **options)


@BOTH
@pytest.mark.parametrize("length", [1, 2, 5])
def test_short_sequences(causal, length):
    mixer = make("mamba", length=LENGTH, causal=causal)
    perturb(mixer)
    x, mask = inputs(length)
    mask[0, 0] = True
    for used in (None, mask):
        assert_same(mixer, naive, x, used, tolerance=1e-9)


def test_masked_tokens_that_make_a_step_are_told_apart(monkeypatch):
    """The broken twin: only the values of masked tokens are set to zero, not their steps."""
    right = mamba.zero_masked
    mixer = make("mamba", length=LENGTH, dim=12, inner_size=12)
    monkeypatch.setattr(mamba, "zero_masked", lambda x, mask: x if (x > 0.0).all() else right(x, mask))
    x, mask = inputs(LENGTH, dim=12)
    assert_same(mixer, naive, x, None)
    with pytest.raises(AssertionError):
        assert_same(mixer, naive, x, mask)


def test_rates_and_steps_start_as_in_the_paper():
    spec = get_variant("mamba")
    torch.manual_seed(0)
    mixer = spec.build(spec.config(inner_size=1000), LayerDims(dim=64, num_heads=4, max_length=8))
    for part in (mixer.past, mixer.future):
        torch.testing.assert_close(part.log_rate.exp(), torch.arange(1.0, 17.0)[:, None].expand(16, 1000))
        steps = torch.nn.functional.softplus(part.step.bias)
        assert 1e-3 <= steps.min() < 1.1e-3 < 9e-2 < steps.max() <= 1.01e-1
    assert not torch.equal(mixer.past.step.bias, mixer.future.step.bias)


@pytest.mark.nightly
def test_another_size_keeps_the_contract():
    assert_keeps_the_contract("mamba", {"state_size": 2, "inner_size": 6, "kernel_size": 1})


def test_weights_beside_those_of_full_attention():
    assert 0.99 < share_of_full_attention("mamba") < 1.01


@pytest.mark.parametrize("options", [{"state_size": 0}, {"inner_size": -1}, {"kernel_size": 0}], ids=str)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("mamba").config.from_dict(options)
