"""The data of a run, opened or made before anything is trained."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lra.errors import DataError
from lra.tasks import get_task

from .. import signals

if TYPE_CHECKING:
    from lra.config.schema import RunConfig
    from lra.data.dataset import PreparedData

    from .distributed import Place, Team


def prepare(config: RunConfig, home: Path, *, progress: bool) -> PreparedData:
    """Open the data of a run, building it first if it can be generated."""
    task = get_task(config.task)
    return task.prepare(task.options.model_validate(config.data), home, progress=progress)


def prepare_for(team: Team, here: Place, config: RunConfig, home: Path, *, progress: bool) -> PreparedData:
    """Prepare the data of a run once on each machine: its first process builds, the others open what it built.

    Raises:
        DataError: The machines have different data.
    """
    if here.local_rank > 0:
        team.meet()
    data = prepare(config, home, progress=progress and team.leads)
    if here.local_rank == 0:
        team.meet()
    if not team.same(data.digest):
        raise DataError(f"the processes of this run have different data for task {config.task}")
    return data


def prepare_all(
    cells: Sequence[RunConfig], team: Team, here: Place, home: Path, *, progress: bool
) -> dict[str, PreparedData]:
    """Prepare the data of each task of some cells, by task; what is read from a file comes before what is generated.

    Raises:
        DataError: All that is missing, before anything is generated that takes minutes.
    """
    prepared: dict[str, PreparedData] = {}
    missing: list[str] = []
    for config in sorted({config.task: config for config in cells}.values(), key=_generated):
        if missing and _generated(config):
            break
        if signals.stop_requested():
            sys.exit(signals.EXIT_PREEMPTED)
        try:
            prepared[config.task] = prepare_for(team, here, config, home, progress=progress)
        except DataError as error:
            missing.append(str(error))
    if missing:
        raise DataError("\n".join(missing))
    return prepared


def _generated(config: RunConfig) -> bool:
    task = get_task(config.task)
    return task.source_key(task.options.model_validate(config.data)) is None
