# SPDX-License-Identifier: Apache-2.0
"""Denoising: the model of a run learns its inputs before it learns their labels, or beside them.

The objectives are those of I. Amos, J. Berant and A. Gupta, "Never train from scratch" (arXiv:2310.02980). Places are
hidden at random, anew at each read, and the loss is at hidden places only. A causal model predicts the next token.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lra.config.schema import RunConfig
from lra.models.norms import normalise
from lra.models.padding import hide_padding
from lra.models.transformer import Classifier
from lra.seeding import seed_all
from lra.tasks.base import TaskInfo

CLOSE_LEVELS = 8
"""With the loss `l1`, a value counts as right if it is missed by less than this many of 256 levels."""


class Denoised(NamedTuple):
    """What the denoiser found in a batch, in sums over the predicted places of each example."""

    losses: Tensor
    """(batch,), float32."""
    right: Tensor
    """(batch,), int64: places that were predicted rightly."""
    places: Tensor
    """(batch,), int64: places that had to be predicted."""
    logits: Tensor | None
    """(batch, num_classes), of the input with its hidden places; None in pretraining."""

    def mean_loss(self) -> Tensor:
        """Return the mean loss over all places of the batch; 0 if there are none."""
        return self.losses.sum() / self.places.sum().clamp(min=1)


class Denoiser(nn.Module):
    """A classifier with what denoising adds to it: a learnt vector for hidden places, and a linear map to predictions.

    For ids, the vector takes the place of the embedding of a hidden token, as the row of a mask id would. For values,
    it takes the place of the embedding of (0, 1), where a place is embedded as (value (1 - m), m).

    Args:
        model: The classifier. Its parts are shared, not copied.
        config: The configuration of the run; its section `pretrain` is not None.
        info: The task.
    """

    def __init__(self, model: Classifier, config: RunConfig, info: TaskInfo) -> None:
        super().__init__()
        assert config.pretrain is not None
        self.rate, self.span = config.pretrain.mask_rate, config.pretrain.mask_span
        self.causal, self.with_logits = config.model.causal, False
        self.zero_is_padding = config.data.get("legacy_zero_mask", False)
        self.normalisation = info.normalisation if config.pretrain.loss == "l1" else None
        self.model = model
        seed_all(config.seed, "init", "denoiser")
        self.hidden_vector = nn.Parameter(torch.empty(config.model.dim))
        nn.init.normal_(self.hidden_vector, std=config.model.embedding_std)
        self.decoder = nn.Linear(config.model.dim, info.vocab_size if self.normalisation is None else 1)

    def forward(self, tokens: Tensor, mask: Tensor | None, hidden: Tensor | None = None) -> Denoised:
        """Predict hidden places; or each token from those before it, if the model is causal.

        Args:
            tokens: (batch, length), integers; (batch, 2, length) for pairs, each document of which stands alone.
            mask: Shaped like `tokens`, bool, True = real token; None = all real.
            hidden: Shaped like `tokens`, bool, True = hidden; None draws it from torch's generator.
        """
        shape = tokens.shape
        tokens, mask = tokens.reshape(-1, shape[-1]), None if mask is None else mask.reshape(-1, shape[-1])
        tokens, real = hide_padding(tokens, mask, zero_is_padding=self.zero_is_padding)
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
        if self.causal:
            hidden = None
            # Place t predicts token t + 1, so the last place of a sequence predicts nothing.
            wanted, places = tokens.roll(-1, dims=1), real & F.pad(real[:, 1:], (0, 1), value=False)
        else:
            if hidden is None:
                uniform = torch.rand((len(tokens), shape[-1] + self.span - 1), device=tokens.device)
                hidden = hidden_places(uniform, self.rate, self.span)
            wanted, places = tokens, hidden.reshape(-1, shape[-1]) & real
            hidden = places
        x, inner_mask = self.model.embedding(tokens, mask, hidden, self.hidden_vector)
        for block in self.model.blocks:
            x = block(x, inner_mask)
        logits, head = None, self.model.head
        own = slice(-shape[-1], None)  # the places without CLS
        if self.with_logits:
            x = normalise(head.norm, x, inner_mask)
            logits, normed = head.classify(x, inner_mask), x[:, own]
        else:
            normed = normalise(head.norm, x[:, own], None if inner_mask is None else inner_mask[:, own])
        predicted = self.decoder(normed[places]).float()  # (places, width)
        if self.normalisation is None:
            targets = wanted[places].long()
            losses = F.cross_entropy(predicted, targets, reduction="none")
            right = predicted.argmax(dim=1) == targets
        else:
            mean, std = self.normalisation
            targets = (wanted[places].float() / 255.0 - mean) / std
            losses = (predicted[:, 0] - targets).abs()
            right = losses * std * 255.0 < CLOSE_LEVELS
        return Denoised(
            losses=self._by_example(losses, places, shape),
            right=self._by_example(right.long(), places, shape),
            places=places.reshape(len(tokens), -1).sum(dim=1).reshape(shape[0], -1).sum(dim=1),
            logits=logits,
        )

    @staticmethod
    def _by_example(values: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
        """Sum (places,) over the places of each example: (batch,)."""
        spread = torch.zeros(places.shape, dtype=values.dtype, device=values.device).masked_scatter(places, values)
        return spread.reshape(shape[0], -1).sum(dim=1)


def hidden_places(uniform: Tensor, rate: float, span: int) -> Tensor:
    """Return which places are hidden, each with probability `rate`.

    A span of `span` places begins at a place with a probability of 1 - (1 - rate)^(1 / span), so that no span covers a
    place with probability 1 - rate.

    Args:
        uniform: (..., length + span - 1), uniform in [0, 1): spans may begin before the first place.
        rate: Share of hidden places, in (0, 1).
        span: Length of a span; 1 hides each place on its own.

    Returns:
        (..., length), bool.
    """
    starts = uniform < 1.0 - (1.0 - rate) ** (1.0 / span)
    return starts.unfold(-1, span, 1).any(dim=-1)
