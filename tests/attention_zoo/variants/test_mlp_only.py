"""The control without mixing against its formula."""

from __future__ import annotations

import pytest
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.masking import zero_masked
from attention_zoo.variants.mlp_only import MlpOnly
from tests.attention_zoo.variants.helpers import BOTH, LENGTH, assert_equals_definition, share_of_full_attention


def naive_mlp(mixer: MlpOnly, x: Tensor, mask: Tensor) -> Tensor:
    return zero_masked(mixer.out(F.gelu(mixer.expand(x))), mask)


@BOTH
@pytest.mark.parametrize("options", [{}], ids=str)
def test_equals_its_definition_in_outputs_and_gradients(options, causal):
    assert_equals_definition("mlp_only", naive_mlp, length=LENGTH, causal=causal, **options)


def test_weights_beside_those_of_full_attention():
    assert 1.0 - 0.1 <= share_of_full_attention("mlp_only") <= 1.0
