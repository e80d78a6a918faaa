"""The Linformer against its formula on whole matrices, and at its limit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attention_zoo import SequenceMixer
from tests.attention_zoo.variants.helpers import (
    assert_keeps_the_contract,
    assert_same,
    full_like,
    inputs,
    make,
    softmax,
)

LENGTH = 90


def naive_linformer(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = mixer.projections.split(x)
    real = torch.ones(x.shape[:2]).double() if mask is None else mask.double()
    e = mixer.key_mixture[:, :, : x.shape[1]]
    f = e if mixer.value_mixture is None else mixer.value_mixture[:, :, : x.shape[1]]
    e, f = (mixture.expand(2, -1, -1) for mixture in (e, f))
    keys = torch.einsum("hrn,bn,bhnd->bhrd", e, real, k)
    values = torch.einsum("hrn,bn,bhnd->bhrd", f, real, v)
    return mixer.projections.merge(softmax(q @ keys.transpose(-2, -1) * q.shape[-1] ** -0.5) @ values, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 5, "share": "none", "rotary": True},
        {"share": "key_value"},
        {"share": "key_value_by_head"},
    ],
    ids=str,
)
def test_equals_the_formula_in_outputs_and_gradients(options, masked):
    x, mask = inputs(LENGTH)
    x, mask = x[:, :-4], mask[:, :-4]  # shorter than max_length
    assert_same(make("linformer", length=LENGTH, **options), naive_linformer, x, mask if masked else None)


@pytest.mark.parametrize("options", [{"share": "none", "rank": 5}, {"share": "key_value"}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("linformer", options)


def test_linformer_with_identity_mixtures_is_full_attention():
    mixer = make("linformer", length=LENGTH, rank=LENGTH)
    for mixture in (mixer.key_mixture, mixer.value_mixture):
        nn.init.eye_(mixture.data[0])
    x, _ = inputs(LENGTH)
    torch.testing.assert_close(mixer(x), full_like(mixer)(x))


@pytest.mark.parametrize(
    ("share", "matrices", "heads"), [("none", 2, 2), ("heads", 2, 1), ("key_value", 1, 1), ("key_value_by_head", 1, 2)]
)
def test_who_shares_a_mixture(share, matrices, heads):
    mixer = make("linformer", length=LENGTH, rank=5, share=share)
    mixtures = {name: p.shape for name, p in mixer.named_parameters() if name.endswith("mixture")}
    assert list(mixtures.values()) == [(heads, 5, LENGTH)] * matrices


def test_linformers_share_no_mixtures():
    first, second = make("linformer", length=LENGTH), make("linformer", length=LENGTH)
    assert first.key_mixture is not second.key_mixture
    assert first.key_mixture.data_ptr() != second.key_mixture.data_ptr()
