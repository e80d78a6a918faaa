"""cosFormer against its formula on the whole matrix of weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attention_zoo import SequenceMixer
from tests.attention_zoo.variants.helpers import assert_same, inputs, make, normalised

LENGTH = 150


def naive_cosformer(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = mixer.projections.split(x)
    place = torch.arange(x.shape[1], dtype=torch.float64)
    fade = (math.pi / 2 * (place[:, None] - place) / mixer.dims.max_length).cos()
    # The fast form keeps its angles in single precision.
    table = mixer.angles[:, : x.shape[1]]
    torch.testing.assert_close(table.T @ table, fade, atol=1e-6, rtol=0)
    return normalised(mixer, q.relu() @ k.relu().transpose(-2, -1) * (table.T @ table), v, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
    ],
    ids=str,
)
def test_equals_the_formula_in_outputs_and_gradients(options, masked):
    x, mask = inputs(LENGTH)
    assert_same(make("cosformer", length=LENGTH + 7, **options), naive_cosformer, x, mask if masked else None)
