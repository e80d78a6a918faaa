"""The gated attention unit against its matrix of weights, written out pair by pair."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import get_variant
from attention_zoo.masking import zero_masked
from attention_zoo.variants import gau as module
from attention_zoo.variants.gau import Gau
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


def rotated(mixer: Gau, part: int, place: int) -> Tensor:
    """Rotate one of the two vectors of distances pair by pair; features f and f + 16 belong together."""
    vector = mixer.distance[part]
    angle = torch.complex(mixer.rotary.cos[place], mixer.rotary.sin[place]).to(torch.complex128)
    return torch.complex(vector[:16], vector[16:]) * angle[:16]


def naive(mixer: Gau, x: Tensor, mask: Tensor | None) -> Tensor:
    length, real = x.shape[1], torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    shared, v = silu(mixer.shared(x)), silu(mixer.value(x))
    q, k = (shared * mixer.scale[part] + mixer.shift[part] for part in range(2))
    biases = {}
    if mixer.config.bias:
        first, second = ([rotated(mixer, part, place) for place in range(length)] for part in range(2))
        biases = {(i, j): (a * b.conj()).real.sum() for i, a in enumerate(first) for j, b in enumerate(second)}
    read = torch.zeros_like(v)
    for row in range(len(x)):
        for i in range(length):
            seen = [j for j in range(i + 1 if mixer.dims.causal else length) if real[row, j]]
            if not seen:
                continue
            scores = torch.stack([q[row, i] @ k[row, j] / k.shape[2] ** 0.5 + biases.get((i, j), 0.0) for j in seen])
            if mixer.config.kernel == "softmax":
                weights = scores.exp() / scores.exp().sum()
            else:
                weights = scores.clamp_min(0.0) ** 2 / len(seen)
            read[row, i] = weights @ v[row, seen]
    return zero_masked(mixer.out(silu(mixer.gate(x)) * read), mask)


@BOTH
@pytest.mark.parametrize("options", [{}, {"kernel": "softmax", "key_dim": 6}, {"bias": False, "width": 5}], ids=str)
def test_equals_its_definition_in_outputs_and_gradients(options, causal, monkeypatch):
    monkeypatch.setattr(module, "_QUERIES", 4)
    length = 11
    mixer = make("gau", length=length, causal=causal, **options)
    perturb(mixer)
    x, mask = inputs(length)
    for used in (None, mask):
        gradients = assert_same(mixer, naive, x, used, tolerance=TOLERANCE)
        assert all(gradient.any() for gradient in gradients.values())
    assert not gradients["x"][~mask].any()


def test_a_bias_that_looks_the_other_way_is_told_apart():
    """The broken twin: the bias of the distance j - i."""
    mixer = make("gau", length=9)
    x, mask = inputs(9)
    expected = naive(mixer, x, mask)
    torch.testing.assert_close(mixer(x, mask), expected)
    with torch.no_grad():
        mixer.distance.copy_(mixer.distance.flip(0))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(mixer(x, mask), expected)


@pytest.mark.parametrize("kernel", ["relu2", "softmax"])
def test_without_a_bias_the_order_of_tokens_does_not_matter(kernel):
    mixer = make("gau", length=LENGTH, kernel=kernel, bias=False)
    x, mask = inputs(LENGTH)
    order = torch.randperm(LENGTH)
    torch.testing.assert_close(mixer(x[:, order], mask[:, order]), mixer(x, mask)[:, order])


@pytest.mark.parametrize("options", [{"kernel": "softmax"}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("gau", options)


def test_weights_fill_what_full_attention_has():
    assert 0.99 <= share_of_full_attention("gau") <= 1.01


@pytest.mark.parametrize("options", [{"key_dim": 0}, {"width": -1}], ids=str)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("gau").config.from_dict(options)
