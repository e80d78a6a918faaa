"""Convolutions as long as the sequence, with kernels that are sums of exponentials: state-space models and averages.

A kernel of length n over N exponentials would fill (channels, N, n); split as l = a m + b it is a product of two
matrices with about sqrt(n) columns each, and only the kernel itself is as long as the sequence.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def exponential_kernel(weight: Tensor, rate: Tensor, length: int) -> Tensor:
    """Sum exponentials: K_l = Re sum_n weight_n exp(rate_n l), for l = 0 .. length - 1.

    Args:
        weight: (channels, states), real or complex.
        rate: (channels, states) of the same dtype; the real part negative.
        length: How many values.

    Returns:
        (channels, length), real.
    """
    inner = math.isqrt(length - 1) + 1
    place = torch.arange(inner, dtype=rate.real.dtype if rate.is_complex() else rate.dtype, device=rate.device)
    fine = (rate[..., None] * place).exp()
    coarse = weight[..., None] * (rate[..., None] * (inner * place[: -(-length // inner)])).exp()
    if rate.is_complex():
        fine, coarse = torch.cat((fine.real, fine.imag), dim=1), torch.cat((coarse.real, -coarse.imag), dim=1)
    return (coarse.transpose(1, 2) @ fine).flatten(1)[:, :length]


def long_convolution(x: Tensor, past: Tensor, future: Tensor | None = None) -> Tensor:
    """Convolve by FFT: y_i = sum over j <= i of past_{i-j} x_j, plus sum over j > i of future_{j-i-1} x_j.

    Args:
        x: (batch, length, channels), float32 or float64.
        past: (channels, length).
        future: (channels, length); None looks back only.

    Returns:
        (batch, length, channels).
    """
    length = x.shape[1]
    size = _fast_size(2 * length)
    kernel = past
    if future is not None:
        # What is ahead stands at the end, one step back from where the circle closes.
        between = past.new_zeros(past.shape[0], size - 2 * length)
        kernel = torch.cat((past, between, future.flip(1)), dim=1)
    spectrum = torch.fft.rfft(x.transpose(1, 2), n=size) * torch.fft.rfft(kernel, n=size)
    return torch.fft.irfft(spectrum, n=size)[..., :length].transpose(1, 2)


def _fast_size(least: int) -> int:
    """Round up by at most an eighth to a size without large prime factors."""
    step = 1 << max(0, least.bit_length() - 4)
    return -(-least // step) * step
