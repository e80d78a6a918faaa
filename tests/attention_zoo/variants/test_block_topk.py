"""Top-k block attention against dense attention under the pattern that the queries choose, one after the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import get_variant
from attention_zoo.functional import attention
from attention_zoo.kernels import block_routing
from attention_zoo.kernels.block_routing import make_tiles
from attention_zoo.variants import block_topk
from attention_zoo.variants.block_topk import BlockTopk
from tests.attention_zoo.variants.helpers import (
    BOTH,
    assert_keeps_the_contract,
    assert_same,
    inputs_with_tokens,
    make,
    perturb,
)

OPTIONS = (
    {"block_size": 4, "num_blocks": 1},
    {"block_size": 4, "num_blocks": 3},
    {"block_size": 3, "num_blocks": 2, "compressed": True},
    {"block_size": 4, "num_blocks": 2, "rotary": True},
    {"block_size": 4, "num_blocks": 99, "compressed": True},
)


def naive(mixer: BlockTopk, x: Tensor, mask: Tensor | None) -> Tensor:
    """Choose blocks for one query of one head after the other, and attend under the pattern that comes of it."""
    size, causal, length = mixer.config.block_size, mixer.dims.causal, x.shape[1]
    q, k, v = mixer.projections.split(x)
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    blocks = [range(start, min(start + size, length)) for start in range(0, length, size)]
    allowed = torch.zeros(*q.shape[:3], length, dtype=torch.bool)
    earlier = torch.zeros(length, len(blocks), dtype=torch.bool)
    means: dict[str, list[Tensor]] = {"k": [], "v": []}
    held = torch.zeros(x.shape[0], len(blocks), dtype=torch.bool)
    for y, block in enumerate(blocks):
        weight = real[:, list(block)].to(x.dtype)
        held[:, y] = weight.any(dim=1)
        weight = weight / weight.sum(dim=1, keepdim=True).clamp_min(1.0)
        for name, heads in (("k", k), ("v", v)):
            means[name].append((weight[:, None, :, None] * heads[:, :, list(block)]).sum(dim=2))
    mean_k, mean_v = torch.stack(means["k"], dim=2), torch.stack(means["v"], dim=2)
    for b in range(x.shape[0]):
        for h in range(q.shape[1]):
            for i in range(length):
                own = i // size
                earlier[i] = torch.arange(len(blocks)) < own
                candidates = [y for y in range(len(blocks)) if held[b, y] and (y < own if causal else y != own)]
                candidates.sort(key=lambda y: (q[b, h, i] @ mean_k[b, h, y]).item(), reverse=True)
                for y in (own, *candidates[: mixer.config.num_blocks - 1]):
                    for j in blocks[y]:
                        allowed[b, h, i, j] = real[b, j] and (not causal or j <= i)
    heads = attention(q, k, v, allowed)
    if mixer.config.compressed:
        seen = held[:, None, None, :] & (earlier if causal else torch.ones_like(earlier))
        gates = mixer.gates(x).sigmoid().transpose(1, 2).unsqueeze(3)  # (batch, 2 * num_heads, length, 1)
        heads = gates[:, :2] * heads + gates[:, 2:] * attention(q, mean_k, mean_v, seen)
    return mixer.projections.merge(heads, mask)


@BOTH
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_dense_attention_under_its_pattern_in_outputs_and_gradients(options, causal, monkeypatch):
    monkeypatch.setattr(block_topk, "_QUERIES", 8)
    for length in (1, 6, 23):
        mixer = make("block_topk", length=length, dim=12, causal=causal, **options)
        perturb(mixer)
        x, mask = inputs_with_tokens(length)
        for used in (None, mask):
            assert_same(mixer, naive, x, used, tolerance=1e-9)


def test_a_choice_by_the_worst_blocks_is_told_apart(monkeypatch):
    """The broken twin."""
    mixer = make("block_topk", length=37, dim=12, block_size=4, num_blocks=2)
    x, mask = inputs_with_tokens(37)
    right = BlockTopk.choose
    assert_same(mixer, naive, x, mask, tolerance=1e-9)
    monkeypatch.setattr(BlockTopk, "choose", lambda self, q, *others: right(self, -q, *others))
    with pytest.raises(AssertionError):
        assert_same(mixer, naive, x, mask, tolerance=1e-9)


@pytest.mark.parametrize("size", [1, 3, 32])
def test_tiles_hold_every_pair_once_and_meet_the_block_that_was_chosen(size):
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(5, (2, 17, 3), generator=generator)
    chosen[1] = 4  # all of them the same: the other blocks take no tile
    tiles = make_tiles(chosen, 5, size)
    for row in range(2):
        places = tiles.place[row].flatten()
        assert len(places.unique()) == 17 * 3
        for i in range(17):
            for s in range(3):
                place = tiles.place[row, i, s]
                assert tiles.query[row, place] == i
                assert tiles.block[row, place // size] == chosen[row, i, s]


def test_tiles_that_forget_the_empty_places_are_told_apart(monkeypatch):
    """The broken twin: pairs lie side by side, so that tiles hold pairs of two blocks."""
    mixer = make("block_topk", length=37, dim=12, block_size=4, num_blocks=3)
    x, mask = inputs_with_tokens(37)

    def broken(chosen, blocks):
        tiles = make_tiles(chosen, blocks, 1)
        spare = -tiles.block.shape[1] % 2
        query = torch.nn.functional.pad(tiles.query, (0, spare))
        return tiles._replace(query=query, block=torch.nn.functional.pad(tiles.block, (0, spare))[:, ::2])

    assert_same(mixer, naive, x, mask, tolerance=1e-9)
    monkeypatch.setattr(block_routing, "make_tiles", broken)
    with pytest.raises(AssertionError):
        assert_same(mixer, naive, x, mask, tolerance=1e-9)


@pytest.mark.parametrize("options", [{"block_size": 4, "num_blocks": 2}, {"compressed": True}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("block_topk", options, without={"exact_limit"} if "compressed" in options else ())


@pytest.mark.parametrize("options", [{"block_size": 0}, {"num_blocks": 0}], ids=str)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant("block_topk").config.from_dict(options)
