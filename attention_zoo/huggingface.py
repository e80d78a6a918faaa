# SPDX-License-Identifier: Apache-2.0
"""Encoders of Hugging Face transformers, built from a configuration file with random weights: `hf:CONFIG.json`.

Nothing is downloaded. The fields of the file become options. What depends on the task is set from the task: see
`FROM_THE_TASK`.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import keyword
from dataclasses import field, make_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attention_zoo.base import VariantConfig, suggest
from attention_zoo.foreign import MODEL_SIZES, ForeignError, Found, NoMixer

INSTALL = "pip install 'lra-harness[hf]'"
FROM_THE_TASK = ("vocab_size", "num_labels", "id2label", "label2id", "max_position_embeddings", "pad_token_id")
"""Fields that the task decides; `num_labels` stands for the two after it, and token 0 is padding."""
NOT_OF_THE_MODEL = ("architectures", "transformers_version", "torch_dtype", "dtype", "use_cache", *MODEL_SIZES)
"""Fields that are left out: weights are float32, and the others change nothing here."""
SPARE_POSITIONS = 2
"""Rows of the position table beyond the longest sequence; RoBERTa and its kin count from behind the padding token."""


def load(place: str) -> Found:
    """Return the model of a configuration file.

    Raises:
        ForeignError: transformers is missing, or there is no such file, or it holds no configuration.
    """
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        raise ForeignError(f"needs transformers: {INSTALL}") from None
    file = Path(place)
    if not file.is_file():
        known = [path.name for path in file.parent.glob("*.json")]
        raise ForeignError(f"{place}: no such file; {suggest(file.name, known)}")
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise ForeignError(f"{place}: not a JSON file: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise ForeignError(f'{place}: a configuration of transformers is a mapping with a "model_type"')
    left_out = (*FROM_THE_TASK, *NOT_OF_THE_MODEL)
    values = {name: value for name, value in content.items() if name not in left_out and not name.startswith("_")}
    if wrong := [name for name in values if not name.isidentifier() or keyword.iskeyword(name)]:
        raise ForeignError(f"{place}: {wrong[0]!r} is no name of a field")
    options = [
        (name, Any, field(default_factory=partial(copy.deepcopy, value), metadata={"help": f"field of {file.name}"}))
        for name, value in values.items()
    ]
    config = make_dataclass(file.stem, options, bases=(VariantConfig,), frozen=True, kw_only=True, slots=True)
    return Found(file.stem, NoMixer, config, build, whole_model=True, origin=f"transformers {version}")


def build(vocabulary_size: int, max_length: int, num_classes: int, *, model_type: str, **fields: Any) -> nn.Module:
    """Build a model for sequence classification.

    Args:
        vocabulary_size: Token ids are below it, and 0 is padding.
        max_length: Longest sequence.
        num_classes: Width of the logits.
        model_type: Which model, as transformers names it.
        fields: The other fields of its configuration.

    Raises:
        ForeignError: The tokens are real values.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    if not vocabulary_size:
        raise ForeignError("models of transformers take tokens, and this task has real values")
    config = AutoConfig.for_model(
        model_type,
        **fields,
        vocab_size=vocabulary_size,
        num_labels=num_classes,
        max_position_embeddings=max_length + SPARE_POSITIONS,
        pad_token_id=0,
        dtype="float32",
    )
    return SequenceClassifier(AutoModelForSequenceClassification.from_config(config))


class SequenceClassifier(nn.Module):
    """A model of transformers that is called as `model(tokens, mask)`."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Map (batch, length) tokens and mask, True = real token, to logits (batch, classes)."""
        return self.inner(input_ids=tokens, attention_mask=mask.long()).logits
