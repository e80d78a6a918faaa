"""What the store says of the cells of a sweep. Everything is read from it anew; nothing is remembered."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lra.config.schema import RunConfig
from lra.config.suites import labels
from lra.data.dataset import open_prepared
from lra.errors import DataError, StoreError
from lra.results.checkpoints import list_checkpoints
from lra.results.lease import acquire, holder
from lra.results.records import Store
from lra.tasks import get_task

MAX_ATTEMPTS = 3
"""Failed attempts after which a cell is left alone until `retry`."""
NO_NUMBER = ("diverged", "oom", "failed", "timeout", "damaged")


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepCell:
    """One cell of a sweep."""

    label: str
    config: RunConfig
    run_id: str | None
    """None while the data is not prepared, whose content is part of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellState:
    """Where a cell stands."""

    word: str
    """Status of the record or the last attempt, `running`, `damaged` (its record is), or `not run`."""
    detail: str = ""
    failures: int = 0
    """Failed attempts so far."""
    step: int = 0
    """Steps done, as far as the store knows."""

    @property
    def final(self) -> bool:
        """Whether a sweep leaves the cell alone."""
        return self.word in {"ok", "diverged", "oom", "timeout", "damaged"} or (
            self.word == "failed" and self.failures >= MAX_ATTEMPTS
        )


def sweep_runs(configs: Sequence[RunConfig], home: Path) -> list[SweepCell]:
    """Give the cells their ids, as far as their data is prepared."""
    digests: dict[Path, str | None] = {}
    cells = []
    for config, label in zip(configs, labels(list(configs)), strict=True):
        folder = data_folder(config, home)
        if folder not in digests:
            try:
                digests[folder] = open_prepared(folder, verify=False).digest
            except DataError:
                digests[folder] = None
        digest = digests[folder]
        cells.append(SweepCell(label=label, config=config, run_id=digest and config.run_id(digest)))
    return cells


def data_folder(config: RunConfig, home: Path) -> Path:
    """Return where the prepared data of a cell is, or would be."""
    task = get_task(config.task)
    return home / task.folder_name(task.options.model_validate(config.data))


def state_of(store: Store, cell: SweepCell) -> CellState:
    """Read where a cell stands."""
    if cell.run_id is None:
        return CellState(word="not run")
    try:
        record = store.find(cell.run_id)
    except StoreError as error:
        return CellState(word="damaged", detail=str(error))
    notes = attempts(store, cell.run_id)
    failures = sum(note["status"] == "failed" for note in notes)
    if record is not None:
        detail = record.detail
        if record.outcome is not None:
            test = record.outcome.test
            detail = f"{100 * test.correct / test.total:.2f} % of test, {record.cost.wall_seconds:.0f} s"
        return CellState(word=record.status, detail=detail, failures=failures, step=cell.config.train.steps)
    saved = list_checkpoints(store.checkpoint_folder(cell.run_id))
    step = saved[0][0] if saved else 0
    owner = holder(store.root, cell.run_id)
    if owner is not None:
        place = f"pid {owner.get('pid')} on {owner.get('host')}"
        return CellState(word="running", detail=place, failures=failures, step=max(step, int(owner.get("step", 0))))
    if not notes or notes[-1]["status"] in ("ok", "diverged"):  # the record of such a note was removed by hand
        return CellState(word="not run", step=step)
    last = notes[-1]
    detail = (str(last["detail"]).strip().splitlines() or [""])[-1]
    return CellState(word=last["status"], detail=detail, failures=failures, step=step)


def attempts(store: Store, run_id: str) -> list[dict[str, Any]]:
    """Read the notes of the attempts on a cell that count, oldest first."""
    notes = []
    for path in sorted((store.root / "attempts" / run_id).glob("*.json"), key=_number):
        try:
            note = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue  # a note that cannot be read says nothing; the cell is tried again
        if isinstance(note, dict) and {"status", "detail"} <= note.keys():
            notes.append(note)
    return notes


def clear_failures(store: Store, cell: SweepCell) -> bool:
    """Set the notes of a cell without a record aside, so that it is tried again; return whether there were any."""
    if cell.run_id is None or state_of(store, cell).word in ("ok", "diverged", "running", "not run", "preempted"):
        return False
    folder = store.root / "attempts" / cell.run_id
    notes = sorted(folder.glob("*.json"))
    round_number = len(list(folder.glob("cleared-*"))) + 1
    for note in notes:
        target = folder / f"cleared-{round_number}"
        target.mkdir(exist_ok=True)
        note.rename(target / note.name)
    return bool(notes)


def collect_garbage(store: Store, cell: SweepCell) -> int:
    """Remove what a cell no longer needs: checkpoints and log of a finished one, temporary files of dead processes.

    The weights that were scored (`chosen.pt`), and all checkpoints of a cell without a record, stay. A cell that
    somebody is running is not touched.

    Returns:
        Bytes that were freed.

    Raises:
        OSError: The store cannot be changed.
    """
    if cell.run_id is None:
        return 0
    with acquire(store.root, cell.run_id, give_up=lambda: True) as ours:
        if not ours:
            return 0
        rubbish = _temporaries(store, cell.run_id)
        if state_of(store, cell).word in ("ok", "diverged"):
            rubbish += [path for _, path in list_checkpoints(store.checkpoint_folder(cell.run_id))]
            rubbish += [path for path in [log_path(store, cell.run_id)] if path.exists()]
        freed = sum(path.stat().st_size for path in rubbish)
        for path in rubbish:
            path.unlink()
        return freed


def log_path(store: Store, run_id: str) -> Path:
    """Return the file with the output of the processes that ran a cell for a sweep."""
    return store.root / "logs" / f"{run_id}.log"


def _temporaries(store: Store, run_id: str) -> list[Path]:
    folders = [
        (store.record_path(run_id).parent, f".{run_id}.*.tmp"),
        (store.arrays_path(run_id).parent, f".{run_id}.*.tmp"),
        (store.root / "claims", f".{run_id}.*.tmp"),
        (store.checkpoint_folder(run_id), ".*.tmp"),
        (store.root / "attempts" / run_id, ".*.tmp"),
    ]
    ours = f".{os.getpid()}-"  # the heartbeat of the claim that we hold for this
    return [path for folder, pattern in folders for path in folder.glob(pattern) if ours not in path.name]


def _number(path: Path) -> int:
    match = re.match(r"\d+", path.name)
    return int(match.group()) if match else 0
