"""The Synthesizer against its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import SequenceMixer, get_variant
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
    if mixer.config.dot_product:
        q, k = (linear(x).view(batch, length, 2, -1) for linear in (mixer.query, mixer.key))
        scores = scores + torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    weights = scores.exp()
    if mask is not None:
        weights = weights * mask[:, None, None, :]
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)
    v = mixer.value(x).view(batch, length, 2, -1)
    out = mixer.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))
    return out if mask is None else out * mask[..., None]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dot_product", [False, True])
@pytest.mark.parametrize("options", [{}, {"rank": 3}, {"kind": "random"}, {"kind": "dense"}], ids=str)
def test_synthesizer_equals_the_formula_in_outputs_and_gradients(options, dot_product, masked):
    mixer = make("synthesizer", length=LENGTH + 5, dot_product=dot_product, **options)
    perturb(mixer)
    x, mask = inputs(LENGTH)
    assert_same(mixer, naive_synthesizer, x, mask if masked else None)


@pytest.mark.parametrize("kind", ["factorised", "random"])
def test_weights_that_are_not_of_the_tokens_make_a_linear_map(kind):
    mixer = make("synthesizer", length=LENGTH + 5, kind=kind)
    x, mask = inputs(LENGTH)
    y = torch.randn_like(x)
    torch.testing.assert_close(mixer(x, mask) + mixer(y, mask) - mixer(0 * x, mask), mixer(x + y, mask))


def test_a_matrix_of_zeros_beside_dot_products_is_full_attention_and_only_then():
    """The published row is full attention with a learned matrix; a matrix that is not zero is told apart."""
    mixer = make("synthesizer", length=LENGTH, kind="random", dot_product=True)
    full = get_variant("full").build(get_variant("full").config(), mixer.dims).double()
    for name in ("query", "key", "value", "out"):
        getattr(full.projections, name).load_state_dict(getattr(mixer, name).state_dict())
    x, mask = inputs(LENGTH)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(mixer(x, mask), full(x, mask))
    torch.nn.init.zeros_(mixer.scores)
    torch.testing.assert_close(mixer(x, mask), full(x, mask))


@pytest.mark.parametrize("options", [{"kind": "factorised"}, {"kind": "random"}], ids=str)
@pytest.mark.nightly
def test_sums_with_dot_products_keep_the_contract(options):
    without = ("memory",) if options["kind"] == "random" else ()
    assert_keeps_the_contract("synthesizer", options | {"dot_product": True}, without=without)


@pytest.mark.parametrize(("kind", "without"), [("dense", ()), ("random", ("memory",))], ids=["dense", "random"])
@pytest.mark.nightly
def test_other_synthesizers_keep_the_contract(kind, without):
    assert_keeps_the_contract("synthesizer", {"kind": kind}, without=without)
