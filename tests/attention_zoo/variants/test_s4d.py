"""S4D against its recurrence, stepped one token at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo import get_variant
from attention_zoo.masking import zero_masked
from attention_zoo.variants.s4d import S4D
from tests.attention_zoo.variants.helpers import (
    BOTH,
    LENGTH,
    assert_equals_definition,
    assert_keeps_the_contract,
    make,
    share_of_full_attention,
)


def naive_s4d(mixer: S4D, x: Tensor, mask: Tensor) -> Tensor:
    """Step the state through the sequence, one token at a time, in both directions."""
    signal = zero_masked(x, mask)
    poles = torch.complex(-mixer.log_decay.exp(), mixer.frequency)
    rate = (poles * mixer.log_step.exp()[:, None]).exp()
    drive = (rate - 1.0) / poles
    readouts = [torch.view_as_complex(weight) for weight in mixer.readout]

    def scan(order: list[int], readout: Tensor, itself: bool) -> Tensor:
        state = torch.zeros(3, *poles.shape, dtype=poles.dtype)
        outputs: dict[int, Tensor] = {}
        for place in order:
            before = state
            state = rate * state + drive * signal[:, place, :, None]
            outputs[place] = 2.0 * (readout * (state if itself else before)).sum(-1).real
        return torch.stack([outputs[place] for place in range(LENGTH)], dim=1)

    mixed = scan(list(range(LENGTH)), readouts[0], itself=True) + mixer.skip * signal
    if not mixer.dims.causal:
        mixed = mixed + scan(list(range(LENGTH))[::-1], readouts[1], itself=False)
    value, gate = mixer.out(F.gelu(mixed)).chunk(2, dim=-1)
    return zero_masked(value * gate.sigmoid(), mask)


@BOTH
@pytest.mark.parametrize("options", [{"state_size": 6, "max_step": 0.5}, {"initialisation": "legs"}], ids=str)
def test_equals_its_definition_in_outputs_and_gradients(options, causal):
    assert_equals_definition("s4d", naive_s4d, length=LENGTH, causal=causal, **options)


def test_legs_starts_from_the_eigenvalues_of_hippo_n_and_differs_in_nothing_else():
    size = 10
    place = torch.arange(size, dtype=torch.float64)
    legs = -torch.outer((2 * place + 1).sqrt(), (2 * place + 1).sqrt()).tril(-1) - torch.diag(place + 1)
    values = torch.linalg.eigvals(legs + torch.outer((place + 0.5).sqrt(), (place + 0.5).sqrt()))
    lin, started = (
        make("s4d", length=8, state_size=size, initialisation=initialisation).state_dict()
        for initialisation in ("lin", "legs")
    )
    expected = values.imag[values.imag > 0].sort().values
    torch.testing.assert_close(started["frequency"], expected.expand(16, 5), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(started["log_decay"].exp(), -values.real[:5].expand(16, 5), rtol=1e-5, atol=1e-5)
    assert [name for name in lin if not torch.equal(lin[name], started[name])] == ["frequency"]


@pytest.mark.parametrize("options", [{"state_size": 4}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("s4d", options)


def test_weights_beside_those_of_full_attention():
    """No projections stand in front, as in the paper."""
    assert 0.62 - 0.1 <= share_of_full_attention("s4d") <= 0.62


@pytest.mark.parametrize("options", [{"state_size": 3}, {"min_step": 0.5}], ids=str)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("s4d").config.from_dict(options)
