# SPDX-License-Identifier: Apache-2.0
"""The state of each run of a sweep, read from the store every time; nothing is cached."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

from lra.atomic_io import in_use
from lra.config.schema import RunConfig
from lra.config.suites import labels
from lra.data.manifest import Manifest
from lra.errors import DamagedFileError, DataError, StoreError
from lra.reading import visible
from lra.results.checkpoints import REFUSED, list_checkpoints
from lra.results.lease import acquire, holder, same_machine
from lra.results.records import AttemptStatus, Store, read_note
from lra.tasks import get_task

MAX_ATTEMPTS = 3
"""Failed attempts after which a run is not started again until `lra-sweep retry`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepRun:
    """One run of a sweep."""

    label: str
    config: RunConfig
    run_id: str | None
    """None while the data is not prepared, because the id depends on its content."""
    manifest: Manifest | None = None
    """Of its prepared data."""
    problem: str = ""
    """Why there is no id: what is wrong with the data, in one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunState:
    """How far a run is, or how it ended."""

    word: str
    """Status of the record or of the last attempt, or `running`, `damaged` (an unreadable record), `not run`, or
    `unknown` (a run without an id, which a store may have or not)."""
    detail: str = ""
    failures: int = 0
    """Failed attempts so far."""
    step: int = 0
    """Steps done, as far as the store shows; 0 of a run that diverged, whose `detail` says where."""
    beat: str = ""
    """What a holder on another machine wrote last; while that one lives, it changes. Empty for one on this machine."""
    unread: tuple[str, ...] = ()
    """What is wrong with notes of attempts that do not count, one line each."""

    @property
    def final(self) -> bool:
        """Whether a sweep does not start the run again."""
        return self.word in {"ok", "diverged", "oom", "timeout", "damaged"} or (
            self.word == "failed" and self.failures >= MAX_ATTEMPTS
        )


def sweep_runs(configs: Sequence[RunConfig], home: Path) -> list[SweepRun]:
    """Give each configuration its label and, if its data is prepared in `home`, its run id."""
    manifests: dict[Path, Manifest | None] = {}
    problems: dict[Path, str] = {}
    runs = []
    for config, label in zip(configs, labels(list(configs)), strict=True):
        folder = data_folder(config, home)
        if folder not in manifests:
            task = get_task(config.task)
            try:
                manifests[folder] = task.opened(task.options.model_validate(config.data), home).manifest
            except DataError as error:
                manifests[folder], problems[folder] = None, str(error).splitlines()[0]
        manifest = manifests[folder]
        run_id = None if manifest is None else config.run_id(manifest.digest)
        problem = problems.get(folder, "")
        runs.append(SweepRun(label=label, config=config, run_id=run_id, manifest=manifest, problem=problem))
    return runs


def data_folder(config: RunConfig, home: Path) -> Path:
    """Return the folder of the prepared data of a run, whether it exists or not."""
    task = get_task(config.task)
    return home / task.folder_name(task.options.model_validate(config.data))


def state_of(store: Store, run: SweepRun) -> RunState:
    """Read the state of a run."""
    if run.run_id is None:
        return RunState(word="unknown", detail=run.problem) if store.root.is_dir() else RunState(word="not run")
    try:
        record = store.find(run.run_id)
    except DamagedFileError as error:
        return RunState(word="damaged", detail=str(error))
    logged, unread = read_attempts(store, run.run_id)
    failures = sum(attempt["status"] == "failed" for attempt in logged)
    told = partial(RunState, failures=failures, unread=unread)
    if record is not None:
        detail = record.detail
        if record.outcome is not None:
            test = record.outcome.test
            detail = f"{100 * test.correct / test.total:.2f} % of test, {record.cost.wall_seconds:.0f} s"
        detail += "".join(f"; {words}: {path.name}" for path, words in store.other_outcomes(run.run_id).items())
        return told(word=record.status, detail=detail, step=run.config.train.steps if record.status == "ok" else 0)
    saved = list_checkpoints(store.checkpoint_folder(run.run_id))
    step = saved[0][0] if saved else 0
    owner = holder(store.root, run.run_id)
    if owner is not None:
        process = owner.get("unread") or f"pid {owner.get('pid')} on {owner.get('host')}"
        beat = "" if same_machine(owner) or "unread" in owner else repr(owner)
        return told(word="running", detail=process, beat=beat, step=max(step, int(owner.get("step", 0))))
    # An attempt that ended well without a record means that somebody removed the record.
    if not logged or logged[-1]["status"] in ("ok", "diverged"):
        return told(word="not run", step=step)
    last = logged[-1]
    detail = (str(last["detail"]).strip().splitlines() or [""])[-1]
    return told(word=last["status"], detail=detail, step=step)


def tally(states: Sequence[RunState]) -> str:
    """Count states by word, most frequent first."""
    words = [state.word for state in states]
    return ", ".join(f"{words.count(word)} {word}" for word in sorted(set(words), key=words.count, reverse=True))


def attempts(store: Store, run_id: str) -> list[dict[str, Any]]:
    """Read the logged attempts of a run that count, oldest first."""
    return read_attempts(store, run_id)[0]


def read_attempts(store: Store, run_id: str) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Read the logged attempts of a run, oldest first, and say what is wrong with those that do not count."""
    logged, unread = [], []
    for path in sorted(visible(store.root / "attempts" / run_id, "*.json", StoreError), key=_number):
        try:
            attempt = read_note(path)
            if attempt.get("status") not in get_args(AttemptStatus) or "detail" not in attempt:
                raise DamagedFileError(f"{path} is no note of an attempt")
            logged.append(attempt)
        except StoreError as error:
            unread.append(str(error))
    return logged, tuple(unread)


