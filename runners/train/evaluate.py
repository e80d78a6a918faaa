"""Score a model on a whole split."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from lra.data.batching import evaluation_batches
from lra.data.dataset import Split
from lra.metrics import Score

from .distributed import ALONE, Team


class DivergedError(Exception):
    """The run has left the finite numbers; it has no score."""


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
    team: Team = ALONE,
) -> tuple[Score, np.ndarray]:
    """Classify every example of a split, once each.

    Args:
        model: Takes (tokens, mask), gives logits. Left in eval mode.
        split: The examples.
        device: Where the model is.
        precision: `float32` or `bfloat16`.
        padded_length: Fixed length to pad to; None pads to the longest of each batch.
        limit: Longest sequence the model takes.
        max_tokens: Padded tokens per batch.
        progress: Called with the number of examples of each batch, and of those that the others do meanwhile.
        team: The processes that share the work; all get the whole score.

    Returns:
        The score, and one bool per example, in the order of the split: whether the answer was right.

    Raises:
        DivergedError: A logit is not finite. (The largest of NaNs would be class 0, and score.)
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
        share=(team.rank, team.size),
    ):
        with autocast(device, precision):
            logits = model(batch.tokens, batch.mask)
        logits = logits.float()
        finite.append(logits.isfinite().all())
        losses.append(F.cross_entropy(logits, batch.labels, reduction="sum").double())
        right.append(logits.argmax(dim=1) == batch.labels)
        order.append(indices)
        done = min(ahead, team.size * len(indices))
        ahead -= done
        progress(done)
    loss_sum, seen, broken = 0.0, 0, False
    if order:  # a process of a large team may get nothing
        correct[np.concatenate(order)] = torch.cat(right).cpu().numpy()
        loss_sum, seen = float(torch.stack(losses).sum()), sum(map(len, order))
        broken = not bool(torch.stack(finite).all())
    loss_sum, all_seen, any_broken = team.total((loss_sum, seen, broken))
    if any_broken:
        raise DivergedError("the model's outputs are not finite")
    if all_seen != len(split):
        raise RuntimeError(f"{all_seen:.0f} of {len(split)} examples were evaluated")
    correct = team.union(correct)
    return Score(correct=int(correct.sum()), total=len(split), loss=loss_sum / len(split)), correct
