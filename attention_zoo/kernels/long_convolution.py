# SPDX-License-Identifier: Apache-2.0
"""Convolutions as long as the sequence, with kernels that are sums of exponentials: state-space models and averages.

A kernel K_l = Σ_n w_n exp(r_n l) of length L with N exponentials would fill (channels, N, L) before the sum. With
m = ceil(sqrt(L)) and l = a m + b, exp(r l) = exp(r m a) exp(r b): the kernel is a product of two matrices with about
sqrt(L) columns each, and only the kernel itself is as long as the sequence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def exponential_kernel(weight: Tensor, rate: Tensor, length: int) -> Tensor:
    """Compute K_l = Re sum_n weight_n exp(rate_n l) for l = 0 .. length - 1.

    Args:
        weight: (channels, states), real or complex.
        rate: (channels, states) of the same dtype, with a negative real part.
        length: Number of values.

    Returns:
        (channels, length), real.
    """
    inner = math.isqrt(length - 1) + 1  # m = ceil(sqrt(length))
    place = torch.arange(inner, dtype=rate.real.dtype if rate.is_complex() else rate.dtype, device=rate.device)
    # exp(r b) for b = 0 .. m - 1, (channels, states, m), and w exp(r m a), (channels, states, ceil(length / m))
    fine = (rate[..., None] * place).exp()
    coarse = weight[..., None] * (rate[..., None] * (inner * place[: -(-length // inner)])).exp()
    if rate.is_complex():
        # Re(c f) = Re c Re f - Im c Im f: one real product over twice the states is cheaper than a complex one.
        fine, coarse = torch.cat((fine.real, fine.imag), dim=1), torch.cat((coarse.real, -coarse.imag), dim=1)
    return (coarse.transpose(1, 2) @ fine).flatten(1)[:, :length]  # (channels, a, b) read in the order a m + b


def long_convolution(x: Tensor, past: Tensor, future: Tensor | None = None) -> Tensor:
    """Compute y_i = sum over j <= i of past_{i-j} x_j, plus sum over j > i of future_{j-i-1} x_j, by FFT.

    Args:
        x: (batch, length, channels), float32 or float64.
        past: (channels, length).
        future: (channels, length); None leaves out the second sum.

    Returns:
        (batch, length, channels).
    """
    length = x.shape[1]
    # The product of two transforms is a circular convolution. With 2 * length places or more it does not wrap around.
    size = _fast_size(2 * length)
    kernel = past
    if future is not None:
        # On the circle the lag -l is the place size - l, so the future stands at the end in reverse order.
        between = past.new_zeros(past.shape[0], size - 2 * length)
        kernel = torch.cat((past, between, future.flip(1)), dim=1)
    # (batch, channels, size / 2 + 1) times (channels, size / 2 + 1)
    spectrum = torch.fft.rfft(x.transpose(1, 2), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :length].transpose(1, 2)


def _fast_size(least: int) -> int:
    """Round up by at most an eighth to a size without large prime factors."""
    # A number from 8 to 16, times a power of two.
    step = 1 << max(0, least.bit_length() - 4)
    return -(-least // step) * step
