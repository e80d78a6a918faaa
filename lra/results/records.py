# SPDX-License-Identifier: Apache-2.0
"""Records of runs: one immutable file per run, its arrays beside it, and a note of every attempt.

Layout of a store:

    results/ab/<run-id>.json             one record; appears once, whole, and is never edited
    results/ab/<run-id>.conflict-1.json  another outcome of the same run, which is an alarm; kept for inspection
    arrays/ab/<run-id>.npz               learning curve and the correctness bits of the test examples
    attempts/<run-id>/<n>-<host>-<pid>.json
    checkpoints/<run-id>/                see `lra.results.checkpoints`; `chosen.pt` has the weights that were scored
    checkpoints/<run-id>/again/          the same of a run that `--force` repeats, until it has ended
    checkpoints/<run-id>/conflict-1/     the same of a repetition with another outcome
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from lra.atomic_io import atomic_write, create_exclusive
from lra.config.schema import NUMERICS_VERSION, RunConfig, Section, canonical_json
from lra.errors import DamagedFileError, StoreError, refusals_as
from lra.metrics import beatable, is_above
from lra.names import legible, rename_fields
from lra.reading import is_there, read_file, reading, visible
from lra.results.arrays import ARRAYS_LIMIT, SEAL, pack_arrays, seal, unpack_arrays
from lra.results.envelope import pack_envelope, read_envelope, read_json
from lra.results.upgrades import title_from_name, upgrade_record, without_own_version

SCHEMA_VERSION = 2
EARLIER = "earlier_environments"
"""Key in the environment of a record that was continued under another one, which its last bits may depend on."""

FinalStatus = Literal["ok", "diverged"]
AttemptStatus = Literal["ok", "diverged", "oom", "failed", "timeout", "preempted"]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Title = Annotated[str, AfterValidator(legible)]
Natural = Annotated[int, Field(ge=0, lt=2**63)]
Positive = Annotated[int, Field(ge=1, lt=2**63)]
Measure = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Speed = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0.0, le=100.0)]


class Count(Section):
    """A score as counts."""

    correct: Natural
    total: Positive
    loss: Measure
    """Mean cross-entropy, in nats."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.correct > self.total:
            raise ValueError(f"{self.correct} right answers of {self.total}")
        return self


class Outcome(Section):
    """What the run found.

    The same each time that a run id is run on the same kind of machine, with the same number of threads and the same
    version of torch. On another one, the last bits of the weights may differ, and with them single answers.
    """

    test: Count
    validation: Count
    selected_step: Positive
    """Step whose weights were scored."""
    weights_digest: Digest
    """SHA-256 of those weights."""


class Pretrained(Section):
    """What pretraining gave."""

    steps: Positive
    """Steps of the phase."""
    selected_step: Positive
    """Step whose weights the task began with: those of the least loss on held-out inputs."""
    validation: Count
    """Hidden places of the held-out inputs, and how many of them were predicted rightly; the loss is a mean over
    them."""
    weights_digest: Digest
    """SHA-256 of those weights."""


class Cost(Section):
    """What the run took."""

    parameters: Positive
    parameters_full: Positive
    """Parameters of the same model with the variant `full`; of a convnet, which has no place for it, its own."""
    flops: Positive | None
    """Floating-point operations of one example of the longest length, forward and backward, as far as they have a
    formula: see `lra.measure.flops`. None: they could not be counted."""
    train_seconds: Measure
    """Time in training steps, without warm-up steps, evaluation and checkpoints."""
    examples_per_second: Speed | None
    tokens_per_second: Speed | None
    """Real tokens, padding not counted."""
    wall_seconds: Measure
    """All attempts together, everything included, as far as they were checkpointed."""
    peak_memory_bytes: Natural | None
    peak_memory_method: str
    peak_reserved_bytes: Natural | None = None
    """What torch held of a CUDA device at most, in use or kept for later; None elsewhere, and in older records."""
    resumed: Natural
    """How often the run was continued from a checkpoint, as far as that was checkpointed."""


