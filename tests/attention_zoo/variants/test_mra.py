"""MRA-2 against the approximated matrix of scores, written out block by block, and the choice of its exact blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from attention_zoo import get_variant
from attention_zoo.variants.mra import Mra
from tests.attention_zoo.variants.helpers import (
    assert_keeps_the_contract,
    assert_same,
    full_like,
    inputs_with_tokens,
    make,
    perturb,
    softmax,
)

OPTIONS = (
    {"block_size": 4, "blocks_per_row": 2},
    {"block_size": 4, "blocks_per_row": 2, "coarse": False},
    {"block_size": 3, "blocks_per_row": 1},
    {"block_size": 4, "blocks_per_row": 3, "first_blocks": 1},
    {"block_size": 4, "blocks_per_row": 4, "diagonal_blocks": 3, "coarse": False},
    {"block_size": 4, "blocks_per_row": 3, "first_blocks": 1, "diagonal_blocks": 1},
    {"block_size": 4, "blocks_per_row": 2, "rotary": True},
)


def tokens_of(block: int, mixer: Mra, real: Tensor) -> list[int]:
    """List the real tokens of a block of one sequence."""
    size = mixer.config.block_size
    return [i for i in range(block * size, min((block + 1) * size, len(real))) if real[i]]


def chosen(mixer: Mra, coarse: dict[tuple[int, int], Tensor], held: list[int]) -> set[tuple[int, int]]:
    """Pick the exact pairs of blocks of one head: the blocks that always are, then the best ones."""
    config = mixer.config

    def rank(pair: tuple[int, int]) -> float:
        x, y = pair
        always = min(pair) < config.first_blocks or abs(x - y) < (config.diagonal_blocks + 1) // 2
        best = max(coarse[x, other].item() for other in held)
        return math.inf if always else coarse[pair].item() - best

    return set(sorted(coarse, key=rank, reverse=True)[: config.blocks_per_row * len(held)])


def matrix(mixer: Mra, x: Tensor, mask: Tensor | None) -> Tensor:
    """Attend through the matrix of scores of each sequence and head, entry by entry of its blocks."""
    q, k, v = mixer.projections.split(x)
    q = q / math.sqrt(q.shape[3])
    heads = torch.zeros_like(v)
    for b in range(x.shape[0]):
        real = torch.ones(x.shape[1], dtype=torch.bool) if mask is None else mask[b]
        blocks = range(-(-x.shape[1] // mixer.config.block_size))
        members = {block: tokens_of(block, mixer, real) for block in blocks}
        held = [block for block in blocks if members[block]]
        everyone = [i for block in held for i in members[block]]
        for h in range(q.shape[1]):
            mean_q = {block: q[b, h, members[block]].mean(0) for block in held}
            mean_k = {block: k[b, h, members[block]].mean(0) for block in held}
            coarse = {(x, y): mean_q[x] @ mean_k[y] for x in held for y in held}
            exact = chosen(mixer, coarse, held)
            rows = []
            for x_block in held:
                for i in members[x_block]:
                    row = []
                    for y_block in held:
                        for j in members[y_block]:
                            if (x_block, y_block) in exact:
                                row.append(q[b, h, i] @ k[b, h, j])
                            elif mixer.config.coarse:
                                row.append(coarse[x_block, y_block])
                            else:
                                row.append(torch.tensor(-math.inf, dtype=x.dtype))
                    rows.append(torch.stack(row))
            heads = heads.index_put(
                (torch.tensor(b), torch.tensor(h), torch.tensor(everyone)),
                softmax(torch.stack(rows)) @ v[b, h, everyone],
            )
    return mixer.projections.merge(heads, mask)


@pytest.mark.parametrize(
    "options",
    [*OPTIONS[1:5], *(pytest.param(o, marks=pytest.mark.nightly) for o in (OPTIONS[0], *OPTIONS[5:]))],
    ids=str,
)
def test_equals_the_matrix_written_out_in_outputs_and_gradients(options):
    for length in (1, 6, 23):
        mixer = make("mra", length=length, dim=12, **options)
        perturb(mixer)
        x, mask = inputs_with_tokens(length)
        for used in (None, mask):
            assert_same(mixer, matrix, x, used, tolerance=1e-9)


def test_another_choice_of_exact_blocks_is_told_apart(monkeypatch):
    """The broken twin: one that leaves out the maximum of each row."""
    mixer = make("mra", length=37, dim=12, block_size=4, blocks_per_row=2)
    x, mask = inputs_with_tokens(37)
    assert_same(mixer, matrix, x, mask, tolerance=1e-9)
    monkeypatch.setattr(torch.Tensor, "amax", lambda self, *_, **__: torch.zeros(()).to(self))
    with pytest.raises(AssertionError):
        assert_same(mixer, matrix, x, mask, tolerance=1e-9)


def test_coarse_blocks_come_closer_to_full_attention_than_none():
    x, mask = inputs_with_tokens(60)
    apart = {}
    for coarse in (True, False):
        mixer = make("mra", length=60, dim=12, block_size=4, blocks_per_row=4, coarse=coarse)
        apart[coarse] = (mixer(x, mask) - full_like(mixer)(x, mask)).norm()
    assert 0 < apart[True] < 0.7 * apart[False]


def test_every_query_meets_its_best_block_however_few_are_exact():
    mixer = make("mra", length=64, dim=12, block_size=4, blocks_per_row=1)
    scores = torch.randn(5, 16, 16, generator=torch.Generator().manual_seed(0))
    pair, exact = mixer.choose(scores, torch.ones(5, 16, dtype=torch.bool))
    assert exact.all()
    best = torch.arange(16) * 16 + scores.argmax(dim=2)
    assert torch.equal(pair.sort(dim=1).values, best)


@pytest.mark.parametrize("options", [{"block_size": 8, "blocks_per_row": 2}, {"block_size": 4, "coarse": False}])
@pytest.mark.nightly
def test_small_blocks_keep_the_contract_but_for_the_memory(options):
    """With blocks this small, the coarse scores are the largest tensor."""
    assert_keeps_the_contract("mra", options, without={"memory"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size"),
        ({"diagonal_blocks": 2}, "odd"),
        ({"blocks_per_row": 2, "first_blocks": 1, "diagonal_blocks": 1}, "at most blocks_per_row"),
    ],
    ids=str,
)
def test_wrong_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        get_variant("mra").config.from_dict(options)
