"""Long convolutions and their kernels against sums written out."""

import pytest
import torch

from attention_zoo.kernels.long_convolution import exponential_kernel, long_convolution


@pytest.mark.parametrize("length", [1, 2, 17, 100])
def test_exponential_kernel_is_a_sum_of_powers(length):
    torch.manual_seed(0)
    weight = torch.randn(3, 5, dtype=torch.complex128)
    rate = torch.complex(-torch.rand(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64))
    place = torch.arange(length)
    expected = (weight[..., None] * rate.exp()[..., None] ** place).sum(1)
    torch.testing.assert_close(exponential_kernel(weight, rate, length), expected.real)
    torch.testing.assert_close(
        exponential_kernel(weight.real, rate.real, length),
        (weight.real[..., None] * rate.real.exp()[..., None] ** place).sum(1),
    )


@pytest.mark.parametrize("length", [1, 2, 31, 64])
def test_long_convolution_looks_both_ways(length):
    torch.manual_seed(0)
    x = torch.randn(2, length, 3, dtype=torch.float64)
    past, future = torch.randn(2, 3, length, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for i in range(length):
        for j in range(length):
            tap = past[:, i - j] if j <= i else future[:, j - i - 1]
            expected[:, i] += tap * x[:, j]
    torch.testing.assert_close(long_convolution(x, past, future), expected)
    torch.testing.assert_close(long_convolution(x, past)[:, 0], past[:, 0] * x[:, 0])