class RunRecord(Section):
    """The final result of one run."""

    schema_version: int = SCHEMA_VERSION
    run_id: Digest
    status: FinalStatus
    detail: str = ""
    config: RunConfig
    numerics_version: Positive
    task_title: Title
    variant_title: Title
    """How tables and figures call the variant."""
    dataset: Title
    data_digest: Digest
    baselines: dict[str, Percent]
    """Accuracies, in percent, of answers that need no model."""
    outcome: Outcome | None
    """None unless the status is `ok`."""
    pretrained: Pretrained | None = None
    """None without pretraining, and of a run that diverged in it."""
    trained: bool | None = None
    """Whether the run is above every trivial baseline by more than the noise of its test set. None without a number,
    and in older records."""
    cost: Cost
    backend: str
    environment: dict[str, Any]
    arrays_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    """SHA-256 of the file of arrays; empty until the record is published."""
    finished_at: str
    """UTC, ISO 8601."""

    @property
    def processor(self) -> str:
        """What the run was trained on: the name of the GPU, or of the CPU."""
        device = str(self.environment.get("device", ""))
        return str(self.environment.get("cpu", device)) if device == "cpu" else device

    def unbeaten(self) -> dict[str, float]:
        """Return the trivial baselines that the run is not above by more than the noise of its test set, in percent."""
        if self.outcome is None:
            return {}
        test = self.outcome.test
        return {
            name: value
            for name, value in beatable(self.baselines).items()
            if not is_above(test.correct, test.total, value)
        }

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.status == "ok") != (self.outcome is not None):
            raise ValueError(f"status {self.status} {'without' if self.outcome is None else 'with'} an outcome")
        steps, first = self.config.train.steps, self.config.pretrain_steps
        if self.outcome is not None and not first < self.outcome.selected_step <= steps:
            raise ValueError(f"step {self.outcome.selected_step} of {first + 1} to {steps} was chosen")
        before = self.pretrained
        if before is not None and not before.selected_step <= before.steps == first:
            raise ValueError(f"step {before.selected_step} of {before.steps} of pretraining was chosen, of {first}")
        if self.outcome is not None and first and before is None:
            raise ValueError("it does not say what pretraining gave")
        if self.trained is not None and (self.outcome is None or self.trained == bool(self.unbeaten())):
            raise ValueError(f"trained is {self.trained}, which its score and its baselines do not say")
        earlier = self.environment.get(EARLIER, [{}])
        if not isinstance(earlier, list) or not earlier or not all(isinstance(each, dict) for each in earlier):
            raise ValueError(f"{EARLIER} is no list of environments")
        datetime.fromisoformat(self.finished_at)
        return self


class AttemptedRun(Section):
    """What an attempt tried to run; with it, a table can show the status of a run without a record."""

    run_id: Digest
    status: AttemptStatus
    config: RunConfig
    numerics_version: int = NUMERICS_VERSION
    task_title: Title
    variant_title: Title
    dataset: Title
    data_digest: str


