"""Sinkhorn attention against plain Sinkhorn steps, one block at a time."""

import itertools

import pytest
import torch

from attention_zoo.functional import attention
from attention_zoo.variants.sinkhorn import sinkhorn
from tests.attention_zoo.variants.helpers import assert_keeps_the_contract, assert_same, inputs_with_tokens, make


@pytest.mark.parametrize("first", ["columns", "rows"])
@pytest.mark.parametrize(("length", "block_size"), [(1, 4), (5, 5), (16, 4), (37, 8)])
def test_sinkhorn_attends_to_its_block_and_to_the_sorted_one(length, block_size, first):
    options = {"block_size": block_size, "first": first, "num_iterations": 2}
    mixer = make("sinkhorn", length=length, dim=12, **options).eval()
    x, mask = inputs_with_tokens(length)
    mask[0, : length // 2] = False
    for used in (None, mask):
        assert_same(mixer, sinkhorn_reference, x, used, tolerance=1e-9)


def test_the_order_of_the_normalisations_is_told_apart():
    twins = [make("sinkhorn", length=37, dim=12, block_size=8, first=first).eval() for first in ("columns", "rows")]
    x, _ = inputs_with_tokens(37)
    with pytest.raises(AssertionError):
        assert_same(twins[0], lambda _, x, mask: sinkhorn_reference(twins[1], x, mask), x, None, tolerance=1e-9)


@pytest.mark.nightly
def test_rows_first_keeps_the_contract():
    assert_keeps_the_contract("sinkhorn", {"first": "rows"})


def sinkhorn_reference(mixer, x, mask):
    """One sequence, head and block at a time, with plain Sinkhorn steps on the blocks that hold a real token."""
    size, heads = mixer.config.block_size, []
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    q, k, v = mixer.projections.split(x)
    for b, h in itertools.product(range(q.shape[0]), range(q.shape[1])):
        starts = [s for s in range(0, x.shape[1], size) if real[b, s : s + size].any()]
        held = [[i for i in range(s, min(s + size, x.shape[1])) if real[b, i]] for s in starts]
        columns = [s // size for s in starts]
        matrix = torch.stack([k[b, h, own].sum(0) @ mixer.sort[h][:, columns] for own in held])
        matrix = (matrix / mixer.config.temperature).exp()
        for _ in range(mixer.config.num_iterations):
            for axis in (0, 1) if mixer.config.first == "columns" else (1, 0):
                matrix = matrix / matrix.sum(axis, keepdim=True)
        out = torch.zeros_like(q[b, h])
        for place, own in enumerate(held):
            filled = sorted({i % size for tokens in held for i in tokens})
            keys, values = [k[b, h, i] for i in own], [v[b, h, i] for i in own]
            for offset in filled:
                met = [(matrix[place, c], s + offset) for c, s in enumerate(starts) if s + offset in held[c]]
                keys.append(sum(weight * k[b, h, i] for weight, i in met))
                values.append(sum(weight * v[b, h, i] for weight, i in met))
            seen = attention(q[b, h, own][None, None], torch.stack(keys)[None, None], torch.stack(values)[None, None])
            out = out.index_put((torch.tensor(own),), seen[0, 0])
        heads.append(out)
    return mixer.projections.merge(torch.stack(heads).unflatten(0, q.shape[:2]), mask)


def test_sinkhorn_gives_a_permutation_and_noise_in_training_only():
    scores = torch.randn(2, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    soft = sinkhorn(scores, None, 50)
    torch.testing.assert_close(soft.sum(-1), torch.ones(2, 7, dtype=torch.float64))
    torch.testing.assert_close(soft.sum(-2), torch.ones(2, 7, dtype=torch.float64))
    hard = sinkhorn(scores / 0.02, None, 1000).argmax(-1)
    assert torch.equal(hard.sort(dim=-1).values, torch.arange(7).expand(2, -1))
    mixer = make("sinkhorn", length=40, dim=12, block_size=8)
    x, _ = inputs_with_tokens(40)
    assert not torch.equal(mixer(x), mixer(x))
    mixer.eval()
    assert torch.equal(mixer(x), mixer(x))
