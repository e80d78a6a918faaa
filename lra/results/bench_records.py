# SPDX-License-Identifier: Apache-2.0
"""What `lra-bench` leaves behind: one JSON file per variant, length and settings, `<store>/bench/<settings-id>.json`.

Unlike the record of a run, a measurement is never final: measuring again replaces the file.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lra.atomic_io import atomic_write
from lra.config.schema import RunConfig, Section, canonical_json, without_folder
from lra.errors import DamagedFileError, StoreError, refusals_as
from lra.measure.environment import decisive
from lra.measure.flops import FlopCount
from lra.names import rename_fields
from lra.reading import reading, visible
from lra.results.envelope import pack_envelope, read_envelope
from lra.results.records import Measure, Natural, Positive, Title
from lra.results.upgrades import title_from_name, without_own_version

BENCH_SCHEMA_VERSION = 3
RENAMED_IN_SCHEMA_2 = {
    "meter": "counter",
    "check_meter": "check_counter",
    "canary_bytes": "self_test_bytes",
    "canary_check_bytes": "self_test_check_bytes",
}
MIB = 2**20
SELF_TEST_BYTES = 48 * MIB
"""Three tensors of 16 MiB, held at once."""
NOISY_SHARE = 0.10


class Timing(Section):
    """Times of single steps, warm-up left out."""

    seconds: Annotated[list[Annotated[float, Field(gt=0.0, allow_inf_nan=False)]], Field(min_length=1)]
    """In the order measured."""
    warmup_steps: Natural

    @property
    def median(self) -> float:
        """Median seconds per step."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        if len(self.seconds) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (third - first) / self.median

    @property
    def noisy(self) -> bool:
        """Whether the spread is above 10 %: something else was using the machine."""
        return self.spread > NOISY_SHARE


class MemoryMeasurement(Section):
    """Peak memory of single steps over what was there before them, in bytes: from one fresh process."""

    counter: str
    """How `step_bytes` was read."""
    step_bytes: Annotated[list[Natural], Field(min_length=1)]
    """The headline: forward, backward and optimiser, gradients included, parameters and optimiser state not."""
    check_counter: str
    """How `check_bytes` was read; empty on CUDA, where the allocator's own mark is the only counter."""
    check_bytes: list[Natural]
    self_test_bytes: Natural
    """What the counters read of a known allocation of 48 MiB."""
    self_test_check_bytes: Natural | None
    state_bytes: Natural
    """Parameters, buffers and optimiser state, which live between steps."""
    reserved_bytes: Natural | None = None
    """CUDA: peak of what the allocator took from the device."""

    @property
    def step(self) -> int:
        """Median peak of a step."""
        return round(statistics.median(self.step_bytes))

    @property
    def total(self) -> int:
        """Median peak of a step with what lives between steps."""
        return self.step + self.state_bytes

    @property
    def problem(self) -> str:
        """Why the measurement cannot be quoted; empty if it can."""
        self_tests = [
            self.self_test_bytes,
            *([] if self.self_test_check_bytes is None else [self.self_test_check_bytes]),
        ]
        if any(abs(self_test - SELF_TEST_BYTES) > SELF_TEST_BYTES / 100 for self_test in self_tests):
            return f"the counters read {' and '.join(mib(c) for c in self_tests)} of a known allocation of 48.0 MiB"
        if self.check_counter and not self.check_bytes:
            return "no second counter on this platform"
        if self.check_bytes and not counters_agree(self.step, round(statistics.median(self.check_bytes))):
            return f"the counters disagree: {mib(self.step)} and {mib(round(statistics.median(self.check_bytes)))}"
        return ""


