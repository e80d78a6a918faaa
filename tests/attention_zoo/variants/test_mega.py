"""Mega against the equations of the paper on whole matrices."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo import get_variant
from attention_zoo.masking import zero_masked
from attention_zoo.variants.mega import Mega, MovingAverage
from tests.attention_zoo.variants.helpers import (
    BOTH,
    LENGTH,
    assert_equals_definition,
    assert_keeps_the_contract,
    inputs,
    make,
    share_of_full_attention,
)


def naive_average(average: MovingAverage, signal: Tensor, causal: bool) -> Tensor:
    alpha, delta = average.alpha.sigmoid(), average.delta.sigmoid()

    def scan(order: list[int], d: int, itself: bool) -> Tensor:
        state = torch.zeros(3, *alpha.shape[1:], dtype=torch.float64)
        outputs: dict[int, Tensor] = {}
        for place in order:
            before = state
            state = alpha[d] * average.beta[d] * signal[:, place, :, None] + (1 - alpha[d] * delta[d]) * state
            outputs[place] = (average.eta[d] * (state if itself else before)).sum(-1)
        return torch.stack([outputs[place] for place in range(LENGTH)], dim=1)

    code = average.omega is not None
    total = scan(list(range(LENGTH)), 0, itself=True)
    if not causal:
        total = total + scan(list(range(LENGTH))[::-1], 1, itself=code)
    return F.silu(total + average.omega * signal) if code else total


def naive_mega(mixer: Mega, x: Tensor, mask: Tensor) -> Tensor:
    """The paper's equations on whole matrices."""
    signal = zero_masked(x, mask)
    averaged = naive_average(mixer.average, signal, mixer.dims.causal)
    shared = F.silu(mixer.shared(averaged))
    width = shared.shape[-1]
    q, k = mixer.scale[0] * shared + mixer.shift[0], mixer.scale[1] * shared + mixer.shift[1]
    chunk = mixer.config.chunk or LENGTH
    place = torch.arange(LENGTH)
    # The bias of a pair depends on the distance alone: turn alpha by it.
    angle = (place[:, None] - place).double()[..., None] * 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    first, second = mixer.bias[0].chunk(2)
    turned = torch.cat((first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()), dim=-1)
    scores = q @ k.transpose(1, 2) / math.sqrt(width) + turned @ mixer.bias[1]
    seen = mask[:, None, :] & (place[:, None] // chunk == place // chunk)
    if mixer.dims.causal:
        seen = seen.tril()
    weights = scores.exp() * seen
    read = weights / weights.sum(-1, keepdim=True).clamp_min(1e-30) @ F.silu(mixer.value(signal))
    candidate = F.silu(mixer.candidate(averaged) + mixer.out(F.silu(mixer.reset(averaged)) * read))
    return zero_masked(mixer.update(averaged).sigmoid() * (candidate - signal), mask)


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"num_averages": 3},
        {"chunk": 8, "value_dim": 24, "key_dim": 4},
        {"chunk": 8, "backend": "fused"},
        {"num_averages": 3, "form": "code"},
    ],
    ids=str,
)
def test_equals_its_definition_in_outputs_and_gradients(options, causal):
    assert_equals_definition("mega", naive_mega, length=LENGTH, causal=causal, **options)


def test_the_form_of_the_code_starts_with_attention_that_is_nearly_uniform():
    """The paper's form is told apart: its scores start at the size of those of full attention."""
    spread = {}
    for form in ("paper", "code"):
        mixer = make("mega", length=LENGTH, dim=64, form=form)
        shared = F.silu(mixer.shared(mixer.average(inputs(LENGTH, dim=64)[0])))
        q, k = (shared * scale for scale in mixer.scale)
        spread[form] = (q @ k.transpose(1, 2) / math.sqrt(shared.shape[-1])).std().item()
        assert (mixer.average.omega is not None) == (form == "code")
    assert spread["code"] < 1e-3 < 0.02 < spread["paper"]


@pytest.mark.parametrize("options", [{"chunk": 32}, {"form": "code"}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("mega", options)


def test_weights_beside_those_of_full_attention():
    assert 1.10 - 0.1 <= share_of_full_attention("mega") <= 1.10


@pytest.mark.parametrize("options", [{"chunk": 0}, {"key_dim": 3}], ids=str)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("mega").config.from_dict(options)
