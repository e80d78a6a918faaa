"""Records and attempts of one or more stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from lra.config.schema import RunConfig, canonical_json
from lra.errors import StoreError, UsageError
from lra.names import suggest_path
from lra.results.bench_records import BenchRecord, bench_records
from lra.results.dataframe import record_frame
from lra.results.records import AttemptedRun, RunRecord, Store, read_attempt


@dataclass(frozen=True, kw_only=True)
class ResultSet:
    """What was found."""

    records: dict[str, RunRecord]
    """By cell id."""
    attempts: dict[str, AttemptedRun]
    """The last attempt of each cell that has no record, by cell id."""
    stores: dict[str, Store]
    """Cell id -> the store that holds its record."""
    problems: list[str]
    """Files that were passed over, one line each; never dropped in silence."""
    seeds: frozenset[int] = frozenset()
    """Seeds that a suite asks for; of those that no run has, tables say that they are missing."""
    measurements: tuple[BenchRecord, ...] = ()
    """What `lra-bench` measured."""

    def profiles(self) -> list[tuple[str, str]]:
        """List the (profile, track) pairs there are; each makes tables of its own."""
        configs = [r.config for r in self.records.values()] + [a.config for a in self.attempts.values()]
        return sorted({(config.profile, config.track) for config in configs})

    def configs(self) -> list[RunConfig]:
        """List the configurations of all records, attempts and measurements."""
        runs = [record.config for record in self.records.values()] + [cell.config for cell in self.attempts.values()]
        return runs + [measurement.config for measurement in self.measurements]

    def seed_count(self, frame: pd.DataFrame) -> int:
        """Count the seeds that a cell of a table should have: those in the frame and those the suite asks for."""
        return len(self.seeds | set(frame["seed"]))

    def where(self, wanted: Callable[[RunConfig], bool]) -> ResultSet:
        """Return the records, attempts and measurements of some configurations."""
        records = {cell: record for cell, record in self.records.items() if wanted(record.config)}
        attempts = {cell: attempt for cell, attempt in self.attempts.items() if wanted(attempt.config)}
        measurements = tuple(measurement for measurement in self.measurements if wanted(measurement.config))
        return replace(self, records=records, attempts=attempts, measurements=measurements)

    def of_cells(self, cells: Sequence[RunConfig]) -> ResultSet:
        """Return what is a cell of a suite, whatever the dataset variant of the data."""
        keys = {canonical_json(config.model_dump()) for config in cells}
        found = self.where(lambda config: canonical_json(config.model_dump()) in keys)
        return replace(found, seeds=frozenset(config.seed for config in cells))

    def only(self, profile: str, track: str) -> ResultSet:
        """Return what belongs to one profile and track."""
        return self.where(lambda config: (config.profile, config.track) == (profile, track))

    def frame(self) -> pd.DataFrame:
        """Return the tidy frame of `lra.results.dataframe.record_frame` with two more columns.

        `column` is the heading of the task; different data of one task get different headings. `label` is the variant,
        with the settings in brackets in which its cells under one heading differ: so one label, heading and seed is one
        cell, and different runs are never averaged.
        """
        frame = record_frame(self.records.values(), self.attempts.values())
        frame["column"] = _headings(frame)
        frame["label"] = label_by_settings(frame)
        return frame


def load_stores(folders: Sequence[Path]) -> ResultSet:
    """Read every record, the attempts of cells that have none, and the measurements of `lra-bench`.

    Raises:
        UsageError: A folder is not there.
    """
    records: dict[str, RunRecord] = {}
    stores: dict[str, Store] = {}
    problems: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"no store at {folder}{suggest_path(folder, '*/') or '; --store names it'}")
        store = Store(folder)
        for entry in store.records():
            if isinstance(entry, StoreError):
                problems.append(str(entry))
                continue
            first = records.setdefault(entry.run_id, entry)
            stores.setdefault(entry.run_id, store)
            if not store.record_path(entry.run_id).exists():
                problems.append(f"{folder}: the record of cell {entry.run_id} lies under another name")
            if (first.status, first.outcome) != (entry.status, entry.outcome):
                problems.append(
                    f"{store.record_path(entry.run_id)}: another outcome than in {stores[entry.run_id].root}"
                )
        problems += [f"{path}: another outcome of the same cell" for path in folder.glob("results/*/*.conflict-*.json")]
    attempts: dict[str, AttemptedRun] = {}
    for folder in folders:
        for cell in sorted(folder.glob("attempts/*")):
            if cell.name not in records:
                attempt = _last_attempt(cell, problems)
                if attempt is not None:
                    attempts.setdefault(cell.name, attempt)
    measurements: dict[str, BenchRecord] = {}
    for folder in folders:
        for measurement in bench_records(folder):
            if isinstance(measurement, StoreError):
                problems.append(str(measurement))
            else:
                measurements.setdefault(measurement.settings_id, measurement)
    return ResultSet(
        records=records, stores=stores, problems=problems, attempts=attempts, measurements=tuple(measurements.values())
    )


def _last_attempt(folder: Path, problems: list[str]) -> AttemptedRun | None:
    """Read the newest note of a cell; what cannot be read or placed is added to the problems."""
    notes = [path for path in folder.glob("*.json") if path.name.partition("-")[0].isdecimal()]
    if not notes:
        return None
    newest = max(notes, key=lambda path: int(path.name.partition("-")[0]))
    try:
        return read_attempt(newest)
    except StoreError as error:
        problems.append(str(error))
        return None


def label_by_settings(frame: pd.DataFrame, leave_out: Sequence[str] = ()) -> list[str]:
    """Return each row's variant, with the settings in brackets in which rows of it differ under the same heading.

    Args:
        frame: With `variant`, `column` and `settings`.
        leave_out: Settings that the table shows in another way.
    """
    varying: dict[str, set[str]] = {}
    for (variant, _), group in frame.groupby(["variant", "column"], sort=False):
        found = varying.setdefault(str(variant), set())
        found |= set(varying_settings(group)) - set(leave_out)
    labels = []
    for variant, settings in zip(frame["variant"], frame["settings"], strict=True):
        named = [name for name in sorted(varying[variant]) if name in settings]
        text = ", ".join(f"{short_name(name)}={settings[name]}" for name in named)
        labels.append(f"{variant} [{text}]" if text else variant)
    return labels


def short_name(setting: str) -> str:
    """Return the name of a setting without its section."""
    return setting.partition(".")[2] or setting


def varying_settings(frame: pd.DataFrame) -> list[str]:
    """List the settings that do not have one value in all rows; to be absent counts as a value."""
    values: dict[str, set[str]] = {}
    holders: Counter[str] = Counter()
    for settings in frame["settings"]:
        holders.update(list(settings))
        for name, value in settings.items():
            values.setdefault(name, set()).add(repr(value))
    return sorted(name for name, found in values.items() if len(found) > 1 or holders[name] < len(frame))


def _headings(frame: pd.DataFrame) -> list[str]:
    datasets = frame.groupby("task")["dataset"].nunique()
    digests = frame.groupby(["task", "dataset"])["data_digest"].nunique()
    headings = []
    for task, title, dataset, digest in zip(
        frame["task"], frame["title"], frame["dataset"], frame["data_digest"], strict=True
    ):
        heading = title if datasets[task] == 1 else f"{title} ({dataset})"
        headings.append(heading if digests[task, dataset] == 1 else f"{heading} {digest[:8]}")
    return headings
