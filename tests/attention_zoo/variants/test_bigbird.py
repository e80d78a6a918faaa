"""BigBird against dense attention under the same pattern, and the draw of its random blocks."""

import pytest
import torch

from tests.attention_zoo.variants.helpers import assert_same, dense, inputs_with_tokens, make, pairs


@pytest.mark.parametrize(
    ("length", "block_size", "num_random"), [(1, 4, 3), (9, 4, 1), (37, 4, 2), (37, 3, 3), (60, 4, 0)]
)
def test_bigbird_attends_to_window_global_and_random_blocks(length, block_size, num_random):
    mixer = make("bigbird", length=length, dim=12, block_size=block_size, num_random=num_random)
    x, mask = inputs_with_tokens(length)
    mask[0, length // 2 :] = False
    mask[0, 0] = True
    for used in (None, mask):
        allowed = torch.stack(
            [bigbird_pattern(mixer, length, row) for row in (mask if used is not None else [None] * 2)]
        )
        assert_same(
            mixer,
            lambda mixer, x, mask, allowed=allowed: dense(mixer, x, mask, allowed),
            x,
            used,
            tolerance=1e-9,
        )


def bigbird_pattern(mixer, length, row):
    """Write out the pattern of one sequence, taking the random blocks from the mixer after checking each."""
    size, num_random = mixer.config.block_size, mixer.config.num_random
    blocks = -(-length // size)
    last = blocks - 1 if row is None else int(row.nonzero().max()) // size
    last = max(last, 1)
    index, exists = mixer._met_blocks(blocks, torch.tensor([[last]]))
    met = {}
    for block in range(blocks):
        picks = [int(i) for i, ok in zip(index[0, block, 3:], exists[0, block, 3:], strict=True) if ok]
        candidates = set(range(1, last)) - {block - 1, block, block + 1}
        assert len(set(picks)) == len(picks) == min(num_random, len(candidates))
        assert set(picks) <= candidates
        met[block] = {block - 1, block, block + 1, 0, last, *picks}

    def sees(i, j):
        ends = (0, last)
        return i // size in ends or j // size in met[i // size]

    return pairs(length, sees)


def test_bigbird_draws_its_random_blocks_evenly():
    mixer = make("bigbird", length=400, dim=12, block_size=4, num_random=3)
    index, exists = mixer._met_blocks(100, torch.tensor([[99]]))
    assert exists[0, :, 3:].all()
    counts = torch.bincount(index[0, :, 3:].flatten(), minlength=100)
    assert counts[0] == counts[99] == 0
    assert counts.max() <= 12  # 300 draws over 98 blocks
    other = make("bigbird", length=400, dim=12, block_size=4, num_random=3, seed=1)
    assert not torch.equal(mixer.draws, other.draws)
