"""The Synthesizer against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import SequenceMixer
from tests.attention_zoo.variants.helpers import assert_keeps_the_contract, assert_same, inputs, make, perturb

LENGTH = 30


def naive_synthesizer(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    batch, length = x.shape[:2]
    if mixer.config.kind == "random":
        scores = mixer.scores[:, :length, :length].expand(batch, -1, -1, -1)
    elif mixer.config.kind == "factorised":
        scores = (mixer.query_table @ mixer.key_table.transpose(1, 2))[:, :length, :length].expand(batch, -1, -1, -1)
    else:
        hidden = mixer.hidden(x).relu().view(batch, length, 2, -1)
        scores = torch.einsum("bihd,hjd->bhij", hidden, mixer.key_table[:, :length])
        scores = scores + mixer.key_bias[:, :length].transpose(1, 2)
    weights = scores.exp()
    if mask is not None:
        weights = weights * mask[:, None, None, :]
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)
    v = mixer.value(x).view(batch, length, 2, -1)
    out = mixer.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))
    return out if mask is None else out * mask[..., None]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"kind": "random"}, {"kind": "dense"}], ids=str)
def test_synthesizer_equals_the_formula_in_outputs_and_gradients(options, masked):
    mixer = make("synthesizer", length=LENGTH + 5, **options)
    perturb(mixer)
    x, mask = inputs(LENGTH)
    assert_same(mixer, naive_synthesizer, x, mask if masked else None)


@pytest.mark.parametrize("kind", ["factorised", "random"])
def test_weights_that_are_not_of_the_tokens_make_a_linear_map(kind):
    mixer = make("synthesizer", length=LENGTH + 5, kind=kind)
    x, mask = inputs(LENGTH)
    y = torch.randn_like(x)
    torch.testing.assert_close(mixer(x, mask) + mixer(y, mask) - mixer(0 * x, mask), mixer(x + y, mask))


@pytest.mark.parametrize(("kind", "without"), [("dense", ()), ("random", ("memory",))], ids=["dense", "random"])
def test_other_synthesizers_keep_the_contract(kind, without):
    assert_keeps_the_contract("synthesizer", {"kind": kind}, without=without)
