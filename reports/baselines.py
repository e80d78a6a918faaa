# SPDX-License-Identifier: Apache-2.0
"""The accuracies of answers without a model, on the data of a run."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lra.config.yaml_loader import load_file
from lra.metrics import of_whole_test
from lra.results.records import RunRecord

KNOWN = Path(__file__).parent / "known_baselines.yaml"
"""Baselines of data whose older records lack them, since they were added later."""


def baselines_of(record: RunRecord) -> dict[str, float]:
    """Return the trivial baselines of the whole test of a run, in %, by name: in its record, or known since."""
    return of_whole_test(all_baselines_of(record))


def all_baselines_of(record: RunRecord) -> dict[str, float]:
    """Return the trivial baselines of the data of a run, also those at each length of the test."""
    return record.baselines | known_since(record)


def highest_baselines(records: Iterable[RunRecord]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the trivial baselines of runs on the same data, in %, by name, and the lowest of those that differ.

    The linear ones are fitted where the data is prepared, so those of two machines may differ. The highest counts.
    """
    highest: dict[str, float] = {}
    lowest: dict[str, float] = {}
    for record in records:
        for name, value in baselines_of(record).items():
            highest[name] = max(value, highest.get(name, value))
            lowest[name] = min(value, lowest.get(name, value))
    return highest, {name: value for name, value in lowest.items() if value != highest[name]}


def known_since(record: RunRecord) -> dict[str, float]:
    """Return the baselines of the data of a run that older records lack, in %, by name."""
    found: dict[str, float] = _known().get(record.config.task, {}).get(record.data_digest, {})
    return found


@functools.cache
def _known() -> dict[str, Any]:
    return load_file(KNOWN)
