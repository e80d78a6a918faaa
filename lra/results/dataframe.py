# SPDX-License-Identifier: Apache-2.0
"""Records as a tidy data frame: one row for each run that was completed or tried."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lra.errors import StoreError
from lra.results.records import AttemptedRun, RunRecord, Store

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "run_id", "task", "title", "dataset", "data_digest", "profile", "track", "variant", "variant_title",
    "seed", "status", "accuracy",
    "correct", "total", "validation_accuracy", "selected_step", "steps", "batch_size", "layers", "parameters",
    "parameters_full", "flops", "examples_per_second", "tokens_per_second", "peak_bytes", "train_seconds", "device",
    "backend", "finished_at", "settings",
)  # fmt: skip


def load(folder: Path | str) -> pd.DataFrame:
    """Return the records of a store as a tidy data frame, one row per run; see `record_frame`.

    Files that are damaged, foreign or of a newer schema are listed in `frame.attrs["problems"]`.

    Raises:
        StoreError: There is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise StoreError(f"no store at {root}")
    entries = list(Store(root).records())
    frame = record_frame(entry for entry in entries if isinstance(entry, RunRecord))
    frame.attrs["problems"] = [str(entry) for entry in entries if isinstance(entry, StoreError)]
    return frame


def record_frame(records: Iterable[RunRecord], attempts: Iterable[AttemptedRun] = ()) -> pd.DataFrame:
    """Return one row per record, then one per run that was tried and has none.

    Columns in percent: `accuracy`, `validation_accuracy`. What a run did not give is missing, never 0. `settings` holds
    everything else that can change the number, as one flat dict: `variant.rank`, `model.num_layers`, `train.lr` ...
    """
    import pandas as pd

    rows = [_record_row(record) for record in records] + [_attempt_row(attempt) for attempt in attempts]
    frame = pd.DataFrame(rows, columns=COLUMNS)
    numbers = ["accuracy", "validation_accuracy", "flops", "examples_per_second", "tokens_per_second", "peak_bytes"]
    frame[numbers] = frame[numbers].astype(float)
    return frame


def _record_row(record: RunRecord) -> dict[str, Any]:
    cost, outcome = record.cost, record.outcome
    row = _run_row(record) | {
        "status": record.status,
        "parameters": cost.parameters,
        "parameters_full": cost.parameters_full,
        "flops": cost.flops,
        "examples_per_second": cost.examples_per_second,
        "tokens_per_second": cost.tokens_per_second,
        "peak_bytes": cost.peak_memory_bytes,
        "train_seconds": cost.train_seconds,
        "device": str(record.environment.get("device", "")),
        "backend": record.backend,
        "finished_at": record.finished_at,
    }
    row["settings"]["numerics_version"] = record.numerics_version
    if outcome is not None:
        row |= {
            "accuracy": 100 * outcome.test.correct / outcome.test.total,
            "correct": outcome.test.correct,
            "total": outcome.test.total,
            "validation_accuracy": 100 * outcome.validation.correct / outcome.validation.total,
            "selected_step": outcome.selected_step,
        }
    return row


def _attempt_row(attempt: AttemptedRun) -> dict[str, Any]:
    row = _run_row(attempt) | {"status": attempt.status}
    row["settings"]["numerics_version"] = attempt.numerics_version
    return row


def _run_row(run: RunRecord | AttemptedRun) -> dict[str, Any]:
    config, hashed = run.config, run.config.hashed()
    settings = {f"variant.{name}": value for name, value in hashed["variant"]["options"].items()}
    settings["variant.origin"] = config.variant.origin
    for section in ("data", "model", "train"):
        settings |= {f"{section}.{name}": value for name, value in hashed[section].items()}
    return {
        "run_id": run.run_id,
        "task": config.task,
        "title": run.task_title,
        "dataset": run.dataset,
        "data_digest": run.data_digest,
        "profile": config.profile,
        "track": config.track,
        "variant": config.variant.name,
        "variant_title": run.variant_title,
        "seed": config.seed,
        "steps": config.train.steps,
        "batch_size": config.train.batch_size,
        "layers": config.model.num_layers,
        "settings": settings,
    }
