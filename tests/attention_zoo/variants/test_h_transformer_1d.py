"""H-Transformer-1D against its definition: every pair at the finest level at which its blocks touch."""

import pytest
import torch

from tests.attention_zoo.variants.helpers import assert_same, inputs_with_tokens, make


@pytest.mark.parametrize("length", [1, 5, 16, 37, 75])
@pytest.mark.parametrize("block_size", [2, 4, 20])
def test_h_transformer_attends_the_more_coarsely_the_farther(length, block_size):
    mixer = make("h_transformer_1d", length=length, dim=12, block_size=block_size)
    x, mask = inputs_with_tokens(length)
    mask[0, : length // 2] = False
    for used in (None, mask):
        assert_same(mixer, hierarchical_reference, x, used, tolerance=1e-9)


def hierarchical_reference(mixer, x, mask):
    """Every pair at the finest level at which their blocks are the same or touch; scores of averages over cells."""
    size, length = mixer.config.block_size, x.shape[1]
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    q, k, v = mixer.projections.split(x)

    def level_of(i, j):
        return next(n for n in range(20) if abs(i // (size << n) - j // (size << n)) <= 1)

    levels = torch.tensor([[level_of(i, j) for j in range(length)] for i in range(length)])
    position = torch.arange(length)
    scores = torch.zeros(*q.shape[:3], length, dtype=x.dtype)
    for level in range(int(levels.max()) + 1):
        same_cell = (position[:, None] >> level == position >> level) & real[:, None, :]
        average = same_cell.to(x.dtype) / same_cell.sum(-1, keepdim=True).clamp_min(1)
        means = [average.unsqueeze(1) @ heads for heads in (q, k)]
        scores = torch.where(levels == level, means[0] @ means[1].transpose(2, 3) / q.shape[3] ** 0.5, scores)
    weights = scores.masked_fill(~real[:, None, None], -torch.inf).softmax(-1)
    return mixer.projections.merge(weights @ v, mask)
