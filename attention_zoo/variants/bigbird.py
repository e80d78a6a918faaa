# SPDX-License-Identifier: Apache-2.0
"""BigBird: window, global and random blocks (Zaheer et al. 2020, arXiv:2007.14062).

Each block of tokens attends to itself and to the blocks beside it (window), to the first and the last block (global),
and to some random blocks, drawn without repetition from the others. The first and the last block attend to everything.

No key counts twice. This is the paper's BigBird-ITC in its block form.

Departures from the paper:

- The random blocks are the same for all heads of a layer.
- The last block is the one with the last real token of a sequence, not the last block of the padded length, and the
  random blocks lie before it. So padding changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, Traits, option
from attention_zoo.kernels.block_sparse import Pattern, block_sparse_attention
from attention_zoo.kernels.blocks import neighbours, num_blocks, pad_mask, pad_to_blocks, seen_keys
from attention_zoo.kernels.softmax import attend
from attention_zoo.position_bias import PositionBiasConfig, make_bias
from attention_zoo.projections import HeadProjections
from attention_zoo.registry import register_variant


@dataclass(frozen=True, kw_only=True, slots=True)
class BigBirdConfig(PositionBiasConfig):
    """Options of BigBird."""

    block_size: int = option(64, "tokens in a block", least=1)
    num_random: int = option(3, "number of random blocks that each block attends to", least=0)


@register_variant(
    "bigbird",
    title="BigBird",
    family="sparse",
    traits=Traits(
        memory="linear",
        complexity="O(n b (r + 5))",
        exact_limit=lambda length: {"block_size": length},
    ),
    paper="Zaheer et al. 2020, arXiv:2007.14062",
)
class BigBird(SequenceMixer):
    """Blocks attend to their neighbours, to random blocks, and to a first and a last block that attend to all."""

    config: BigBirdConfig
    draws: Tensor
    """(blocks, num_random), int64: random numbers, from which random blocks are made once the length is known."""

    def __init__(self, config: BigBirdConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.projections = HeadProjections(dims, rotary=config.rotary)
        self.bias = make_bias(config, dims)
        shape = num_blocks(dims.max_length, config.block_size), config.num_random
        self.register_buffer("draws", torch.randint(2**62, shape))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend; see `SequenceMixer.forward`."""
        length, size = x.shape[1], self.config.block_size
        real = pad_mask(mask, length, size, x.device)  # (batch or 1, blocks * size)
        q, k, v = (pad_to_blocks(heads, size) for heads in self.projections.split(x))
        dropout = self.dims.dropout if self.training else 0.0
        blocks = q.shape[2] // size
        # The first and the last block are met by all: their tokens are shared keys, (batch or 1, 2 * size).
        ends = _end_blocks(real, blocks, size, x.device)
        shared = (ends.unsqueeze(2) * size + torch.arange(size, device=x.device)).flatten(1)
        index, exists = self._met_blocks(blocks, ends[:, -1:])
        pattern = Pattern(
            index=index,
            key_size=size,
            seen=seen_keys(index, exists, real, size),
            shared=shared,
            shared_seen=None if real is None else real.gather(1, shared),
            by_distance=None if self.bias is None else self.bias(length, length),
        )
        heads, _ = block_sparse_attention(q, k, v, pattern, dropout=dropout)
        # As queries, the tokens of the first and the last block attend to everything, which replaces what the pattern
        # gave them: (batch, num_heads, 2 * size, head_dim).
        position = shared[:, None, :, None].expand(*q.shape[:2], -1, q.shape[3])
        if self.bias is None:
            whole = None if real is None else real.expand(x.shape[0], -1)
            at_ends = attend(q.gather(2, position), k, v, whole, dropout=dropout, training=self.training)
        else:
            at_ends, _ = block_sparse_attention(
                q.gather(2, position), k, v, self._everything(pattern, ends, real), dropout=dropout
            )
        return self.projections.merge(heads.scatter(2, position, at_ends)[:, :, :length], mask)

    def state_size(self, length: int) -> int:
        """Keys and values of all tokens: a later block may meet any of them."""
        return self.projections.cache_size(length)

    def _everything(self, pattern: Pattern, ends: Tensor, real: Tensor | None) -> Pattern:
        """Let the first and the last block, (batch or 1, 2), meet all blocks, with the biases of a pattern."""
        rows, count = ends.shape
        index = torch.arange(pattern.index.shape[1], device=ends.device).expand(rows, count, -1)
        seen = None if real is None else real.unsqueeze(1).expand(-1, count, -1)
        return Pattern(
            index=index, key_size=pattern.key_size, seen=seen, by_distance=pattern.by_distance, query_blocks=ends
        )

    def _met_blocks(self, blocks: int, last: Tensor) -> tuple[Tensor, Tensor]:
        """Number the blocks that each block meets, apart from the first and the last one.

        Args:
            blocks: Number of blocks in the batch.
            last: (batch or 1, 1): the last block that holds a real token.

        Returns:
            Block numbers (batch or 1, blocks, 3 + num_random), int64; and a bool tensor of the same shape, True where
            there is such a block.
        """
        # The window: the block before, itself and the block behind. The ends are met as shared keys.
        window, exists = neighbours(blocks, 1, 1, last.device)
        last = last.unsqueeze(2)
        exists = exists & (window > 0) & (window < last)
        # Candidates for random blocks lie between the first and the last block; the window, blocks `low` to
        # `low + taken - 1`, is not among them. They are counted here and numbered without a gap, from 0.
        block = torch.arange(blocks, device=last.device)[:, None]
        low = (block - 1).clamp_min(1)
        taken = (torch.minimum(block + 1, last - 1) - low + 1).clamp_min(0)
        candidates = last - 1 - taken
        chosen: list[Tensor] = []
        found: list[Tensor] = []
        for step in range(self.config.num_random):
            # Floyd's sampling without repetition (Bentley and Floyd 1987): step s draws from one more candidate than
            # step s - 1, and if the number was drawn before, takes that new candidate instead.
            highest = candidates - self.config.num_random + step
            rank = self.draws[:blocks, step : step + 1] % (highest + 1).clamp_min(1)
            for earlier, valid in zip(chosen, found, strict=True):
                rank = torch.where(valid & (earlier == rank), highest, rank)
            chosen.append(rank)
            found.append(highest >= 0)
        # From the number of a candidate to the number of its block: step over the first block, and over the window.
        picks = [1 + rank + torch.where(1 + rank >= low, taken, 0) for rank in chosen]
        index = torch.cat((window.expand(last.shape[0], -1, -1), *picks), dim=2)
        return index.clamp(0, blocks - 1), torch.cat((exists, *found), dim=2)


def _end_blocks(real: Tensor | None, blocks: int, size: int, device: torch.device) -> Tensor:
    """Number the first block and the last block with a real token.

    The two differ: if only the first block has real tokens, the second one, which is masked, counts as the last.

    Returns:
        (batch or 1, 2); (batch or 1, 1) if there is only one block.
    """
    if blocks == 1:
        return torch.zeros(1 if real is None else real.shape[0], 1, dtype=torch.int64, device=device)
    numbers = torch.arange(blocks, device=device)
    # Blocks that hold a real token; times the number of the block, the maximum is the last one.
    held = torch.ones_like(numbers[None]) if real is None else real.unflatten(1, (blocks, size)).any(dim=2)
    last = (held * numbers).amax(dim=1, keepdim=True).clamp_min(1)
    return torch.cat((torch.zeros_like(last), last), dim=1)
