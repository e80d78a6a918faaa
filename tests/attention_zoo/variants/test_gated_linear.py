"""Gated linear attention against its recurrence, stepped one token at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attention_zoo import get_variant
from attention_zoo.kernels.decayed_attention import decayed_attention
from attention_zoo.masking import zero_masked
from attention_zoo.variants.gated_linear import GatedLinear
from tests.attention_zoo.variants.helpers import BOTH, LENGTH, assert_equals_definition, share_of_full_attention


def naive_recurrence(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, itself: bool = True) -> Tensor:
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
    outputs = []
    for place in range(q.shape[2]):
        state = log_decay[:, :, place, None, None].exp() * state
        written = k[:, :, place, :, None] * v[:, :, place, None, :]
        outputs.append((q[:, :, place, None] @ (state + written if itself else state)).squeeze(2))
        state = state + written
    return torch.stack(outputs, dim=2)


def naive_gated_linear(mixer: GatedLinear, x: Tensor, mask: Tensor) -> Tensor:
    def heads(projected: Tensor) -> Tensor:
        return projected.view(3, LENGTH, 2, -1).transpose(1, 2)

    q, v = heads(mixer.query(x)) / math.sqrt(3), heads(mixer.value(x))
    k = heads(zero_masked(mixer.key(x), mask))
    gates = zero_masked(mixer.forget_gate(x).sigmoid().log() / 16, mask).transpose(1, 2)
    read = naive_recurrence(q, k, v, gates[:, :2])
    if not mixer.dims.causal:
        turned = [each.flip(2) for each in (q, k, v, gates[:, 2:])]
        read = read + naive_recurrence(*turned, itself=False).flip(2)
    read = read / (read.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    gate = mixer.output_gate(x)
    return zero_masked(mixer.out(gate * gate.sigmoid() * read.transpose(1, 2).flatten(2)), mask)


@BOTH
@pytest.mark.parametrize("options", [{"chunk": 8, "gate_bias": -3.0}, {"chunk": 64}], ids=str)
def test_equals_its_definition_in_outputs_and_gradients(options, causal):
    assert_equals_definition("gated_linear", naive_gated_linear, length=LENGTH, causal=causal, **options)


def test_fast_forgetting_neither_overflows_nor_loses_gradients():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 64, 8)
    decay = torch.full((1, 1, 64), -60.0, requires_grad=True)  # 64 of them: exp(3840) if written as a quotient
    for future in (None, decay):
        out = decayed_attention(q, k, v, decay, future, chunk=64)
        torch.testing.assert_close(out, (q * k).sum(-1, keepdim=True) * v)
        (gradient,) = torch.autograd.grad(out.sum(), decay)
        assert gradient.isfinite().all()


def test_weights_beside_those_of_full_attention():
    assert 1.02 - 0.1 <= share_of_full_attention("gated_linear") <= 1.02


@pytest.mark.parametrize("options", [{"chunk": 0}], ids=str)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("gated_linear").config.from_dict(options)
