"""Records and attempts of one or more stores, as data frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lra.errors import StoreError, UsageError
from lra.records import RunRecord, Store

OPTION_COLUMN = "options"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What was found."""

    records: dict[str, RunRecord]
    """By cell id."""
    stores: dict[str, Store]
    """Cell id -> the store that holds it."""
    problems: list[str]
    """Files that were passed over, one line each; never dropped in silence."""
    attempts: dict[str, str]
    """Cell id -> last status, for cells that have attempts and no record."""


def load_stores(folders: Sequence[Path]) -> Loaded:
    """Read every record of the stores.

    Raises:
        UsageError: A folder is not there.
    """
    records: dict[str, RunRecord] = {}
    stores: dict[str, Store] = {}
    problems: list[str] = []
    attempts: dict[str, str] = {}
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"no store at {folder}")
        store = Store(folder)
        for entry in store.records():
            if isinstance(entry, StoreError):
                problems.append(str(entry))
            else:
                records.setdefault(entry.cell_id, entry)
                stores.setdefault(entry.cell_id, store)
        problems += [f"{path}: another outcome of the same cell" for path in folder.glob("results/*/*.conflict-*.json")]
        for cell in sorted(folder.glob("attempts/*")):
            notes = sorted(cell.glob("*.json"), key=lambda path: int(path.name.partition("-")[0]))
            if notes and cell.name not in records:
                attempts[cell.name] = json.loads(notes[-1].read_text()).get("status", "failed")
    return Loaded(records=records, stores=stores, problems=problems, attempts=attempts)


def tidy(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return one row per record; `accuracy` is in percent and missing where a run gave no number.

    The column `label` is the variant's name, with those options in brackets in which records of that variant differ.
    """
    rows = [_row(record) for record in records]
    frame = pd.DataFrame(rows, columns=_COLUMNS)
    frame["label"] = frame["variant"]
    for variant, group in frame.groupby("variant"):
        varying = _varying(list(group[OPTION_COLUMN]))
        if varying:
            for index, options in group[OPTION_COLUMN].items():
                text = ", ".join(f"{name}={options[name]}" for name in varying if name in options)
                frame.loc[index, "label"] = f"{variant} [{text}]"
    return frame


_COLUMNS = (
    "cell_id", "task", "title", "edition", "profile", "track", "variant", OPTION_COLUMN, "seed", "status", "accuracy",
    "correct", "total", "validation_accuracy", "selected_step", "steps", "batch_size", "layers", "parameters",
    "parameters_full", "examples_per_second", "tokens_per_second", "peak_bytes", "train_seconds", "device", "backend",
)  # fmt: skip


def _row(record: RunRecord) -> tuple[Any, ...]:
    config, cost, outcome = record.config, record.cost, record.outcome
    test: tuple[float | None, ...] = (None, None, None, None, None)
    if outcome is not None:
        test = (
            100 * outcome.test.correct / outcome.test.total,
            outcome.test.correct,
            outcome.test.total,
            100 * outcome.validation.correct / outcome.validation.total,
            outcome.selected_step,
        )
    return (
        record.cell_id, config.task, record.task_title, record.data_edition, config.profile, config.track,
        config.variant.name, config.variant.options, config.seed, record.status, *test, config.train.steps,
        config.train.batch_size, config.model.num_layers, cost.parameters, cost.parameters_full,
        cost.examples_per_second, cost.tokens_per_second, cost.peak_memory_bytes, cost.train_seconds,
        record.environment.get("device", ""), record.backend,
    )  # fmt: skip


def _varying(options: Sequence[dict[str, Any]]) -> list[str]:
    names = {name for each in options for name in each}
    return sorted(name for name in names if len({json.dumps(each.get(name), sort_keys=True) for each in options}) > 1)
