# SPDX-License-Identifier: Apache-2.0
"""Score a model on a whole split: the answers of a task, or hidden places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lra.data.ahead import CPU, Ahead
from lra.data.batching import Batch, evaluation_batches
from lra.data.split import Split
from lra.metrics import Score
from lra.models.denoiser import Denoised, hidden_places
from lra.models.precision import autocast
from lra.seeding import numpy_generator, seed_all

from .distributed import SINGLE, RankInfo, all_reduce


class DivergedError(Exception):
    """The loss or an output is not finite, so the run has no score."""


class Answers(NamedTuple):
    """What a model made of a batch."""

    loss_sum: Tensor
    """()."""
    right: Tensor
    """(batch,), right answers of each example."""
    answers: Tensor
    """(), answers of the batch."""
    finite: Tensor
    """(), bool, whether no output is NaN or infinite."""


Answer = Callable[[nn.Module, Batch, np.ndarray], Answers]
"""Answers a batch: takes the model, the batch, and the positions of its examples in the split."""


def classify(model: nn.Module, batch: Batch, indices: np.ndarray) -> Answers:  # noqa: ARG001 - one of `Answer`
    """Give one answer for each example, the most likely class."""
    logits = model(batch.tokens, batch.mask).float()
    right = logits.argmax(dim=1) == batch.labels
    loss_sum = F.cross_entropy(logits, batch.labels, reduction="sum")
    return Answers(loss_sum, right, torch.full_like(batch.labels[0], len(batch.labels)), logits.isfinite().all())


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoise:
    """Predicts the hidden places of each example of a split, which are the same each time; labels are not read."""

    split: Split
    seed: int
    rate: float
    span: int

    def __call__(self, model: nn.Module, batch: Batch, indices: np.ndarray) -> Answers:
        """Predict with a `Denoiser`."""
        *documents, length = batch.tokens.shape  # (batch, length), or (batch, 2, length)
        uniform = np.ones((len(indices), self.split.documents, length + self.span - 1))  # 1 hides nothing
        for row, index in enumerate(indices.tolist()):
            for document, end in enumerate(self.split.document_lengths[index]):
                drawn = numpy_generator(self.seed, "hidden", index, document).random(end + self.span - 1)
                uniform[row, document, : len(drawn)] = drawn
        hidden = hidden_places(torch.from_numpy(uniform), self.rate, self.span).reshape(*documents, length)
        found: Denoised = model(batch.tokens, batch.mask, hidden.to(batch.tokens.device))
        return Answers(found.losses.sum(), found.right, found.places.sum(), found.losses.isfinite().all())


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
    answer: Answer = classify,
) -> tuple[Score, np.ndarray]:
    """Answer every example of a split, once each.

    Args:
        model: What `answer` takes; for `classify`, it takes (tokens, mask) and gives logits. Left in eval mode.
        split: The examples.
        device: Where the model is.
        precision: `float32` or `bfloat16`.
        padded_length: Fixed length to pad to; None pads to the longest example of each batch.
        limit: Longest sequence that the model accepts.
        max_tokens: Padded tokens per batch.
        progress: Called with the number of examples that all processes have scored since the last call.
        ranks: This process among those that share the work. All of them get the score of the whole split.
        answer: Answers a batch.

    Returns:
        The score, and one bool per example, in the order of the split: whether an answer was right.

    Raises:
        DivergedError: An output is not finite. The argmax of NaNs is class 0, which would count as an answer.
    """
    model.eval()
    seed_all(0, "evaluation")  # for a model that draws then, too: answers do not depend on what came before
    correct = np.zeros(len(split), dtype=np.int64)
    order, found = [], list[Answers]()
    left = len(split)
    made = evaluation_batches(
        split,
        max_tokens=max_tokens,
        padded_length=padded_length,
        limit=limit,
        device=CPU,
        share=(ranks.rank, ranks.size),
    )
    with Ahead((indices, batch.staged(device)) for indices, batch in made) as batches:
        for indices, batch in batches:
            with autocast(device, precision):
                found.append(answer(model, batch.to(device), indices))
            order.append(indices)
            done = min(left, ranks.size * len(indices))
            left -= done
            progress(done)
    loss_sum, seen, count, broken = 0.0, 0, 0, False
    if order:  # with many processes, one may get no batch
        correct[np.concatenate(order)] = torch.cat([each.right for each in found]).cpu().numpy()
        loss_sum = float(torch.stack([each.loss_sum.double() for each in found]).sum())
        seen, count = sum(map(len, order)), int(torch.stack([each.answers for each in found]).sum())
        broken = not bool(torch.stack([each.finite for each in found]).all())
    sums = torch.tensor((loss_sum, seen, count, broken), dtype=torch.float64)
    loss_sum, all_seen, answers, any_broken = all_reduce(sums, ranks).tolist()
    if any_broken:
        raise DivergedError("the model's outputs are not finite")
    if all_seen != len(split):
        raise RuntimeError(f"{all_seen:.0f} of {len(split)} examples were evaluated")
    # Each process has the counts of its own examples; the array shares its memory with the tensor.
    all_reduce(torch.from_numpy(correct), ranks)
    total = max(1, int(answers))
    return Score(correct=int(correct.sum()), total=total, loss=loss_sum / total), correct > 0
