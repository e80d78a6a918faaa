# SPDX-License-Identifier: Apache-2.0
"""The accuracies of answers without a model, on the data of a run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from lra.config.yaml_loader import load_file
from lra.results.records import RunRecord

KNOWN = Path(__file__).parent / "known_baselines.yaml"
"""Baselines of data whose older records lack them, since they were added later."""


def baselines_of(record: RunRecord) -> dict[str, float]:
    """Return the trivial baselines of the data of a run, in %, by name: those in its record, and those known since."""
    return record.baselines | _known().get(record.config.task, {}).get(record.data_digest, {})


@functools.cache
def _known() -> dict[str, Any]:
    return load_file(KNOWN)
