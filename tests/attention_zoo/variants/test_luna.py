"""Luna against its formula on whole matrices, and with one vector."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import SequenceMixer
from attention_zoo.functional import attention
from tests.attention_zoo.variants.helpers import assert_keeps_the_contract, assert_same, inputs, make, softmax

LENGTH = 90


def naive_luna(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = mixer.projections.split(x)
    scale = q.shape[-1] ** -0.5
    out = []
    for row in range(len(x)):
        real = slice(None) if mask is None else mask[row]
        keys, values = k[row][:, real], v[row][:, real]
        if keys.shape[1] == 0:
            out.append(torch.zeros_like(x[row]))
            continue
        packed = softmax(mixer.memory @ keys.transpose(-2, -1) * scale) @ values
        packed = packed.transpose(0, 1).flatten(1)
        keys, values = (
            linear(packed).unflatten(1, (2, -1)).transpose(0, 1) for linear in (mixer.unpack_key, mixer.unpack_value)
        )
        heads = softmax(q[row] @ keys.transpose(-2, -1) * scale) @ values
        out.append(mixer.projections.merge(heads[None], None if mask is None else mask[row : row + 1])[0])
    return torch.stack(out)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"num_memory": 16},
        {"num_memory": 3, "rotary": True},
    ],
    ids=str,
)
def test_equals_the_formula_in_outputs_and_gradients(options, masked):
    x, mask = inputs(LENGTH)
    x, mask = x[:, :-4], mask[:, :-4]  # shorter than max_length
    assert_same(make("luna", length=LENGTH, **options), naive_luna, x, mask if masked else None)


@pytest.mark.parametrize("options", [{"num_memory": 4}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("luna", options)


def test_luna_with_one_vector_gives_every_token_the_same():
    """One packed vector has all the weight of the second step, so what comes out does not depend on the query."""
    mixer = make("luna", length=LENGTH, num_memory=1)
    x, _ = inputs(LENGTH)
    out = mixer(x)
    torch.testing.assert_close(out, out[:, :1].expand_as(out))
    _, k, v = mixer.projections.split(x)
    packed = attention(mixer.memory.expand(3, -1, -1, -1), k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out[:, 0], mixer.projections.out(mixer.unpack_value(packed))[:, 0])
