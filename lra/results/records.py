# SPDX-License-Identifier: Apache-2.0
"""Records of runs: one immutable file per run, its arrays beside it, and a note of every attempt.

Layout of a store:

    results/ab/<run-id>.json             one record; appears once, whole, and is never edited
    results/ab/<run-id>.conflict-1.json  another outcome of the same run, which is an alarm; kept for inspection
    arrays/ab/<run-id>.npz               learning curve and the correctness bits of the test examples
    attempts/<run-id>/<n>-<host>-<pid>.json
    checkpoints/<run-id>/                see `lra.results.checkpoints`
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lra.atomic_io import atomic_write, create_exclusive
from lra.config.schema import NUMERICS_VERSION, RunConfig, Section
from lra.errors import StoreError
from lra.names import rename_fields
from lra.results.envelope import pack_envelope, read_envelope

SCHEMA_VERSION = 2
RENAMED_IN_SCHEMA_2 = {"cell_id": "run_id", "data_edition": "dataset", "rails": "baselines"}

FinalStatus = Literal["ok", "diverged"]
AttemptStatus = Literal["ok", "diverged", "oom", "failed", "timeout", "preempted"]


class Count(Section):
    """A score as counts."""

    correct: int
    total: int
    loss: float
    """Mean cross-entropy, in nats."""


class Outcome(Section):
    """What the run found. The same each time that a run id is run on the same kind of machine."""

    test: Count
    validation: Count
    selected_step: int
    """Step whose weights were scored."""
    weights_digest: str
    """SHA-256 of those weights."""


class Cost(Section):
    """What the run took."""

    parameters: int
    parameters_full: int
    """Parameters of the same model with the variant `full`."""
    flops: int | None
    """Floating-point operations of one example of the longest length, forward and backward, as far as they have a
    formula: see `lra.measure.flops`. None: they could not be counted."""
    train_seconds: float
    """Time in training steps, without warm-up steps, evaluation and checkpoints."""
    examples_per_second: float | None
    tokens_per_second: float | None
    """Real tokens, padding not counted."""
    wall_seconds: float
    """All attempts together, everything included, as far as they were checkpointed."""
    peak_memory_bytes: int | None
    peak_memory_method: str
    resumed: int
    """How often the run was continued from a checkpoint."""


class RunRecord(Section):
    """The final result of one run."""

    schema_version: int = SCHEMA_VERSION
    run_id: str
    status: FinalStatus
    detail: str = ""
    config: RunConfig
    numerics_version: int
    task_title: str
    variant_title: str
    """How tables and figures call the variant."""
    dataset: str
    data_digest: str
    baselines: dict[str, float]
    """Accuracies, in percent, of answers that need no model."""
    outcome: Outcome | None
    """None unless the status is `ok`."""
    cost: Cost
    backend: str
    environment: dict[str, Any]
    arrays_sha256: str
    finished_at: str
    """UTC, ISO 8601."""


class AttemptedRun(Section):
    """What an attempt tried to run; with it, a table can show the status of a run without a record."""

    run_id: str
    status: AttemptStatus
    config: RunConfig
    numerics_version: int = NUMERICS_VERSION
    task_title: str
    variant_title: str
    dataset: str
    data_digest: str


class Store:
    """A folder of results. Safe for several processes; nothing in it is overwritten.

    Raises:
        StoreError: The folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def check_writable(self) -> None:
        """Find out before hours of training whether results can be kept.

        Raises:
            StoreError: They cannot.
        """
        probe = self.root / f".probe-{os.getpid()}"
        try:
            atomic_write(probe, b"")
            probe.unlink()
        except OSError as error:
            raise StoreError(f"cannot write to the store {self.root}: {error.strerror or error}") from error

    def record_path(self, run_id: str) -> Path:
        """Return where the record of a run is, or would be."""
        return self.root / "results" / run_id[:2] / f"{run_id}.json"

    def arrays_path(self, run_id: str) -> Path:
        """Return where the arrays of a run are, or would be."""
        return self.root / "arrays" / run_id[:2] / f"{run_id}.npz"

    def checkpoint_folder(self, run_id: str) -> Path:
        """Return the folder of a run's checkpoints."""
        return self.root / "checkpoints" / run_id

    def find(self, run_id: str) -> RunRecord | None:
        """Return the record of a run, or None if the run has not been completed.

        Raises:
            StoreError: There is a record, and it is damaged.
        """
        path = self.record_path(run_id)
        return read_record(path) if path.exists() else None

    def publish(self, record: RunRecord, arrays: dict[str, np.ndarray]) -> RunRecord:
        """Make a result final: arrays first, then the record, each whole or absent.

        Returns:
            The record that is in the store: ours, or the one that another process published first.

        Raises:
            StoreError: The disk refuses, or the record that is there already says something else; ours is then kept
                beside it under a name with `conflict`.
        """
        content = pack_arrays(arrays)
        record = record.model_copy(update={"arrays_sha256": hashlib.sha256(content).hexdigest()})
        path = self.record_path(record.run_id)
        try:
            if self.find(record.run_id) is None:
                atomic_write(self.arrays_path(record.run_id), content)
                if create_exclusive(path, pack_envelope("record", record.model_dump())):
                    return record
            present = read_record(path)
            if (present.status, present.outcome) == (record.status, record.outcome):
                return present
            number = 1
            while not create_exclusive(
                path.with_suffix(f".conflict-{number}.json"), pack_envelope("record", record.model_dump())
            ):
                number += 1
        except OSError as error:
            raise StoreError(f"cannot write the result to {path}: {error.strerror or error}") from error
        raise StoreError(f"{path} holds another outcome of the same run; ours is kept as conflict-{number} beside it")

    def log_attempt(
        self,
        run_id: str,
        status: AttemptStatus,
        detail: str,
        environment: dict[str, Any],
        run: AttemptedRun | None = None,
    ) -> None:
        """Write a note of one attempt, however it ended.

        Args:
            run_id: The run.
            status: How the attempt ended.
            detail: More about it.
            environment: See `lra.measure.environment`.
            run: What was tried; without it, reports can count the attempt but not place it.

        Raises:
            StoreError: The disk refuses.
        """
        folder = self.root / "attempts" / run_id
        note = {"status": status, "detail": detail, "environment": environment, "schema_version": SCHEMA_VERSION}
        if run is not None:
            note["run"] = run.model_dump()
        body = json.dumps(note, indent=1, sort_keys=True, allow_nan=False).encode()
        number = len(list(folder.glob("*.json"))) + 1
        try:
            while not create_exclusive(folder / f"{number}-{socket.gethostname()}-{os.getpid()}.json", body):
                number += 1
        except OSError as error:
            raise StoreError(f"cannot write to {folder}: {error.strerror or error}") from error

    def records(self) -> Iterator[RunRecord | StoreError]:
        """Yield every record; a damaged or foreign one comes as the error that says so."""
        for path in sorted((self.root / "results").glob("*/*.json")):
            if ".conflict-" not in path.name:
                try:
                    yield read_record(path)
                except StoreError as error:
                    yield error

    def arrays(self, run_id: str) -> dict[str, np.ndarray]:
        """Return the arrays of a run: curve columns `curve.*`, and `test_correct`, one bool per test example.

        Raises:
            StoreError: They are missing or not those of the record.
        """
        record, path = self.find(run_id), self.arrays_path(run_id)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        if record is None or hashlib.sha256(content).hexdigest() != record.arrays_sha256:
            raise StoreError(f"{path} is not what its record says")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def read_record(path: Path) -> RunRecord:
    """Read and check one record.

    Raises:
        StoreError: The file is damaged, foreign, or of a newer schema.
    """
    body = read_envelope(path, "record", SCHEMA_VERSION)
    try:
        return RunRecord.model_validate(upgrade_record(body))
    except (ValueError, KeyError, TypeError) as error:  # of Pydantic, or of an upgrade of something else
        raise StoreError(f"{path} is not the record of a run: {str(error).splitlines()[0]}") from error