class ConflictError(StoreError):
    """Two outcomes of one run; the one that came second has the name `conflict-<number>`."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number


def is_conflict(path: Path) -> bool:
    """Say whether a file of a store has the name of another outcome of a run."""
    return ".conflict-" in path.name


def conflict_words(path: Path) -> str:
    """Say what a file with the name of another outcome is; empty if its outcome is that of the record beside it."""
    kept = path.with_name(f"{path.name.partition('.')[0]}.json")
    try:
        other = read_record(path)
    except DamagedFileError as error:
        return f"under the name of another outcome: {str(error).removeprefix(f'{path}: ')}"
    if other.run_id != kept.stem:
        return f"under the name of another outcome: the record of another run, {other.run_id[:12]}"
    with contextlib.suppress(DamagedFileError):  # that it is damaged is said of itself
        first = read_record(kept)
        if (said(first), first.arrays_sha256) == (said(other), other.arrays_sha256):
            return ""
    return "another outcome of the same run"


def same_curves(kept: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray]) -> bool:
    """Say whether two runs had the same numbers on the way, in the columns that both versions wrote."""
    common = (kept.keys() & ours.keys()) - {SEAL}
    as_far = all((name in kept) == (name in ours) for name in ("curve.step", "pretrain.step"))
    return as_far and all(np.array_equal(kept[name], ours[name], equal_nan=True) for name in common)


def same_outcome(one: tuple[Store, RunRecord], other: tuple[Store, RunRecord]) -> bool:
    """Say whether records of one run in two stores, or under two numerics versions, are of equal runs.

    Raises:
        DamagedFileError: The arrays of one are missing, or not its own.
    """
    (here, first), (there, second) = one, other
    if said(first) != said(second) or first.arrays_sha256 == second.arrays_sha256:
        return said(first) == said(second)
    return same_curves(here.arrays_of(first), there.arrays_of(second))


def said(record: RunRecord) -> tuple[Any, ...]:
    """Return what two runs of one configuration must have in common; `detail` says where one diverged."""
    return record.status, record.detail, record.outcome, record.pretrained


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
        with refusals_as(StoreError, f"cannot write to the store {self.root}"):
            create_exclusive(probe, b"")
            probe.unlink()

    def record_path(self, run_id: str) -> Path:
        """Return where the record of a run is, or would be."""
        return self.root / "results" / run_id[:2] / f"{run_id}.json"

    def arrays_path(self, run_id: str) -> Path:
        """Return where the arrays of a run are, or would be."""
        return self.root / "arrays" / run_id[:2] / f"{run_id}.npz"

    def checkpoint_folder(self, run_id: str) -> Path:
        """Return the folder of a run's checkpoints."""
        return self.root / "checkpoints" / run_id

    def other_outcomes(self, run_id: str) -> dict[Path, str]:
        """Say of each file beside the record of a run, with the name of another outcome, what it is."""
        beside = visible(self.record_path(run_id).parent, f"{run_id}.conflict-*.json", StoreError)
        return {path: words for path in beside if (words := conflict_words(path))}

    def conflict_folder(self, run_id: str, number: int) -> Path:
        """Return the folder of the checkpoints of a repetition with another outcome."""
        return self.checkpoint_folder(run_id) / f"conflict-{number}"

    def find(self, run_id: str) -> RunRecord | None:
        """Return the record of a run, or None if the run has not been completed.

        Raises:
            DamagedFileError: There is a record, and it is damaged or not that of the run.
            StoreError: A folder cannot be listed, so that nobody knows.
        """
        path = self.record_path(run_id)
        return self._read(path)[0] if is_there(path, StoreError) else None

    def publish(self, record: RunRecord, arrays: dict[str, np.ndarray]) -> RunRecord:
        """Make a result final: arrays first, then the record, each whole or absent.

        Returns:
            The record that is in the store: ours, or the one that another process published first.

        Raises:
            StoreError: The disk refuses.
            ConflictError: The record that is there already says something else. Ours is kept beside it, under a name
                with `conflict`.
            ValueError: The record and the arrays disagree, so that nobody could read them.
        """
        check_arrays(record, arrays)
        content = pack_arrays({**arrays, SEAL: seal(record.model_dump())})
        record = record.model_copy(update={"arrays_sha256": hashlib.sha256(content).hexdigest()})
        path = self.record_path(record.run_id)
        with refusals_as(StoreError, f"cannot write the result to {path}"):
            if self.find(record.run_id) is None:
                atomic_write(self.arrays_path(record.run_id), content)
                if create_exclusive(path, pack_envelope("record", record.model_dump())):
                    return record
            present, kept = self._read(path)
            if said(present) == said(record) and same_curves(kept, arrays):
                return present
            number = 1  # also passed over if only the weights of an earlier one are left, or only its record
            while self.conflict_folder(record.run_id, number).exists() or not create_exclusive(
                path.with_suffix(f".conflict-{number}.json"), pack_envelope("record", record.model_dump())
            ):
                number += 1
        raise ConflictError(
            f"{path} holds another outcome of the same run; ours is kept as conflict-{number} beside it", number
        )

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
        number, writer = len(list(folder.glob("*.json"))) + 1, f"{socket.gethostname()}-{os.getpid()}"
        with refusals_as(StoreError, f"cannot write to {folder}"):
            while not create_exclusive(
                folder / f"{number}-{writer}.json",
                _pack_note(note | {"run_id": run_id, "number": number, "writer": writer}),
            ):
                number += 1

    def records(self, files: Iterable[Path] | None = None) -> Iterator[RunRecord | StoreError]:
        """Yield every record; a damaged or foreign one comes as the error that says so.

        Args:
            files: Those of a listing of the store; None lists it.
        """
        for path in visible(self.root / "results", "*/*.json", StoreError) if files is None else files:
            if not is_conflict(path):
                try:
                    yield self._read(path)[0]
                except StoreError as error:
                    yield error

    def arrays(self, run_id: str) -> dict[str, np.ndarray]:
        """Return the arrays of a run: curve columns `curve.*`, and `test_correct`, one bool per test example.

        Raises:
            DamagedFileError: They are missing or not those of the record.
        """
        return self._read(self.record_path(run_id))[1]

    def arrays_of(self, record: RunRecord) -> dict[str, np.ndarray]:
        """Return the arrays of a record that was read before, whatever has taken its place since: see `arrays`.

        Raises:
            DamagedFileError: They are missing or not those of the record.
        """
        return self._arrays_and_seal(record)[0]

    def _arrays_and_seal(self, record: RunRecord) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        file = self.arrays_path(record.run_id)
        with reading(file, DamagedFileError):
            content = read_file(file, ARRAYS_LIMIT, DamagedFileError)
            if hashlib.sha256(content).hexdigest() != record.arrays_sha256:
                raise DamagedFileError(f"{file} is not what its record says")
            arrays = unpack_arrays(content)
            found = arrays.pop(SEAL, None)
            check_arrays(record, arrays)
        return arrays, found

    def _read(self, path: Path) -> tuple[RunRecord, dict[str, np.ndarray]]:
        """Read a record and its arrays: the file has the name of the run, and all that is said twice agrees."""
        record, body = _read_record(path)
        if path != self.record_path(record.run_id):
            raise DamagedFileError(f"{path} holds the record of another run, {record.run_id[:12]}")
        arrays, found = self._arrays_and_seal(record)
        if found is not None and not np.array_equal(found, seal(body)):
            raise DamagedFileError(f"{path} is not the record that {self.arrays_path(record.run_id)} was written for")
        return record, arrays


