"""FNet against its sum, and the transform of any length that it is made of."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from attention_zoo.variants.fnet import transform_real_tokens
from tests.attention_zoo.variants.helpers import assert_keeps_the_contract, inputs, make

LENGTH = 30


@pytest.mark.nightly
def test_fnet_over_padded_positions_keeps_the_rest_of_the_contract():
    assert_keeps_the_contract("fnet", {"over": "padded"}, without={"padding_length"})


def naive_fourier(tokens: Tensor) -> Tensor:
    """Sum the two-dimensional transform of (length, dim) term by term, and divide by sqrt(length * dim)."""
    matrices = []
    for size in tokens.shape:
        rows = [[cmath.exp(-2j * math.pi * i * j / size) / math.sqrt(size) for j in range(size)] for i in range(size)]
        matrices.append(torch.tensor(rows, dtype=torch.complex128))
    return (matrices[0] @ tokens.to(torch.complex128) @ matrices[1]).real


def test_fnet_equals_the_sum_over_the_real_tokens():
    mixer = make("fnet", length=LENGTH + 5)
    x, mask = inputs(LENGTH)
    expected = torch.zeros_like(x)
    for row in range(2):
        expected[row, mask[row]] = naive_fourier(x[row, mask[row]])
    torch.testing.assert_close(mixer(x, mask), expected)
    torch.testing.assert_close(mixer(x)[2], naive_fourier(x[2]))


def test_fnet_over_padded_positions_takes_them_for_zeros():
    mixer = make("fnet", length=LENGTH + 5, over="padded")
    x, mask = inputs(LENGTH)
    out = mixer(x, mask)
    for row in range(3):
        whole = naive_fourier(x[row] * mask[row, :, None])
        torch.testing.assert_close(out[row], whole * mask[row, :, None])


@pytest.mark.parametrize("length", [1, 2, 3, 31, 64, 257])
def test_transform_of_real_tokens_keeps_the_norm_and_its_gradient_is_the_adjoint(length):
    torch.manual_seed(0)
    x = torch.randn(2, length, 3, dtype=torch.complex128, requires_grad=True)
    y = torch.randn(2, length, 3, dtype=torch.complex128)
    mask = torch.rand(2, length) > 0.4
    mask[:, 0] = True
    out = transform_real_tokens(x, mask)
    real = mask[..., None]
    torch.testing.assert_close((out * real).abs().square().sum((1, 2)), (x * real).abs().square().sum((1, 2)))
    (gradient,) = torch.autograd.grad((out * y.conj()).sum().real, x)
    torch.testing.assert_close((gradient.conj() * x).sum().real, (out * y.conj()).sum().real)
    assert not gradient[~mask].any()


def test_transform_in_single_precision_is_accurate_for_long_sequences():
    """The angle of the last chirp is some thousand turns: it would cost three digits without the reduction."""
    torch.manual_seed(0)
    x = torch.randn(1, 3001, 2, dtype=torch.complex64)
    out = transform_real_tokens(x, torch.ones(1, 3001, dtype=torch.bool))
    exact = torch.fft.fft(x.to(torch.complex128), dim=1, norm="ortho")
    assert (out - exact).abs().max() < 1e-5
