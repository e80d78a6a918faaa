"""The delta rule against its recurrence, one token at a time, from both ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import get_variant
from attention_zoo.masking import zero_masked
from attention_zoo.variants import gated_delta as module
from attention_zoo.variants.gated_delta import GatedDelta, delta_rule
from tests.attention_zoo.variants.helpers import (
    BOTH,
    LENGTH,
    TOLERANCE,
    assert_keeps_the_contract,
    assert_same,
    inputs,
    make,
    perturb,
    share_of_full_attention,
    silu,
)

GATES = pytest.mark.parametrize("gate", [True, False], ids=["gated", "plain"])


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def near(mixer: GatedDelta, features: Tensor) -> Tensor:
    """Convolve tap by tap; the last tap of a causal model is the token itself, else the middle one."""
    size = mixer.config.conv_size
    if size == 0:
        return features
    mixed = torch.zeros_like(features)
    for place in range(features.shape[1]):
        for tap in range(mixer.short.weight.shape[2]):
            source = place + tap - (size - 1)
            if 0 <= source < features.shape[1]:
                mixed[:, place] += mixer.short.weight[:, 0, tap] * features[:, source]
    return mixed


def from_one_end(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, alpha: Tensor, order: list[int]) -> Tensor:
    """Step the state of one head through the tokens: (batch, length, value_dim)."""
    state, read = torch.zeros(q.shape[0], q.shape[2], v.shape[2], dtype=q.dtype), {}
    eye = torch.eye(q.shape[2], dtype=q.dtype)
    for t in order:
        key, step = k[:, t, :, None], beta[:, t, None, None]
        state = alpha[:, t, None, None] * (eye - step * key @ key.transpose(1, 2)) @ state
        state = state + step * key @ v[:, t, None, :]
        read[t] = (q[:, t, None, :] @ state)[:, 0]
    return torch.stack([read[t] for t in sorted(read)], dim=1)


def recurrence(mixer: GatedDelta, x: Tensor, mask: Tensor | None) -> Tensor:
    features = torch.cat((mixer.query(x), mixer.key(x), mixer.value(x)), dim=-1)
    q, k, v = silu(near(mixer, zero_masked(features, mask))).split(mixer.widths, dim=-1)
    beta, alpha = mixer.write(x).sigmoid(), torch.ones_like(mixer.write(x))
    if mixer.config.gate:
        alpha = (1.0 + mixer.decay.step(x).exp()) ** -mixer.decay.log_rate.exp()
    if mask is not None:
        beta, alpha = beta * mask[..., None], torch.where(mask[..., None], alpha, 1.0)
    order, heads = list(range(x.shape[1])), []
    for head in range(2):
        each = [part.unflatten(2, (2, -1))[:, :, head] for part in (q, k, v)]
        each[:2] = unit(each[0]), unit(each[1])
        read = from_one_end(*each, beta[..., head], alpha[..., head], order)
        if not mixer.dims.causal:
            read = read + from_one_end(*each, beta[..., 2 + head], alpha[..., 2 + head], order[::-1])
        heads.append(read / (read.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight)
    out = torch.cat(heads, dim=-1)
    if mixer.config.gate:
        out = silu(mixer.output_gate(x)) * out
    return zero_masked(mixer.out(out), mask)


@BOTH
@GATES
@pytest.mark.parametrize(
    "options",
    [{"chunk": 5, "conv_size": 0}, {"conv_size": 1}, pytest.param({"chunk": 1}, marks=pytest.mark.nightly)],
    ids=str,
)
def test_equals_its_recurrence_in_outputs_and_gradients(gate, options, causal):
    mixer = make("gated_delta", length=LENGTH, causal=causal, gate=gate, **options)
    perturb(mixer)
    x, mask = inputs(LENGTH)
    for used in (None, mask):
        gradients = assert_same(mixer, recurrence, x, used, tolerance=TOLERANCE)
        assert all(gradient.any() for gradient in gradients.values())
    assert not gradients["x"][~mask].any()


@BOTH
@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_short_sequences(causal, length):
    mixer = make("gated_delta", length=LENGTH, causal=causal, chunk=4)
    perturb(mixer)
    x, mask = inputs(length)
    mask[0, 0] = True
    for used in (None, mask):
        assert_same(mixer, recurrence, x, used, tolerance=TOLERANCE)


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (module, "_states", lambda change, added: torch.zeros_like(added)),
        (torch.linalg, "solve_triangular", lambda matrix, right, **_: right),
    ],
    ids=["no state between chunks", "no erasing within a chunk"],
)
def test_broken_forms_are_told_apart(owner, name, broken, monkeypatch):
    """The broken twins of the comparison above."""
    mixer = make("gated_delta", length=LENGTH, causal=True, chunk=5)
    x, mask = inputs(LENGTH)
    assert_same(mixer, recurrence, x, mask, tolerance=TOLERANCE)
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(AssertionError):
        assert_same(mixer, recurrence, x, mask, tolerance=TOLERANCE)


def test_the_newest_value_of_a_key_replaces_the_older_ones():
    torch.manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(1, 1, 1, 8, dtype=torch.float64), dim=-1).expand(-1, -1, 9, -1)
    v = torch.randn(1, 1, 9, 4, dtype=torch.float64)
    ones = torch.ones(1, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(delta_rule(k, k, v, ones, 0 * ones, chunk=4), v)


def test_fast_forgetting_and_equal_keys_neither_overflow_nor_lose_gradients():
    torch.manual_seed(0)
    k = torch.nn.functional.normalize(torch.randn(1, 1, 1, 8), dim=-1).expand(-1, -1, 64, -1)
    v = torch.randn(1, 1, 64, 8)
    decay = torch.full((1, 1, 64), -60.0, requires_grad=True)  # 64 of them: exp(3840) if written as a quotient
    for chunk in (4, 64):
        out = delta_rule(k, k, v, torch.ones(1, 1, 64), decay, chunk=chunk)
        torch.testing.assert_close(out, v)
        (gradient,) = torch.autograd.grad(out.sum(), decay)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("options", [{"gate": False, "conv_size": 0}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("gated_delta", options)


def test_weights_beside_those_of_full_attention():
    assert 1.0 < share_of_full_attention("gated_delta") < 1.03


@pytest.mark.parametrize("options", [{"chunk": 0}, {"conv_size": -1}], ids=str)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("gated_delta").config.from_dict(options)
