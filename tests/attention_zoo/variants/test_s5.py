"""S5 against its recurrence, stepped one token at a time from each end."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo import LayerDims, get_variant
from attention_zoo.masking import zero_masked
from attention_zoo.variants import s5
from attention_zoo.variants.s5 import S5
from tests.attention_zoo.variants.helpers import (
    BOTH,
    LENGTH,
    assert_equals_definition,
    assert_keeps_the_contract,
    share_of_full_attention,
)


def naive(mixer: S5, x: Tensor, mask: Tensor | None) -> Tensor:
    signal = zero_masked(x, mask)
    poles = torch.complex(-mixer.log_decay.exp(), mixer.frequency)
    factor = (poles * mixer.log_step.exp()).exp()
    drive = ((factor - 1.0) / poles)[:, None] * torch.view_as_complex(mixer.drive)
    read = torch.zeros_like(signal)
    for readout, order in zip(mixer.readout, (range(LENGTH), range(LENGTH)[::-1]), strict=False):
        state, rows = torch.zeros(len(x), len(poles), dtype=poles.dtype), {}
        for place in order:
            state = factor * state + signal[:, place].to(drive.dtype) @ drive.T
            rows[place] = 2.0 * (state @ torch.view_as_complex(readout).T).real
        read = read + torch.stack([rows[place] for place in range(LENGTH)], dim=1)
    mixed = read + mixer.skip * signal
    return zero_masked(mixed * mixer.gate(F.gelu(mixed)).sigmoid(), mask)


@BOTH
@pytest.mark.parametrize("options", [{}, {"state_size": 12, "blocks": 2, "max_step": 0.5}], ids=str)
def test_equals_its_definition_in_outputs_and_gradients(options, causal):
    assert_equals_definition("s5", naive, length=LENGTH, causal=causal, **options)


def test_the_sampling_of_another_hold_is_told_apart(monkeypatch):
    """The broken twin: a first-order approximation of B, without the exponential."""
    monkeypatch.setattr(s5.torch, "expm1", lambda rate: rate)
    with pytest.raises(AssertionError):
        assert_equals_definition("s5", naive, length=LENGTH, causal=True)


def test_starts_as_blocks_of_hippo_matrices_that_are_real():
    """The kept half of the states makes the very output of the full, real system of a block."""
    spec = get_variant("s5")
    torch.manual_seed(0)
    mixer = spec.build(spec.config(state_size=24, blocks=3), LayerDims(dim=4, num_heads=2, max_length=8, causal=True))
    place = torch.arange(8.0)
    root = torch.outer((2 * place + 1).sqrt(), (2 * place + 1).sqrt())
    normal = -0.5 * torch.eye(8) + 0.5 * (root.triu(1) - root.tril(-1))
    values = torch.complex(-mixer.log_decay.exp(), mixer.frequency).detach()
    torch.testing.assert_close(values.reshape(3, 4), values[:4].expand(3, 4))
    found = torch.cat((values[:4], values[:4].conj())).imag.sort().values
    torch.testing.assert_close(found, torch.linalg.eigvals(normal).imag.sort().values, rtol=1e-4, atol=1e-4)
    # The impulse response of the first block, from its matrix: the real B and C are what B and C were drawn as.
    torch.manual_seed(0)
    torch.rand(12)  # the steps
    drive = torch.randn(3, 8, 4) * 4**-0.5
    readout = torch.randn(1, 4, 3, 8) * 24**-0.5
    for time in (0.0, 0.3):
        expected = readout[0, :, 0] @ torch.linalg.matrix_exp(normal * time) @ drive[0]
        states = (values[:4] * time).exp()[:, None] * torch.view_as_complex(mixer.drive)[:4]
        found = 2.0 * (torch.view_as_complex(mixer.readout[0])[:, :4] @ states).real
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.nightly
def test_other_options_keep_the_contract():
    assert_keeps_the_contract("s5", {"state_size": 8, "blocks": 1})


def test_weights_beside_those_of_full_attention():
    assert 0.99 < share_of_full_attention("s5") < 1.01


@pytest.mark.parametrize(
    "options", [{"state_size": -16}, {"state_size": 24}, {"blocks": 0}, {"min_step": 0.5}], ids=str
)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("s5").config.from_dict(options)