def read_attempt(path: Path) -> AttemptedRun:
    """Read what one attempt tried to run.

    Raises:
        StoreError: The file is damaged or foreign, or does not say what was tried.
    """
    try:
        note = json.loads(path.read_bytes())
        if note.get("schema_version") == 1 and "cell" in note:
            tried = rename_fields(note["cell"], {"cell_id": "run_id", "data_edition": "dataset"})
            config = without_own_version(tried["config"])
            note["run"] = tried | {"config": config, "variant_title": title_from_name(config["variant"]["name"])}
        if "run" in note:
            return AttemptedRun.model_validate(note["run"])
        raise StoreError(f"{path}: an attempt ({note['status']}) that does not say what it tried")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is not a note of an attempt: {str(error).splitlines()[0]}") from error


def upgrade_record(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a record in the current schema.

    Schema 1 had other names for three fields, and the version of this project in the origin of its own variants. The id
    of a run hashed that version, so a record of schema 1 keeps an id of its own until `benchmarks.migrate_store` has
    renamed it.
    """
    if body["schema_version"] != 1:
        return body
    body = rename_fields(body, RENAMED_IN_SCHEMA_2)
    config = without_own_version(body["config"])
    return body | {"schema_version": 2, "config": config, "variant_title": title_from_name(config["variant"]["name"])}


def title_from_name(name: str) -> str:
    """Return a name to show for a variant whose own title is not known here."""
    return name.replace("_", " ").capitalize()


def without_own_version(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration of schema 1 without the version of this project in the origin of its own variants."""
    variant = config["variant"]
    own = variant["origin"].startswith("lra-harness ")
    return config | {"variant": variant | {"origin": ""}} if own else config


def pack_arrays(arrays: dict[str, np.ndarray]) -> bytes:
    """Serialise arrays to the bytes of an .npz file; equal arrays give equal bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()
