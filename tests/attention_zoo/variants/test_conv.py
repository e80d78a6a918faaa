"""The convolution against a loop over its taps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo import get_variant
from attention_zoo.masking import zero_masked
from attention_zoo.variants.conv import Conv
from tests.attention_zoo.variants.helpers import (
    BOTH,
    LENGTH,
    assert_equals_definition,
    assert_keeps_the_contract,
    inputs,
    make,
    share_of_full_attention,
)


def naive_conv(mixer: Conv, x: Tensor, mask: Tensor) -> Tensor:
    signal = zero_masked(mixer.expand(x), mask)
    size = mixer.config.kernel_size
    centre = size - 1 if mixer.dims.causal else size // 2
    rows = []
    for place in range(LENGTH):
        met = [(tap, place + tap - centre) for tap in range(size) if 0 <= place + tap - centre < LENGTH]
        rows.append(sum(mixer.kernel.weight[:, 0, tap] * signal[:, other] for tap, other in met) + mixer.kernel.bias)
    return zero_masked(mixer.out(F.gelu(torch.stack(rows, dim=1))), mask)


@BOTH
@pytest.mark.parametrize("options", [{}, {"kernel_size": 61}], ids=str)
def test_equals_its_definition_in_outputs_and_gradients(options, causal):
    assert_equals_definition("conv", naive_conv, length=LENGTH, causal=causal, **options)


@pytest.mark.parametrize("options", [{"kernel_size": 61}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("conv", options)


def test_a_convolution_sees_its_kernel_and_nothing_else():
    for kernel_size in (5, 61):
        mixer = make("conv", length=LENGTH, dim=12, kernel_size=kernel_size)
        x, _ = inputs(LENGTH, dim=12)
        x.requires_grad_()
        mixer(x)[:, LENGTH // 2].sum().backward()
        touched = x.grad[0].any(dim=-1).nonzero().flatten().tolist()
        reach = min(kernel_size // 2, LENGTH // 2)
        assert touched == list(range(LENGTH // 2 - reach, LENGTH // 2 + reach + 1))


def test_weights_beside_those_of_full_attention():
    assert 1.02 - 0.1 <= share_of_full_attention("conv") <= 1.02


@pytest.mark.parametrize("options", [{"kernel_size": 4}], ids=str)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("conv").config.from_dict(options)
