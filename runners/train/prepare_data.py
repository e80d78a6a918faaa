# SPDX-License-Identifier: Apache-2.0
"""Opens or builds the data of the runs before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lra.config.schema import NUMERICS_VERSION
from lra.errors import DataError
from lra.tasks import get_task
from lra.terminal import echo

from .. import signals
from .distributed import RankInfo, all_equal, barrier

if TYPE_CHECKING:
    from lra.config.schema import RunConfig
    from lra.data.dataset import PreparedData
    from lra.results.records import RunRecord


def prepare(config: RunConfig, home: Path, *, progress: bool) -> PreparedData:
    """Open the data of a run, building it first if it can be generated.

    Raises:
        DataError: The data is missing or damaged.
        StoppedError: A signal asked the process to end.
    """
    task = get_task(config.task)
    with signals.stop_at_once():
        return task.prepare(task.options.model_validate(config.data), home, progress=progress)


def prepare_all(
    configs: Sequence[RunConfig], ranks: RankInfo, home: Path, *, progress: bool
) -> dict[str, PreparedData]:
    """Prepare the data of each task, by task. Data that is read from files comes before data that is generated.

    On each machine the process of local rank 0 builds the data, and the other processes open it afterwards.

    Raises:
        DataError: Data is missing; the message lists all of it, before minutes are spent on generating other data.
            Or the machines have different data, or were given different settings.
    """
    prepared: dict[str, PreparedData] = {}
    missing: list[str] = []
    for config in sorted({config.task: config for config in configs}.values(), key=_generated):
        if missing and _generated(config):
            break
        try:
            if ranks.local_rank > 0:
                barrier(ranks)
            data = prepared[config.task] = prepare(config, home, progress=progress and ranks.is_main)
            if ranks.local_rank == 0:
                barrier(ranks)
            if not all_equal(data.digest, ranks):
                raise DataError(f"the processes of this run have different data for task {config.task}")
            if not all_equal(config.run_id(data.digest), ranks):
                raise DataError("the processes of this run have different settings; start each by the same command")
        except DataError as error:
            missing.append(str(error))
    if missing:
        raise DataError("\n".join(missing))
    return prepared


def check_repeats(record: RunRecord, data: PreparedData) -> None:
    """Check that the configuration of a record, run here on this data, is the run of that record.

    If only the numerics version of the record is another one, a line says so.

    Raises:
        DataError: The record was made with other data.
    """
    if data.digest != record.data_digest:
        raise DataError(
            f"{data.path}: not the data of run {record.run_id[:12]}, whose digest is {record.data_digest[:12]}, here "
            f"{data.digest[:12]}; to run its settings on this data, write them without --config"
        )
    if record.numerics_version != NUMERICS_VERSION:
        echo(
            f"Run {record.run_id[:12]} was made at numerics version {record.numerics_version}, this is version "
            f"{NUMERICS_VERSION}: it is another run, under another id.",
            err=True,
        )


def _generated(config: RunConfig) -> bool:
    task = get_task(config.task)
    return task.source_key(task.options.model_validate(config.data)) is None
