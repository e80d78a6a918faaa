"""Differential attention against its two maps, written out head by head."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attention_zoo import LayerDims, get_variant
from attention_zoo.masking import zero_masked
from attention_zoo.variants.differential import DifferentialAttention
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
    softmax,
)

HALF = 4


def rotated(x: Tensor) -> Tensor:
    """Rotate features 0, 1 with 2, 3 by angles of 1 and 1/100 for each position: (batch, length, 4)."""
    place = torch.arange(x.shape[1], dtype=x.dtype)
    angle = torch.stack((place, place / 100.0), dim=-1)
    cos, sin = angle.cos().float().double(), angle.sin().float().double()
    first, second = x[..., :2], x[..., 2:]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


def weights(q: Tensor, k: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Write out one map, (batch, length, length), with zeros where nothing is to be seen."""
    scores = q @ k.transpose(1, 2) / math.sqrt(HALF)
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if causal:
        allowed = allowed.tril()
    if mask is not None:
        allowed = allowed & mask[:, None, :]
    some = allowed.any(-1, keepdim=True)
    return softmax(torch.where(allowed | ~some, scores, -torch.inf)) * some


def naive(mixer: DifferentialAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = (linear(x) for linear in (mixer.projections.query, mixer.projections.key, mixer.projections.value))
    start = 0.8 - 0.6 * math.exp(-0.3 * mixer.dims.layer)
    (a1, b1), (a2, b2) = mixer.contrast
    share = (a1 * b1).sum().exp() - (a2 * b2).sum().exp() + start
    heads = []
    for head in range(2):
        begin = 2 * HALF * head
        maps = []
        for half in (slice(begin, begin + HALF), slice(begin + HALF, begin + 2 * HALF)):
            query, key = q[..., half], k[..., half]
            if mixer.config.rotary:
                query, key = rotated(query), rotated(key)
            maps.append(weights(query, key, mask, causal=mixer.dims.causal))
        read = (maps[0] - share * maps[1]) @ v[..., begin : begin + 2 * HALF]
        normed = read / (read.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
        heads.append((1.0 - start) * normed)
    return zero_masked(mixer.projections.out(torch.cat(heads, dim=-1)), mask)


@BOTH
@pytest.mark.parametrize("options", [{}, {"rotary": True}, {"backend": "blockwise"}], ids=str)
def test_equals_the_difference_of_two_maps_in_outputs_and_gradients(options, causal):
    mixer = make("differential", length=LENGTH, causal=causal, **options)
    perturb(mixer)
    x, mask = inputs(LENGTH)
    for used in (None, mask):
        gradients = assert_same(mixer, naive, x, used, tolerance=TOLERANCE)
        assert all(gradient.any() for name, gradient in gradients.items() if name != "projections.key.bias")


def test_halves_that_are_mixed_up_are_told_apart():
    """The broken twin: the second map takes the part of the first."""
    mixer = make("differential", length=LENGTH)
    x, mask = inputs(LENGTH)
    expected = naive(mixer, x, mask)
    torch.testing.assert_close(mixer(x, mask), expected)
    with torch.no_grad():
        for linear in (mixer.projections.query, mixer.projections.key):
            linear.weight.copy_(linear.weight.view(2, 2, HALF, 16).flip(1).flatten(0, 2))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(mixer(x, mask), expected)


def test_the_second_map_starts_with_a_share_that_grows_with_the_depth():
    spec = get_variant("differential")
    shares = []
    for layer in (0, 1, 11):
        mixer = spec.build(spec.config(), LayerDims(dim=16, num_heads=2, max_length=4, layer=layer))
        with torch.no_grad():
            mixer.contrast.zero_()
        shares.append(mixer.statistics()["lambda"].item())
    assert shares == pytest.approx([0.2, 0.3555, 0.7779], abs=1e-4)


def test_an_odd_width_is_refused():
    spec = get_variant("differential")
    with pytest.raises(ValueError, match="head_dim"):
        spec.build(spec.config(), LayerDims(dim=15, num_heads=3, max_length=4))


@pytest.mark.parametrize("options", [{"backend": "reference"}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("differential", options, without={"memory"})


def test_weights_beside_those_of_full_attention():
    assert 1.0 < share_of_full_attention("differential") < 1.001
