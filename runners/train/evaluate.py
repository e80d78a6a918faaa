# SPDX-License-Identifier: Apache-2.0
"""Score a model on a whole split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from lra.data.batching import evaluation_batches
from lra.data.dataset import Split
from lra.metrics import Score

from .distributed import SINGLE, RankInfo, all_reduce


class DivergedError(Exception):
    """The loss or an output is not finite, so the run has no score."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of a forward pass: bfloat16 autocast, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    *,
    device: torch.device,
    precision: str,
    padded_length: int | None,
    limit: int,
    max_tokens: int,
    progress: Callable[[int], None] = lambda _: None,
    ranks: RankInfo = SINGLE,
) -> tuple[Score, np.ndarray]:
    """Classify every example of a split, once each.

    Args:
        model: Takes (tokens, mask), gives logits. Left in eval mode.
        split: The examples.
        device: Where the model is.
        precision: `float32` or `bfloat16`.
        padded_length: Fixed length to pad to; None pads to the longest example of each batch.
        limit: Longest sequence that the model accepts.
        max_tokens: Padded tokens per batch.
        progress: Called with the number of examples that all processes have scored since the last call.
        ranks: This process among those that share the work. All of them get the score of the whole split.

    Returns:
        The score, and one bool per example, in the order of the split: whether the answer was right.

    Raises:
        DivergedError: A logit is not finite. The argmax of NaNs is class 0, which would count as an answer.
    """
    model.eval()
    correct = np.zeros(len(split), dtype=bool)
    order, right, losses, finite = [], [], [], []
    ahead = len(split)
    for indices, batch in evaluation_batches(
        split,
        max_tokens=max_tokens,
        padded_length=padded_length,
        limit=limit,
        device=device,
        share=(ranks.rank, ranks.size),
    ):
        with autocast(device, precision):
            logits = model(batch.tokens, batch.mask)
        logits = logits.float()
        finite.append(logits.isfinite().all())
        losses.append(F.cross_entropy(logits, batch.labels, reduction="sum").double())
        right.append(logits.argmax(dim=1) == batch.labels)
        order.append(indices)
        done = min(ahead, ranks.size * len(indices))
        ahead -= done
        progress(done)
    loss_sum, seen, broken = 0.0, 0, False
    if order:  # with many processes, one may get no batch
        correct[np.concatenate(order)] = torch.cat(right).cpu().numpy()
        loss_sum, seen = float(torch.stack(losses).sum()), sum(map(len, order))
        broken = not bool(torch.stack(finite).all())
    sums = torch.tensor((loss_sum, seen, broken), dtype=torch.float64)
    loss_sum, all_seen, any_broken = all_reduce(sums, ranks).tolist()
    if any_broken:
        raise DivergedError("the model's outputs are not finite")
    if all_seen != len(split):
        raise RuntimeError(f"{all_seen:.0f} of {len(split)} examples were evaluated")
    # Each process has set the bits of its own examples; the array shares its memory with the tensor.
    all_reduce(torch.from_numpy(correct.view(np.uint8)), ranks, dist.ReduceOp.MAX)
    return Score(correct=int(correct.sum()), total=len(split), loss=loss_sum / len(split)), correct
