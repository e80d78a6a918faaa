"""LRU against its recurrence, stepped one token at a time from each end."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo import LayerDims, get_variant
from attention_zoo.kernels import diagonal_system as kernel
from attention_zoo.masking import zero_masked
from attention_zoo.variants.lru import LRU
from tests.attention_zoo.variants.helpers import (
    BOTH,
    LENGTH,
    assert_equals_definition,
    assert_keeps_the_contract,
    share_of_full_attention,
)


def naive(mixer: LRU, x: Tensor, mask: Tensor | None) -> Tensor:
    signal = zero_masked(x, mask)
    factor = torch.exp(-mixer.log_decay.exp() + 1j * mixer.log_phase.exp())
    drive = torch.view_as_complex(mixer.drive) * mixer.log_scale.exp()[:, None]
    read = torch.zeros_like(signal)
    for readout, order in zip(mixer.readout, (range(LENGTH), range(LENGTH)[::-1]), strict=False):
        state = torch.zeros(len(x), len(factor), dtype=factor.dtype)
        rows = {}
        for place in order:
            state = factor * state + signal[:, place].to(drive.dtype) @ drive.T
            rows[place] = (state @ torch.view_as_complex(readout).T).real
        read = read + torch.stack([rows[place] for place in range(LENGTH)], dim=1)
    value, gate = mixer.out(F.gelu(read + mixer.skip * signal)).chunk(2, dim=-1)
    return zero_masked(value * gate.sigmoid(), mask)


@BOTH
@pytest.mark.parametrize("options", [{}, {"state_size": 7, "min_radius": 0.9, "max_phase": 0.3}], ids=str)
def test_equals_its_definition_in_outputs_and_gradients(options, causal):
    assert_equals_definition("lru", naive, length=LENGTH, causal=causal, **options)


def test_a_direction_that_is_left_out_is_told_apart(monkeypatch):
    """The broken twin: both directions run from the first token."""
    right = kernel.linear_scan
    monkeypatch.setattr(kernel, "linear_scan", lambda a, b, *, reverse: right(a, b))
    with pytest.raises(AssertionError):
        assert_equals_definition("lru", naive, length=LENGTH, causal=False)


@pytest.mark.parametrize("radii", [(0.0, 0.99), (0.9, 0.999)])
def test_starts_on_the_ring_with_states_as_large_as_their_inputs(radii):
    low, high = radii
    spec = get_variant("lru")
    options = {"min_radius": low, "max_radius": high, "max_phase": 1.0, "state_size": 4000}
    torch.manual_seed(0)
    mixer = spec.build(spec.config.from_dict(options), LayerDims(dim=8, num_heads=2, max_length=8))
    radius, phase = (-mixer.log_decay.exp()).exp(), mixer.log_phase.exp()
    assert low <= radius.min()
    assert radius.max() <= high
    assert 0.0 < phase.min() < 0.01 < 0.99 < phase.max() <= 1.0
    # Even on the ring: half of the states lie in the inner half of its area.
    assert (radius.square() < (low**2 + high**2) / 2).double().mean() == pytest.approx(0.5, abs=0.03)
    torch.testing.assert_close(mixer.log_scale.exp().square() + radius.square(), torch.ones(4000), rtol=0, atol=1e-5)


@pytest.mark.nightly
def test_other_options_keep_the_contract():
    assert_keeps_the_contract("lru", {"state_size": 3, "max_phase": math.pi / 10})


def test_weights_beside_those_of_full_attention():
    assert 0.99 < share_of_full_attention("lru") < 1.01


@pytest.mark.parametrize(
    "options", [{"state_size": -1}, {"max_radius": 1.0}, {"min_radius": 0.995}, {"max_phase": 0.0}], ids=str
)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("lru").config.from_dict(options)