class BenchRecord(Section):
    """The measurements of one variant at one length under one set of settings."""

    schema_version: int = BENCH_SCHEMA_VERSION
    settings_id: str
    status: Literal["ok", "oom", "failed"]
    """`oom`: a step needs more memory than there is, which is a finding, not a fault."""
    detail: str
    variant_title: Title
    """How tables and figures call the variant."""
    config: RunConfig
    """Variant, task and sizes; `model.max_length` is the length, `train.batch_size` the batch on this one device."""
    device_type: str
    threads: Positive
    memory_limit: Positive | None = None
    """Bytes that a step might take; None: what the machine has. New in schema 3."""
    parameters: Positive | None
    backend: str
    """Implementation that the variant resolved to."""
    timing: Timing | None
    speed_ratio: Measure | None
    """Steps per second over those of `full`: the median over the cycles of the interleaved measurement."""
    memory: MemoryMeasurement | None
    flops: FlopCount | None
    environment: dict[str, Any]
    measured_at: str
    """UTC, ISO 8601."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.status == "ok") != (self.timing is not None and self.memory is not None):
            raise ValueError(f"status {self.status} does not fit its timing and memory")
        if {"device", "cpu", "torch", "load_average"} - self.environment.keys():
            raise ValueError("the environment does not name processor, torch and load")
        if not 0 <= float(self.environment["load_average"]) < math.inf:
            raise ValueError(f"a load of {self.environment['load_average']}")
        datetime.fromisoformat(self.measured_at)
        return self

    @property
    def processor(self) -> str:
        """Name of the device that was measured."""
        return str(self.environment["device" if self.device_type == "cuda" else "cpu"])

    @property
    def variant(self) -> str:
        """Name of the variant, without the folder of its file."""
        return without_folder(self.config.variant.name)

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return self.config.model.max_length

    @property
    def batch_size(self) -> int:
        """Sequences (or pairs) in a step."""
        return self.config.train.batch_size


def mib(size: int) -> str:
    """Write bytes as MiB."""
    return f"{size / MIB:.1f} MiB"


def counters_agree(first: int, second: int) -> bool:
    """Say whether two counters that share no code read the same: within 2 MiB or 3 %, whichever is more."""
    return abs(first - second) <= max(2 * MIB, 0.03 * max(first, second))


def settings_id(config: RunConfig, *, device: str, threads: int, memory_limit: int | None) -> str:
    """Return the id of what is measured and on what; the name of the file begins with it."""
    identity = {"config": config.hashed(), "device": device, "threads": threads, "memory_limit": memory_limit}
    return hashlib.sha256(canonical_json(identity)).hexdigest()[:20]


def file_stem(record: BenchRecord) -> str:
    """Return the name of the file of a record: its id, and what of its environment decides what a step computes."""
    environment = hashlib.sha256(canonical_json(decisive(record.environment))).hexdigest()
    return f"{record.settings_id}-{environment[:8]}"


def save_bench_record(store: Path, record: BenchRecord) -> Path:
    """Write a record into a store, in place of an earlier one of the same settings and environment.

    Raises:
        StoreError: The disk refuses.
    """
    path = store / "bench" / f"{file_stem(record)}.json"
    with refusals_as(StoreError, f"cannot write {path}"):
        atomic_write(path, pack_envelope("bench", record.model_dump()))
    return path


def read_bench_record(path: Path) -> BenchRecord:
    """Read and check one record; its id has to be the name of the file and the hash of its settings.

    Raises:
        DamagedFileError: The file is damaged, foreign, or of a newer schema.
    """
    body = read_envelope(path, "bench", BENCH_SCHEMA_VERSION)
    with reading(path, DamagedFileError):
        record = BenchRecord.model_validate(upgrade_bench_record(body))
        on, threads, limit = record.processor, record.threads, record.memory_limit
        written = RunConfig.model_validate(body["config"])  # schema 1 hashed the version of this project as well
        own_id = settings_id(written, device=on, threads=threads, memory_limit=limit)
        if record.settings_id != own_id or path.stem not in (own_id, file_stem(record)):  # older names have no ending
            raise DamagedFileError(f"{path} is not the measurement of its name, or has other settings than its id")
    return record


def upgrade_bench_record(body: dict[str, Any]) -> dict[str, Any]:
    """Return the body of a bench record in the current schema; see `lra.results.upgrades.upgrade_record`."""
    new = {"schema_version": BENCH_SCHEMA_VERSION, "memory_limit": None}
    if body["schema_version"] == 2:
        return body | new
    if body["schema_version"] != 1:
        return body
    title = title_from_name(body["config"]["variant"]["name"])
    body = body | new | {"config": without_own_version(body["config"]), "variant_title": title}
    if body["memory"] is not None:
        body["memory"] = rename_fields(body["memory"], RENAMED_IN_SCHEMA_2)
    return body


def bench_records(store: Path, files: Iterable[Path] | None = None) -> Iterator[BenchRecord | StoreError]:
    """Yield every measurement of a store; a damaged or foreign file comes as the error that says so.

    Args:
        store: The folder.
        files: Those of a listing of it; None lists it.
    """
    for path in visible(store / "bench", "*.json", StoreError) if files is None else files:
        try:
            yield read_bench_record(path)
        except StoreError as error:
            yield error
