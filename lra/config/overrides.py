# SPDX-License-Identifier: Apache-2.0
"""Settings as they are given on a command line: `key.path=value`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lra.config.schema import canonical_json
from lra.config.yaml_loader import load_text
from lra.errors import UsageError


def parse_override(text: str, option: str = "--set", example: str = "train.lr=1e-4") -> tuple[str, Any]:
    """Split `key.path=value`; the value is read like a value in a YAML file.

    Args:
        text: What the user wrote.
        option: Where, for the error message.
        example: What would have been right, for the error message.

    Raises:
        UsageError: There is no `=`, or the value is not acceptable YAML.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise UsageError(f"{option} {text}: expected key=value, such as {example}")
    return key.strip(), load_text(value, f"{option} {key}")


def parse_overrides(texts: Sequence[str], option: str = "--set", example: str = "train.lr=1e-4") -> dict[str, Any]:
    """Read several overrides like `parse_override`.

    Raises:
        UsageError: As there, or a key has two values.
    """
    values: dict[str, Any] = {}
    for text in texts:
        key, value = parse_override(text, option, example)
        if canonical_json(values.setdefault(key, value)) != canonical_json(value):
            raise UsageError(f"{option} {key}: given as {values[key]} and as {value}; leave one out")
    return values