def read_record(path: Path) -> RunRecord:
    """Read and check one record; its id is the hash of what it says of the run, and the name of a file in a store.

    Its arrays, which say some of it again, are not read: see `Store.find`.

    Raises:
        DamagedFileError: The file is damaged, foreign, or of a newer schema.
    """
    record, _ = _read_record(path)
    if re.fullmatch("[0-9a-f]{64}", path.stem) and path.stem != record.run_id:
        raise DamagedFileError(f"{path} holds the record of another run, {record.run_id[:12]}")
    return record


def _read_record(path: Path) -> tuple[RunRecord, dict[str, Any]]:
    """Read a record, and the plain values of its file."""
    body = read_envelope(path, "record", SCHEMA_VERSION)
    with reading(path, DamagedFileError):
        record = RunRecord.model_validate(upgrade_record(body))
        if record.run_id != _own_id(record, body["config"]):
            raise DamagedFileError(f"{path} is not the record of a run: its id is not that of its configuration")
    return record, body


def read_note(path: Path) -> dict[str, Any]:
    """Read the note of one attempt: it has the name and the folder under which it was written.

    Raises:
        DamagedFileError: The file is damaged, foreign, or was moved, which would change the order of the attempts.
    """
    note = read_json(path)
    with reading(path, DamagedFileError):
        body = {name: value for name, value in note.items() if name != "sha256"}
        if {"sha256", "number"} & note.keys():  # older notes have neither
            if hashlib.sha256(canonical_json(body)).hexdigest() != note.get("sha256"):
                raise DamagedFileError(f"{path} is damaged: its checksum does not match")
            writer = body.get("writer", path.stem.partition("-")[2])  # older notes do not say it
            written = f"{body['number']}-{writer}"
            if (path.parent.name, path.stem) != (body["run_id"], written):
                raise DamagedFileError(f"{path} was written as attempt {written} at run {body['run_id'][:12]}")
        tried = body.get("run") or body.get("cell") or {}
        if tried.get("status", body["status"]) != body["status"]:
            raise DamagedFileError(f"{path} says {body['status']} of the attempt, and {tried['status']} of its run")
    return body