def clear_failures(store: Store, run: SweepRun) -> bool:
    """Set the attempts of a run without a record aside, so that it is tried again; return whether there were any."""
    if run.run_id is None or state_of(store, run).word not in ("failed", "oom", "timeout"):
        return False
    folder = store.root / "attempts" / run.run_id
    logged = sorted(folder.glob("*.json"))
    round_number = len(list(folder.glob("cleared-*"))) + 1
    for attempt in logged:
        target = folder / f"cleared-{round_number}"
        target.mkdir(exist_ok=True)
        attempt.rename(target / attempt.name)
    return bool(logged)


def collect_garbage(store: Store, run: SweepRun) -> int:
    """Remove checkpoints and log of a finished run, and temporary files that dead processes left.

    The weights that were scored (`chosen.pt`) and all checkpoints of a run without a record stay. A run that is being
    executed is not touched.

    Returns:
        Bytes freed.

    Raises:
        OSError: The store cannot be changed.
    """
    if run.run_id is None:
        return 0
    with acquire(store.root, run.run_id, give_up=lambda: True) as acquired:
        if not acquired:
            return 0
        stale_files = _temporary_files(store, run.run_id)
        if state_of(store, run).word in ("ok", "diverged"):
            checkpoints = store.checkpoint_folder(run.run_id)
            for folder in (checkpoints, *checkpoints.glob("conflict-*")):
                stale_files += [path for _, path in list_checkpoints(folder)] + [*folder.glob(f"*{REFUSED}")]
            logs = log_path(store, run.run_id)
            stale_files += logs.parent.glob(f"{logs.name}*.log")
        below = [file for path in stale_files for file in (path, *path.rglob("*")) if not file.is_dir()]
        freed = sum(file.stat().st_size for file in below)
        for path in stale_files:
            if path.is_dir():  # what is left of a repetition
                shutil.rmtree(path)
            else:
                path.unlink()
        return freed


def log_path(store: Store, run_id: str) -> Path:
    """Return how the names of the files begin that take the output of the processes of a run."""
    return store.root / "logs" / run_id


def _temporary_files(store: Store, run_id: str) -> list[Path]:
    folders = [
        (store.record_path(run_id).parent, f".{run_id}.*.tmp"),
        (store.arrays_path(run_id).parent, f".{run_id}.*.tmp"),
        (store.root / "leases", f".{run_id}.*.tmp"),
        (store.checkpoint_folder(run_id), ".*.tmp"),
        (store.root / "attempts" / run_id, ".*.tmp"),
    ]
    return [path for folder, pattern in folders for path in folder.glob(pattern) if not in_use(path)]


def _number(path: Path) -> int:
    match = re.match(r"\d+", path.name)
    return int(match.group()) if match else 0
