"""Linear attention against its formula on the whole matrix of weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import SequenceMixer
from tests.attention_zoo.variants.helpers import assert_same, inputs, make, normalised

LENGTH = 150


def naive_linear(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = mixer.projections.split(x)
    q, k = (torch.where(t > 0, t + 1, t.exp()) for t in (q, k))
    return normalised(mixer, q @ k.transpose(-2, -1), v, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rotary": True},
        {"causal": True},
    ],
    ids=str,
)
def test_equals_the_formula_in_outputs_and_gradients(options, masked):
    x, mask = inputs(LENGTH)
    assert_same(make("linear", length=LENGTH + 7, **options), naive_linear, x, mask if masked else None)