def _pack_note(body: Mapping[str, Any]) -> bytes:
    """Serialise the note of an attempt with its checksum."""
    checksum = hashlib.sha256(canonical_json(body)).hexdigest()
    return json.dumps({**body, "sha256": checksum}, indent=1, sort_keys=True, allow_nan=False).encode()


def read_attempt(path: Path) -> AttemptedRun:
    """Read what one attempt tried to run.

    Raises:
        DamagedFileError: The file is damaged or foreign, or does not say what was tried.
    """
    note = read_note(path)
    with reading(path, DamagedFileError):
        tried = note.get("run")
        if note.get("schema_version") == 1 and "cell" in note:
            tried = rename_fields(note["cell"], {"cell_id": "run_id", "data_edition": "dataset"})
            config = without_own_version(tried["config"])
            run = tried | {"config": config, "variant_title": title_from_name(config["variant"]["name"])}
        elif tried is not None:
            run = tried
        else:
            raise DamagedFileError(f"{path}: an attempt ({note['status']}) that does not say what it tried")
        attempt = AttemptedRun.model_validate(run)
        if not path.parent.name == attempt.run_id == _own_id(attempt, tried["config"]):
            raise DamagedFileError(f"{path} is not a note of an attempt at the run of its folder")
    return attempt


def _own_id(run: RunRecord | AttemptedRun, written: Mapping[str, Any]) -> str:
    """Return the id that a run has under its own numerics version.

    It is that of the configuration as it was written: schema 1 hashed the version of this project as well.
    """
    return RunConfig.model_validate(written).run_id(run.data_digest, run.numerics_version)


def check_arrays(record: RunRecord, arrays: Mapping[str, np.ndarray]) -> None:
    """Check what a record and its arrays both say.

    Raises:
        ValueError: They disagree: in the right answers, or in the step that validation chose and its score.
    """
    outcome, bits = record.outcome, arrays.get("test_correct")
    if (bits is None) != (outcome is None):
        raise ValueError("the bits of the test examples belong to a run with a number, and to no other")
    columns = {name: column for name, column in arrays.items() if name != "test_correct"}
    steps_of = {"curve.": record.config.train.steps, "pretrain.": record.config.pretrain_steps}
    for curve, last in steps_of.items():
        rows = {column.shape for name, column in columns.items() if name.startswith(curve)}
        if len(rows) > 1 or any(len(row) != 1 for row in rows):
            raise ValueError("its learning curve is not one")
        numbers = [0.0, *columns.get(f"{curve}step", ()), math.inf]
        if not all(before < step for before, step in itertools.pairwise(numbers)) or numbers[-2] > last:
            raise ValueError(f"its learning curve has other steps than 1 to {last}, one after the other")
    if not all(name.startswith(("curve.", "pretrain.")) for name in columns):
        raise ValueError("its learning curve is not one")
    before = record.pretrained
    if not record.config.pretrain_steps and any(name.startswith("pretrain.") for name in columns):
        raise ValueError("it has a curve of pretraining, and no pretraining")
    if before is not None:
        losses = columns["pretrain.validation_loss"]
        chosen = int(losses.argmin())  # the first of equals
        if (columns["pretrain.step"][chosen], losses[chosen]) != (before.selected_step, before.validation.loss):
            raise ValueError("the curve does not have the chosen step of pretraining and its score")
    if outcome is None:
        return
    if bits is None or bits.dtype != bool or bits.shape != (outcome.test.total,) or bits.sum() != outcome.test.correct:
        raise ValueError(f"the bits do not say {outcome.test.correct} of {outcome.test.total}")
    steps, correct = columns["curve.step"], columns["curve.validation_correct"]
    if not ((correct >= 0) & (correct <= outcome.validation.total)).all():
        raise ValueError(f"its learning curve has right answers outside 0 to {outcome.validation.total}")
    last = len(steps) - 1
    chosen = int(correct.argmax()) if record.config.train.selection == "best" else last  # the first of equals
    loss = columns["curve.validation_loss"][chosen] if "curve.validation_loss" in columns else outcome.validation.loss
    scored = (steps[chosen], correct[chosen]) == (outcome.selected_step, outcome.validation.correct)
    if not (scored and math.isclose(loss, outcome.validation.loss, rel_tol=1e-3, abs_tol=1e-6)):
        raise ValueError("the curve does not have the chosen step and its score")
