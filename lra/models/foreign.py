# SPDX-License-Identifier: Apache-2.0
"""`model.family: foreign`: a whole model of somebody else, named as `my_model.py:build` or `hf:CONFIG.json`.

The variant of the run names a function or class, see `attention_zoo.foreign`. It is called with those of the names
`vocabulary_size`, `max_length` and `num_classes` that it has, and with its options. It gives an `nn.Module` that is
called as `model(tokens, mask)` and gives logits, (batch, num_classes).

- Tokens are (batch, length), int64, and 0 is padding. The mask is always there: shaped alike, bool, True = real token.
- Where a task has real values, they come in place of tokens: float32, of mean 0 and standard deviation 1, and
  `vocabulary_size` is 0.
- Where a task has two documents, each is a sequence: (2 * batch, length). `num_classes` is then `model.dim`, and the
  two vectors of a pair go through the head for pairs.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from attention_zoo import VariantSpec
from attention_zoo.faults import fault_line
from attention_zoo.foreign import ForeignError
from lra.config.schema import RunConfig
from lra.data.batching import LENGTH_MULTIPLE
from lra.models.padding import hide_padding
from lra.seeding import seed_all
from lra.tasks.base import TaskInfo

TRIAL_LENGTH = 3 * LENGTH_MULTIPLE
"""Tokens of a sequence of the trial, where the task has sequences of any length."""
TOLERANCE = 1e-3
"""Difference of logits, relative to the largest, that the trial takes for rounding."""


class ForeignModel(nn.Module):
    """A model of somebody else behind the call of ours.

    Args:
        spec: What builds it.
        config: The configuration of the run.
        info: The task.
        vocab_size: Token ids are below it.
        num_classes: Width of the logits.
        head: For two documents, what maps their vectors, (2 * batch, 1, width), to logits; else None.

    Raises:
        ForeignError: The model cannot be built, or cannot be called with tokens and mask.
    """

    def __init__(
        self,
        spec: VariantSpec,
        config: RunConfig,
        info: TaskInfo,
        vocab_size: int,
        num_classes: int,
        head: nn.Module | None,
    ) -> None:
        super().__init__()
        self.title, self.info, self.head = spec.title, info, head
        self.max_length, self.fixed_length = config.model.max_length, config.train.padding == "fixed"
        self.zero_is_padding = config.data.get("legacy_zero_mask", False)
        sizes = given_sizes(config, info, vocab_size, num_classes)
        self.width = sizes["num_classes"]
        arguments = arguments_of(spec, config.variant.typed.to_dict(), sizes)
        seed_all(config.seed, "init", "model")
        try:
            self.inner = spec.program(**arguments)
        except ForeignError as error:
            raise ForeignError(f"{self.title}: {error}") from error
        except Exception as error:
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise ForeignError(f"{self.title}({given}) failed: {fault_line(error, advice=False)}") from error
        if not isinstance(self.inner, nn.Module):
            raise ForeignError(f"{self.title} built {type(self.inner).__name__}, not an nn.Module")
        try:
            inspect.signature(self.inner.forward).bind("tokens", "mask")
        except TypeError:
            signature = inspect.signature(self.inner.forward)
            raise ForeignError(
                f"{self.title}: forward{signature} cannot be called as model(tokens, mask); write forward(tokens, mask)"
            ) from None

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            tokens: (batch, length), integers; (batch, 2, length) for pairs.
            mask: Shaped like `tokens`, bool, True = real token; None = all real.

        Returns:
            Logits (batch, num_classes).

        Raises:
            ForeignError: The model gave something else.
        """
        if tokens.dim() == 3:  # both documents of a pair, as 2 * batch sequences
            tokens, mask = tokens.flatten(0, 1), None if mask is None else mask.flatten(0, 1)
        tokens, mask = hide_padding(tokens, mask, zero_is_padding=self.zero_is_padding)
        if mask is None:
            mask = torch.ones_like(tokens, dtype=torch.bool)
        # A sequence without a real token shows the model all its zeros, so that no softmax is over nothing.
        seen = mask | ~mask.any(dim=1, keepdim=True)
        if self.info.normalisation is None:
            inputs = tokens.long()
        else:
            mean, std = self.info.normalisation
            inputs = torch.where(mask, (tokens.float() / 255.0 - mean) / std, 0.0)
        logits = self.inner(inputs, seen)
        expected = (len(tokens), self.width)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise ForeignError(f"{self.title}: model(tokens, mask) gave {what}, not logits of shape {expected}")
        return logits if self.head is None else self.head(logits.unsqueeze(1), None)

    def try_out(self) -> None:
        """Call the model on made-up sequences, and check that each answer depends on the real tokens of its own only.

        Where every sequence is padded to one length, the answer may depend on the padding. The trial draws nothing
        from the generators of the run, and leaves the model as it was.

        Raises:
            ForeignError: It fails, gives NaN or another shape, mixes the sequences of a batch, or ignores the mask.
        """
        device = next(iter(self.parameters()), torch.empty(0)).device
        same_length = self.fixed_length or self.info.grid is not None
        shorter = max(1, min(TRIAL_LENGTH, self.max_length - LENGTH_MULTIPLE))
        length = self.max_length if same_length else shorter
        padded = min(length + LENGTH_MULTIPLE, self.max_length)
        shape = (2, 2, padded) if self.info.paired else (2, padded)
        was_training = self.training
        self.eval()
        with torch.random.fork_rng():
            seed_all(0, "trial")
            tokens = torch.randint(1, self.info.vocab_size, shape, dtype=torch.int16).to(device)
            both = self._tried(tokens[..., :length])
            mask = torch.arange(padded, device=device).expand(shape) < length
            with torch.no_grad():
                one = self._tried(tokens[:1, ..., :length])
                longer = both if same_length else self._tried(tokens, mask)
        self.train(was_training)
        if not both.requires_grad:
            raise ForeignError(f"{self.title}: its logits depend on no parameter; is it detached, or without any?")
        if not _close(one, both[:1]):
            raise ForeignError(f"{self.title}: the answer for a sequence depends on the others of its batch")
        if not _close(longer, both):
            raise ForeignError(
                f"{self.title}: the answer depends on how far a sequence is padded; use the mask, in which True is a "
                "real token (or give --set train.padding=fixed, where all are padded to one length)"
            )

    def _tried(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        try:
            logits: Tensor = self(tokens, mask)
        except ForeignError:
            raise
        except Exception as error:
            raise ForeignError(f"{self.title} cannot be called: {fault_line(error, advice=False)}") from error
        if not logits.isfinite().all():
            raise ForeignError(f"{self.title}: the logits of made-up tokens are not finite")
        return logits


def given_sizes(config: RunConfig, info: TaskInfo, vocab_size: int, num_classes: int) -> dict[str, int]:
    """Return the sizes that the model of a run is built with, by the names of its arguments: see the head of this file.

    Args:
        config: The configuration of the run.
        info: The task.
        vocab_size: Token ids are below it.
        num_classes: Classes of the task.
    """
    return {
        "vocabulary_size": vocab_size if info.normalisation is None else 0,
        "max_length": config.model.max_length,
        "num_classes": config.model.dim if info.paired else num_classes,
    }


def arguments_of(spec: VariantSpec, options: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    """Return what a builder is called with: the sizes that it names, and its options.

    Raises:
        ForeignError: An option without a default was not given.
    """
    parameters = inspect.signature(spec.program).parameters
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name in options and options[name] is None:
            raise ForeignError(f"{spec.title} needs {name!r}: give --set variant.{name}=...")
    return {name: size for name, size in sizes.items() if name in parameters} | options


def _close(one: Tensor, other: Tensor) -> bool:
    scale = max(1.0, float(other.detach().abs().max()))
    return bool(((one - other).abs() <= TOLERANCE * scale).all())
