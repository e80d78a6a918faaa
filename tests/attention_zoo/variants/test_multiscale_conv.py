"""The multi-scale convolution against a dense Toeplitz product, with kernels written out weight by weight."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo import LayerDims, get_variant
from attention_zoo.masking import zero_masked
from attention_zoo.variants.multiscale_conv import MultiscaleConv, _largest_size, _num_scales, _stretch
from tests.attention_zoo.variants.helpers import (
    BOTH,
    LENGTH,
    assert_equals_definition,
    assert_keeps_the_contract,
    inputs,
    make,
    perturb,
    share_of_full_attention,
)

BOTH_KINDS = pytest.mark.parametrize("kind", ["interpolated", "dilated"])


def interpolated(weight: Tensor, decay: float) -> list[Tensor]:
    """List the kernel of SGConv lag by lag, each (dim,), from the weights of one direction, (scales, dim, size)."""
    lags = []
    size = weight.shape[2]
    for scale, piece in enumerate(weight):
        factor = 1 if scale == 0 else 2 ** (scale - 1)
        for position in range(size * factor):
            place = min(max((position + 0.5) / factor - 0.5, 0.0), size - 1.0)
            below = int(place)
            above = min(below + 1, size - 1)
            share = place - below
            lags.append(decay**scale * ((1.0 - share) * piece[:, below] + share * piece[:, above]))
    return lags


def dilated(weight: Tensor, decay: float) -> list[Tensor]:
    """List the sum of dilated kernels lag by lag."""
    lags = [torch.zeros_like(weight[0, :, 0]) for _ in range(weight.shape[2] * 2 ** len(weight))]
    for (scale, piece), tap in itertools.product(enumerate(weight), range(weight.shape[2])):
        lags[tap * 2**scale] = lags[tap * 2**scale] + decay**scale * piece[:, tap]
    return lags


def toeplitz(mixer: MultiscaleConv, length: int) -> Tensor:
    """Write out the weight of token j for token i in each channel: (i, j, dim)."""
    lags = {"interpolated": interpolated, "dilated": dilated}[mixer.config.kind]
    past, *future = (
        [lag / norm[:, 0] for lag in lags(weight, mixer.config.decay)]
        for weight, norm in zip(mixer.weight, mixer.norm, strict=True)
    )
    nothing = torch.zeros_like(past[0])
    rows = [
        [past[i - j] if j <= i else future[0][j - i - 1] if future else nothing for j in range(length)]
        for i in range(length)
    ]
    return torch.stack([torch.stack(row) for row in rows])


def naive(mixer: MultiscaleConv, x: Tensor, mask: Tensor | None) -> Tensor:
    signal = zero_masked(x, mask)
    mixed = torch.einsum("ijd,bjd->bid", toeplitz(mixer, x.shape[1]), signal) + mixer.skip * signal
    value, gate = mixer.out(F.gelu(mixed)).chunk(2, dim=-1)
    return zero_masked(value * gate.sigmoid(), mask)


@BOTH_KINDS
@BOTH
@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "decay": 0.8}, {"kernel_size": LENGTH}], ids=str)
def test_equals_a_dense_toeplitz_product_in_outputs_and_gradients(kind, options, causal):
    assert_equals_definition("multiscale_conv", naive, length=LENGTH, causal=causal, kind=kind, **options)


@BOTH_KINDS
@pytest.mark.parametrize("length", [1, 2, 5, 36])
def test_a_short_sequence_is_read_by_the_start_of_the_same_kernel(kind, length):
    mixer = make("multiscale_conv", length=LENGTH, dim=12, kind=kind, kernel_size=3)
    perturb(mixer)
    x, mask = inputs(LENGTH, dim=12)
    x, mask = x[:, :length], mask[:, :length]
    for used in (None, mask):
        torch.testing.assert_close(mixer(x, used), naive(mixer, x, used))


@BOTH_KINDS
@BOTH
def test_kernels_start_with_a_norm_of_one_and_reach_the_whole_length(kind, causal):
    mixer = make("multiscale_conv", length=100, dim=12, kind=kind, causal=causal)
    kernels = mixer.kernels(100, torch.float64)
    assert kernels.shape == (1 if causal else 2, 12, 100)
    torch.testing.assert_close(kernels.norm(dim=-1), torch.ones_like(kernels[..., 0]), rtol=1e-6, atol=0.0)
    assert kernels[..., 50:].any(dim=-1).all()


def test_stretching_is_linear_interpolation():
    torch.manual_seed(0)
    weight = torch.randn(2, 3, 7, dtype=torch.float64)
    for factor in (1, 2, 8):
        expected = F.interpolate(weight, scale_factor=factor, mode="linear")
        torch.testing.assert_close(_stretch(weight, factor), expected)


@pytest.mark.parametrize(("size", "length"), [(1, 1), (1, 2), (3, 3), (3, 4), (3, 6), (3, 7), (9, 2000)])
def test_scales_cover_the_length_and_none_is_idle(size, length):
    covered = [size * 2**scale for scale in range(_num_scales(size, length))]
    assert covered[-1] >= length
    assert all(each < length for each in covered[:-1])


def test_weights_fill_what_full_attention_has():
    assert 0.99 <= share_of_full_attention("multiscale_conv") <= 1.01
    dims = LayerDims(dim=64, num_heads=4, max_length=512, qkv_bias=False)
    mixer = get_variant("multiscale_conv").build(get_variant("multiscale_conv").config(), dims)
    assert 0.98 <= sum(each.numel() for each in mixer.parameters()) / (4 * 64 * 64) <= 1.01
    assert _largest_size(64, 64) == 8  # not 64: one piece alone would be no multi-scale kernel
    assert _largest_size(3, 100) == 2  # seven scales of two weights are more, and the least there can be


@pytest.mark.parametrize("options", [{"kind": "dilated"}, {"kernel_size": 3, "decay": 1.0}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("multiscale_conv", options)


@pytest.mark.parametrize(
    "options", [{"kernel_size": -1}, {"decay": 0.0}, {"decay": 1.5}, {"kernel_size": 1, "kind": "dilated"}], ids=str
)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("multiscale_conv").config.from_dict(options)
