# SPDX-License-Identifier: Apache-2.0
"""Records and attempts of one or more stores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from lra.config.schema import RunConfig
from lra.errors import StoreError, UsageError
from lra.names import suggest_path
from lra.results.bench_records import BenchRecord, bench_records
from lra.results.dataframe import record_frame
from lra.results.records import AttemptedRun, RunRecord, Store, read_attempt


@dataclass(frozen=True, kw_only=True)
class ResultSet:
    """The records, attempts and measurements of one or more stores."""

    records: dict[str, RunRecord]
    """By run id."""
    attempts: dict[str, AttemptedRun]
    """The last attempt of each run that has no record, by run id."""
    stores: dict[str, Store]
    """Run id -> the store that holds its record."""
    problems: list[str]
    """Files that could not be used, one line each."""
    seeds: frozenset[int] = frozenset()
    """Seeds that a suite asks for; tables say which numbers lack one of them."""
    measurements: tuple[BenchRecord, ...] = ()
    """The measurements of `lra-bench`."""

    def profiles(self) -> list[tuple[str, str]]:
        """List the (profile, track) pairs of the runs; each pair has its own tables."""
        configs = [r.config for r in self.records.values()] + [a.config for a in self.attempts.values()]
        return sorted({(config.profile, config.track) for config in configs})

    def configs(self) -> list[RunConfig]:
        """List the configurations of all records, attempts and measurements."""
        return [entry.config for entry in self._entries()]

    def titles(self) -> dict[str, str]:
        """Return the display name of each variant; the registered name follows it if several variants share it."""
        titles = {entry.config.variant.name: entry.variant_title for entry in self._entries()}
        shared = Counter(titles.values())
        return {name: title if shared[title] == 1 else f"{title} ({name})" for name, title in titles.items()}

    def _entries(self) -> list[RunRecord | AttemptedRun | BenchRecord]:
        return [*self.records.values(), *self.attempts.values(), *self.measurements]

    def seed_count(self, frame: pd.DataFrame) -> int:
        """Count the seeds that each number should rest on: those in the frame and those that the suite asks for."""
        return len(self.seeds | set(frame["seed"]))

    def filter(self, wanted: Callable[[RunConfig], bool]) -> ResultSet:
        """Return the records, attempts and measurements whose configurations are wanted."""
        records = {run_id: record for run_id, record in self.records.items() if wanted(record.config)}
        attempts = {run_id: attempt for run_id, attempt in self.attempts.items() if wanted(attempt.config)}
        measurements = tuple(measurement for measurement in self.measurements if wanted(measurement.config))
        return replace(self, records=records, attempts=attempts, measurements=measurements)

    def for_suite(self, runs: Sequence[RunConfig]) -> ResultSet:
        """Return what belongs to the runs of a suite, whatever dataset variant they used."""
        keys = {config.key() for config in runs}
        found = self.filter(lambda config: config.key() in keys)
        return replace(found, seeds=frozenset(config.seed for config in runs))

    def for_profile(self, profile: str, track: str) -> ResultSet:
        """Return what belongs to one profile and track."""
        return self.filter(lambda config: (config.profile, config.track) == (profile, track))

    def frame(self) -> pd.DataFrame:
        """Return the tidy frame of `lra.results.dataframe.record_frame` with two more columns.

        `column` is the heading of the task; different data of one task get different headings. `label` is the display
        name of the variant, followed in brackets by the settings in which its runs under one heading differ. One label,
        heading and seed therefore belong to one run, and different runs are never averaged.
        """
        frame = record_frame(self.records.values(), self.attempts.values())
        frame["column"] = _headings(frame)
        frame["variant_title"] = frame["variant"].map(self.titles())
        frame["label"] = label_by_settings(frame)
        return frame


def load_stores(folders: Sequence[Path]) -> ResultSet:
    """Read every record, the attempts of runs without a record, and the measurements of `lra-bench`.

    Raises:
        UsageError: A folder does not exist.
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
            if (first.status, first.outcome) != (entry.status, entry.outcome):
                problems.append(
                    f"{store.record_path(entry.run_id)}: another outcome than in {stores[entry.run_id].root}"
                )
        problems += [f"{path}: another outcome of the same run" for path in folder.glob("results/*/*.conflict-*.json")]
    attempts: dict[str, AttemptedRun] = {}
    for folder in folders:
        for notes in sorted(folder.glob("attempts/*")):
            if notes.name not in records:
                attempt = _last_attempt(notes, problems)
                if attempt is not None:
                    attempts.setdefault(notes.name, attempt)
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
    """Read the newest note on a run; if it cannot be used, add it to the problems."""
    notes = [path for path in folder.glob("*.json") if path.name.partition("-")[0].isdecimal()]
    if not notes:
        return None
    newest = max(notes, key=lambda path: int(path.name.partition("-")[0]))
    try:
        return read_attempt(newest)
    except StoreError as error:
        problems.append(str(error))
        return None


def label_by_settings(frame: pd.DataFrame, leave_out: Sequence[str] = (), *, name: str = "variant_title") -> list[str]:
    """Return the variant of each row, followed in brackets by the settings in which its rows under one heading differ.

    Args:
        frame: With the columns `variant`, `variant_title`, `column` and `settings`.
        leave_out: Settings that the table shows in another way.
        name: Column with the name of the variant: `variant_title`, or `variant` as on the command line.
    """
    varying: dict[str, set[str]] = {}
    for (variant, _), group in frame.groupby(["variant", "column"], sort=False):
        found = varying.setdefault(str(variant), set())
        found |= set(varying_settings(group)) - set(leave_out)
    labels = []
    for variant, shown, settings in zip(frame["variant"], frame[name], frame["settings"], strict=True):
        named = [setting for setting in sorted(varying[variant]) if setting in settings]
        text = ", ".join(f"{short_name(setting)}={settings[setting]}" for setting in named)
        labels.append(f"{shown} [{text}]" if text else shown)
    return labels


def short_name(setting: str) -> str:
    """Return the name of a setting without its section."""
    return setting.partition(".")[2] or setting


def varying_settings(frame: pd.DataFrame) -> list[str]:
    """List the settings that do not have the same value in all rows; an absent setting counts as a value."""
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
