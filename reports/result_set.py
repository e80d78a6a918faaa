# SPDX-License-Identifier: Apache-2.0
"""Records and attempts of one or more stores."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from lra.config.labels import in_words, settings_of
from lra.config.schema import RunConfig, canonical_json, without_folder
from lra.errors import StoreError, UsageError
from lra.names import suggest_path
from lra.reading import reading, visible
from lra.results.bench_format import is_reference
from lra.results.bench_records import BenchRecord, bench_records
from lra.results.dataframe import (
    Naming,
    conflicts,
    differing_recipes,
    naming_of,
    record_frame,
    same_numbers,
    without_older,
)
from lra.results.records import AttemptedRun, RunRecord, Store, read_attempt, read_note, same_outcome

ENTRIES = {"attempts": "attempts/*/*.json", "records": "results/*/*.json", "measurements": "bench/*.json"}
"""What a store holds, by the patterns of its files."""
LISTINGS = 50
"""How often stores are listed at most, until two listings are equal."""
Listing = dict[str, dict[Path, tuple[int, int]]]
"""For each kind of `ENTRIES` its files, in order, with inode and time."""
BASELINE_VARIANT = "mlp_only"
"""The variant that stands among the baselines of every table of accuracy for which the store has runs of it."""


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
    """Seeds that a suite asks for; tables say which numbers lack one of them. Empty without a suite."""
    measurements: tuple[BenchRecord, ...] = ()
    """The measurements of `lra-bench`."""
    references: tuple[RunRecord | AttemptedRun, ...] = ()
    """Runs of `mlp_only`: a model in which no token sees another. No selection leaves them out."""
    full: tuple[RunRecord | AttemptedRun | BenchRecord, ...] = ()
    """Runs and measurements of full attention with its default options. No selection leaves them out."""

    naming: Naming
    """What the names of rows depend on besides the runs of one table. It is of all runs, before any selection."""

    def arrays(self, run_id: str) -> dict[str, np.ndarray]:
        """Return the arrays of a run that belong to its record as it was read.

        Raises:
            DamagedFileError: They are missing, or others by now.
        """
        return self.stores[run_id].arrays_of(self.records[run_id])

    def profiles(self) -> list[tuple[str, str]]:
        """List the (profile, track) pairs of the runs; each pair has its own tables.

        On the matched track, a profile is one recipe for each task. If the records of a task have several, because its
        file was edited, each recipe counts as a profile of its own, whose name ends with the settings that differ.
        """
        return sorted({self._place(config) for config in self._run_configs()})

    def _run_configs(self) -> list[RunConfig]:
        return [r.config for r in self.records.values()] + [a.config for a in self.attempts.values()]

    def _place(self, config: RunConfig) -> tuple[str, str]:
        """Return the profile and track under which tables show a run."""
        task = without_folder(config.task)
        names = self._recipes.get((config.profile, task), []) if config.track == "matched" else []
        text = in_words(settings_of(config), names)
        return (f"{config.profile} [{text}]" if text else config.profile), config.track

    @functools.cached_property
    def _recipes(self) -> dict[tuple[str, str], list[str]]:
        return differing_recipes(self._run_configs())

    def configs(self) -> list[RunConfig]:
        """List the configurations of all records, attempts and measurements."""
        return [entry.config for entry in self._entries()]

    def titles(self) -> dict[str, str]:
        """Return the display name of each variant that is here."""
        here = {without_folder(entry.config.variant.name) for entry in self._entries()}
        return {name: title for (name, _), title in self.naming.titles.items() if name in here}

    def _entries(self) -> list[RunRecord | AttemptedRun | BenchRecord]:
        return [*self.records.values(), *self.attempts.values(), *self.measurements]

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
        return self.filter(lambda config: self._place(config) == (profile, track))

    def with_full(self) -> ResultSet:
        """Add what a selection left out of full attention: runs and measurements under the same conditions.

        Of a suite, runs of its seeds only. Full attention with options of its own is not added.
        """
        here = {_conditions(entry) for entry in self._entries()}
        added = [
            each
            for each in self.full
            if _conditions(each) in here
            and (isinstance(each, BenchRecord) or not self.seeds or each.config.seed in self.seeds)
        ]
        records = {each.run_id: each for each in added if isinstance(each, RunRecord)}
        attempts = {each.run_id: each for each in added if isinstance(each, AttemptedRun)}
        return replace(
            self,
            records=self.records | records,
            attempts=self.attempts | attempts,
            measurements=(
                *self.measurements,
                *(each for each in added if isinstance(each, BenchRecord) and each not in self.measurements),
            ),
        )

    def frame(self) -> pd.DataFrame:
        """Return the tidy frame of the runs: see `lra.results.dataframe.record_frame`."""
        return record_frame(self.records.values(), self.attempts.values(), self.naming)


def _conditions(entry: RunRecord | AttemptedRun | BenchRecord) -> str:
    """Return everything in which runs are alike that differ in their variant and seed only, as a key."""
    config = entry.config
    settings = {name: value for name, value in settings_of(config).items() if not name.startswith("variant.")}
    measured_on = entry.processor if isinstance(entry, BenchRecord) else entry.data_digest
    return canonical_json([without_folder(config.task), config.profile, config.track, measured_on, settings]).decode()


def load_stores(folders: Sequence[Path]) -> ResultSet:
    """Read every record, the attempts of runs without a record, and the measurements of `lra-bench`.

    Raises:
        UsageError: A folder does not exist.
        StoreError: One cannot be listed, or a file went away or was replaced meanwhile: the numbers would be those of
            no moment.
    """
    folders = list({os.path.realpath(folder): folder for folder in folders}.values())  # each store once
    there = _settled(folders)  # what is added from here on is of another moment
    records: dict[str, RunRecord] = {}
    stores: dict[str, Store] = {}
    problems: list[str] = []
    for folder, files in there.items():
        store = Store(folder)
        for entry in store.records(files["records"]):
            if isinstance(entry, StoreError):
                problems.append(str(entry))
                continue
            first = records.setdefault(entry.run_id, entry)
            stores.setdefault(entry.run_id, store)
            if not same_outcome((stores[entry.run_id], first), (store, entry)):
                problems.append(
                    f"{store.record_path(entry.run_id)}: another outcome than in {stores[entry.run_id].root}"
                )
            elif (first.cost, first.environment) != (entry.cost, entry.environment):
                problems.append(
                    f"{store.record_path(entry.run_id)}: executed apart from the one in {stores[entry.run_id].root}, "
                    "whose cost is shown"
                )
        problems += conflicts(files["records"])
    finished = set(records)
    records = without_older(records, stores, problems)
    tried: dict[tuple[bytes, str, int], tuple[AttemptedRun, Path]] = {}
    gone: dict[tuple[bytes, str, int], tuple[Path, str]] = {}
    all_notes = (note for files in there.values() for note in files["attempts"])
    for folder, notes in itertools.groupby(all_notes, key=lambda note: note.parent):
        attempt = None if folder.name in finished else _last_attempt(list(notes), problems)
        if attempt is None:
            continue
        numbers = same_numbers(attempt)
        if attempt.status in ("ok", "diverged"):  # its record was removed or damaged
            gone[numbers] = folder, attempt.status
            continue
        other = tried.setdefault(numbers, (attempt, folder))
        newest = max(other, (attempt, folder), key=lambda each: each[0].numerics_version)
        tried[numbers] = newest
        if other[0].status != attempt.status:
            left_out = folder if newest is other else other[1]
            problems.append(f"{left_out}: another end of the run than in {newest[1]}, which is shown")
    for record in records.values():
        tried.pop(same_numbers(record), None)
        gone.pop(same_numbers(record), None)
    damaged = {path.stem for files in there.values() for path in files["records"]}  # it is named by then
    problems += [
        f"{folder}: its last attempt ended ({status}), but its record is not here"
        for folder, status in gone.values()
        if folder.name not in damaged
    ]
    attempts = {attempt.run_id: attempt for attempt, _ in tried.values()}
    measurements: dict[bytes, BenchRecord] = {}  # by their whole content: of one setting there may be several
    for folder, files in there.items():
        for measurement in bench_records(folder, files["measurements"]):
            if isinstance(measurement, StoreError):
                problems.append(str(measurement))
            else:
                measurements.setdefault(canonical_json(measurement.model_dump()), measurement)
    runs: list[RunRecord | AttemptedRun] = [*records.values(), *attempts.values()]
    for folder, files in there.items():
        now = _listing(folder)
        for kind, states in files.items():
            for path, state in states.items():
                if now[kind].get(path) != state:
                    raise StoreError(f"{path}: changed while the store was read; run the command again")
    return ResultSet(
        records=records,
        stores=stores,
        problems=problems,
        attempts=attempts,
        measurements=tuple(measurements.values()),
        references=tuple(run for run in runs if run.config.variant.name == BASELINE_VARIANT),
        naming=naming_of(runs, list(measurements.values())),
        full=tuple(each for each in [*runs, *measurements.values()] if is_reference(each.config)),
    )


def _settled(folders: Sequence[Path]) -> dict[Path, Listing]:
    """List stores until nothing has changed since the listing before, so that it is of one moment."""
    there = {folder: _listing(folder) for folder in folders}
    for _ in range(LISTINGS):
        before, there = there, {folder: _listing(folder) for folder in folders}
        if there == before:
            return there
    raise StoreError(f"{', '.join(map(str, folders))}: changes faster than it can be listed; run the command again")


def _listing(folder: Path) -> Listing:
    if not folder.is_dir():
        raise UsageError(f"no store at {folder}{suggest_path(folder, '*/') or '; --store names it'}")
    found: Listing = {}
    for kind, pattern in ENTRIES.items():
        found[kind] = {}
        for path in visible(folder, pattern, StoreError):
            with reading(path, StoreError):
                state = path.lstat()
            found[kind][path] = (state.st_ino, state.st_mtime_ns)
    return found


def _last_attempt(notes: Sequence[Path], problems: list[str]) -> AttemptedRun | None:
    """Read the newest note on a run; add it and all others to the problems that cannot be used."""
    numbers = {path: path.name.partition("-")[0] for path in notes}
    *earlier, newest = sorted(numbers, key=lambda path: int(numbers[path]) if numbers[path].isdecimal() else 0)
    found = None
    for note in [*earlier, newest]:
        try:
            content = read_note(note)
            if {"run", "cell"} & content.keys() or found is None:
                found = read_attempt(note)
            else:  # a driver of an earlier version did not say what it tried
                with reading(note, StoreError):
                    found = AttemptedRun.model_validate(found.model_dump() | {"status": content["status"]})
        except StoreError as error:
            problems.append(str(error))
            found = found if note is not newest else None
    return found
