"""LION against its recurrence from both ends, one token at a time, and against its attention form pair by pair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import get_variant
from attention_zoo.kernels import decayed_attention as kernel
from attention_zoo.variants.lion import Lion
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
)

DECAYS = pytest.mark.parametrize("decay", ["none", "fixed", "selective"])


def features(x: Tensor) -> Tensor:
    shifted = x * x.sigmoid() + 0.5
    return shifted / shifted.square().sum(-1, keepdim=True).sqrt()


def decays(mixer: Lion, x: Tensor, mask: Tensor | None) -> Tensor:
    """Compute λ of each token and head, (batch, length, num_heads), 1 where masked."""
    if mixer.config.decay == "none":
        factor = torch.ones(*x.shape[:2], 2, dtype=x.dtype)
    elif mixer.config.decay == "fixed":
        factor = mixer.fixed.sigmoid().expand(*x.shape[:2], 2)
    else:
        factor = (1.0 + mixer.decay.step(x).exp()) ** -mixer.decay.log_rate.exp()
    return factor if mask is None else torch.where(mask[..., None], factor, 1.0)


def from_one_end(q: Tensor, k: Tensor, v: Tensor, factor: Tensor, order: list[int]) -> tuple[Tensor, Tensor]:
    """Run the state and the normaliser of each head through the tokens; each token counts itself by half.

    Args:
        q: (batch, num_heads, length, head_dim), as are `k` and `v`.
        k: Keys, zero where masked.
        v: Values.
        factor: (batch, num_heads, length).
        order: Of the tokens.
    """
    state, total = torch.zeros(*q.shape[:2], q.shape[3], v.shape[3], dtype=q.dtype), torch.zeros_like(q[:, :, 0])
    read, weight = {}, {}
    for i in order:
        state = factor[..., i, None, None] * state + k[..., i, :, None] * v[..., i, None, :]
        total = factor[..., i, None] * total + k[..., i, :]
        own = (q[..., i, :] * k[..., i, :]).sum(-1, keepdim=True) / 2
        read[i] = (q[..., i, :, None] * state).sum(-2) - own * v[..., i, :]
        weight[i] = (q[..., i, :] * total).sum(-1, keepdim=True) - own
    return torch.stack([read[i] for i in sorted(read)], 2), torch.stack([weight[i] for i in sorted(weight)], 2)


def recurrence(mixer: Lion, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = mixer.projections.split(x)
    q, k, factor = features(q), features(k), decays(mixer, x, mask).transpose(1, 2)
    k = k if mask is None else torch.where(mask[:, None, :, None], k, 0.0)
    order = list(range(x.shape[1]))
    read, weight = from_one_end(q, k, v, factor, order)
    if mixer.dims.causal:
        own = (q * k).sum(-1, keepdim=True) / 2  # the other half of the token itself
        read, weight = read + own * v, weight + own
    else:
        back = from_one_end(q, k, v, factor, order[::-1])
        read, weight = read + back[0], weight + back[1]
    return mixer.projections.merge(read / weight.clamp_min(1e-6), mask)


@BOTH
@DECAYS
@pytest.mark.parametrize(
    "options",
    [
        {"chunk": 5},
        *(
            pytest.param(each, marks=pytest.mark.nightly)
            for each in ({"chunk": 1}, {"chunk": 64}, {"rotary": True}, {"backend": "reference"})
        ),
    ],
    ids=str,
)
def test_equals_its_recurrence_in_outputs_and_gradients(decay, options, causal):
    mixer = make("lion", length=LENGTH, causal=causal, decay=decay, **options)
    perturb(mixer)
    x, mask = inputs(LENGTH)
    for used in (None, mask):
        gradients = assert_same(mixer, recurrence, x, used, tolerance=TOLERANCE)
        assert all(gradient.any() for gradient in gradients.values())
    assert not gradients["x"][~mask].any()


@BOTH
@DECAYS
@pytest.mark.parametrize("length", [1, 5, *(pytest.param(n, marks=pytest.mark.nightly) for n in (2, 9))])
def test_short_sequences(decay, causal, length):
    mixer = make("lion", length=LENGTH, causal=causal, decay=decay, chunk=4)
    perturb(mixer)
    x, mask = inputs(length)
    mask[0, 0] = True
    for used in (None, mask):
        assert_same(mixer, recurrence, x, used, tolerance=TOLERANCE)


@BOTH
def test_many_chunks_are_read_through_groups_of_groups(causal, monkeypatch):
    monkeypatch.setattr(kernel, "_GROUP", 3)  # 37 chunks, 13 groups, 5 groups of groups, 2
    mixer = make("lion", length=LENGTH, causal=causal, chunk=1)
    x, mask = inputs(LENGTH)
    assert_same(mixer, recurrence, x, mask, tolerance=TOLERANCE)


def test_groups_that_do_not_see_each_other_are_told_apart(monkeypatch):
    """The broken twin of the test above."""
    right, calls = kernel._states, []

    def broken(written, log_kept):
        calls.append(written.shape[2])
        return right(written, log_kept) if len(calls) % 2 else torch.zeros_like(written)

    mixer = make("lion", length=LENGTH, causal=True, chunk=1)
    x, mask = inputs(LENGTH)
    monkeypatch.setattr(kernel, "_GROUP", 20)  # 37 chunks, 2 groups
    monkeypatch.setattr(kernel, "_states", broken)
    with pytest.raises(AssertionError):
        assert_same(mixer, recurrence, x, mask, tolerance=TOLERANCE)
    assert calls == [37, 2]


def test_fast_forgetting_neither_overflows_nor_loses_gradients():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 64, 8)
    decay = torch.full((1, 1, 64), -60.0, requires_grad=True)  # 64 of them: exp(3840) if written as a quotient
    for causal in (False, True):
        for chunk in (4, 64):
            out = kernel.decayed_attention(q, k, v, decay, None if causal else decay, chunk=chunk)
            torch.testing.assert_close(out, (q * k).sum(-1, keepdim=True) * v)
            (gradient,) = torch.autograd.grad(out.sum(), decay)
            assert gradient.isfinite().all()


def test_the_fixed_decays_start_as_those_of_retnet():
    mixer = make("lion", length=8, decay="fixed")
    torch.testing.assert_close(mixer.fixed.sigmoid(), 1.0 - 2.0 ** -torch.tensor([5.0, 6.0]).double())


def test_without_decay_the_order_of_tokens_does_not_matter():
    mixer = make("lion", length=LENGTH, decay="none")
    x, mask = inputs(LENGTH)
    order = torch.randperm(LENGTH)
    torch.testing.assert_close(mixer(x[:, order], mask[:, order]), mixer(x, mask)[:, order])


@pytest.mark.parametrize("options", [{"decay": "fixed"}, {"backend": "reference"}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("lion", options, without={"memory"} if "backend" in options else ())


@pytest.mark.nightly
def test_no_decay_keeps_the_contract_but_for_the_order():
    assert_keeps_the_contract("lion", {"decay": "none"}, without={"permutation"})


def test_weights_beside_those_of_full_attention():
    assert 1.0 < share_of_full_attention("lion") < 1.01


@pytest.mark.parametrize("options", [{"chunk": 0}], ids=str)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("lion").config.from_dict(options)
