"""The Toeplitz network against a dense Toeplitz product, with one pass of the network for each distance."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import get_variant
from attention_zoo.masking import zero_masked
from attention_zoo.variants import tnn as module
from attention_zoo.variants.tnn import Tnn
from tests.attention_zoo.variants.helpers import (
    BOTH,
    LENGTH,
    assert_equals_definition,
    assert_keeps_the_contract,
    inputs,
    make,
    perturb,
    share_of_full_attention,
    silu,
)


def entry(mixer: Tnn, distance: int) -> Tensor:
    """Compute t of one signed distance, (width,)."""
    first, *others = mixer.weights.linears
    features = distance * first.weight[:, 0] + first.bias
    for linear in others:
        normed = features / (features.square().mean() + 1e-8).sqrt()
        features = linear.weight @ normed.clamp_min(0.0) + linear.bias
    return features * mixer.config.decay ** abs(distance)


def naive(mixer: Tnn, x: Tensor, mask: Tensor | None) -> Tensor:
    length = x.shape[1]
    entries = {distance: entry(mixer, distance) for distance in range(1 - length, length)}
    if mixer.dims.causal:
        entries |= {distance: torch.zeros_like(entries[0]) for distance in range(1 - length, 0)}
    toeplitz = torch.stack([torch.stack([entries[i - j] for j in range(length)]) for i in range(length)])
    mixed = torch.einsum("ijc,bjc->bic", toeplitz, zero_masked(silu(mixer.value(x)), mask))
    return zero_masked(mixer.out(silu(mixer.gate(x)) * mixed), mask)


@BOTH
@pytest.mark.parametrize("options", [{}, {"decay": 1.0, "position_layers": 0, "position_dim": 5, "width": 6}], ids=str)
def test_equals_a_dense_toeplitz_product_in_outputs_and_gradients(options, causal):
    assert_equals_definition("tnn", naive, length=LENGTH, causal=causal, **options)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_short_sequence_has_the_same_weights(length):
    mixer = make("tnn", length=LENGTH)
    perturb(mixer)
    x, mask = inputs(length)
    for used in (None, mask):
        torch.testing.assert_close(mixer(x, used), naive(mixer, x, used))


def test_a_product_that_wraps_around_is_told_apart(monkeypatch):
    """The broken twin: a circular convolution, which mixes both ends of the sequence."""
    mixer = make("tnn", length=LENGTH)
    x, _ = inputs(LENGTH)
    expected = naive(mixer, x, None)
    torch.testing.assert_close(mixer(x), expected)

    def circular(x: Tensor, past: Tensor, future: Tensor) -> Tensor:
        kernel = past.clone()
        kernel[:, 1:] += future[:, :-1].flip(1)
        spectrum = torch.fft.rfft(x.transpose(1, 2)) * torch.fft.rfft(kernel)
        return torch.fft.irfft(spectrum, n=x.shape[1]).transpose(1, 2)

    monkeypatch.setattr(module, "long_convolution", circular)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize("options", [{"decay": 1.0, "position_layers": 0}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("tnn", options)


def test_weights_fill_what_full_attention_has():
    assert 0.99 <= share_of_full_attention("tnn") <= 1.01


@pytest.mark.parametrize(
    "options", [{"decay": 0.0}, {"position_dim": 0}, {"position_layers": -1}, {"width": -1}], ids=str
)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("tnn").config.from_dict(options)
