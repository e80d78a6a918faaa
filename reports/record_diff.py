# SPDX-License-Identifier: Apache-2.0
"""The differences between two records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attention_zoo.base import same_value

from .result_set import ResultSet

WIDEST = 60
DOTS = "..."


def differences(results: ResultSet, first: str, second: str) -> list[str]:
    """List the settings, outcomes and environments in which two records differ, one per line."""
    flat = [_flatten(results.records[run_id].model_dump()) for run_id in (first, second)]
    lines = [f"{first[:12]}  against  {second[:12]}"]
    for path in sorted({*flat[0], *flat[1]}):
        values = [side.get(path, "(absent)") for side in flat]
        if not same_value(*values):
            lines.append(f"{path}: {'  |  '.join(_shown(values))}")
    curves = [results.arrays(run_id) for run_id in (first, second)]
    shared = sorted(name for name in {*curves[0], *curves[1]} if name.startswith("curve."))
    for name in shared:
        columns = [side.get(name, np.empty(0)) for side in curves]
        if len(columns[0]) != len(columns[1]):
            lines.append(f"{name}: {len(columns[0])} | {len(columns[1])} rows")
        elif not np.array_equal(columns[0], columns[1], equal_nan=True):
            same = (columns[0] == columns[1]) | (np.isnan(columns[0]) & np.isnan(columns[1]))
            row = int(np.flatnonzero(~same)[0])
            shown = " | ".join(str(column[row]).removesuffix(".0") for column in columns)
            lines.append(f"{name}: first differs in row {row}: {shown}")
    return lines if len(lines) > 1 else [*lines, "no difference"]


def _flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and value:
        found: dict[str, Any] = {}
        for name, inner in value.items():
            found |= _flatten(inner, f"{path}.{name}" if path else str(name))
        return found
    return {path: value}


def _shown(values: Sequence[Any]) -> list[str]:
    """Write two values that differ so that they look different: long ones from shortly before the difference on."""
    texts = [str(value) for value in values]
    if texts[0] == texts[1]:  # 1 and "1"
        texts = [repr(value) for value in values]
    if max(map(len, texts)) <= WIDEST:
        return texts
    pairs = enumerate(zip(*texts, strict=False))
    shared = next((place for place, (one, other) in pairs if one != other), min(map(len, texts)))
    start = 0 if shared < WIDEST - len(DOTS) else shared - WIDEST // 2
    texts = [DOTS * (start > 0) + text[start:] for text in texts]
    return [text if len(text) <= WIDEST else text[: WIDEST - len(DOTS)] + DOTS for text in texts]
