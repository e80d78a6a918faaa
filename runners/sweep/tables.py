"""The tables of `lra-sweep plan` and `lra-sweep status`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from lra.config.schema import RunConfig, canonical_json
from lra.results.records import Cost, Store

from ..train.cost import parameters_of
from .driver import tally
from .launchers.base import Job
from .launchers.process import run_job
from .state import SweepCell, state_of

PROBE_STEPS = 15


def status_table(cells: Sequence[SweepCell], store: Store) -> str:
    """Lay out where each cell stands."""
    states = [state_of(store, cell) for cell in cells]
    rows = [
        (cell.label, state.word, f"{state.step}/{cell.config.train.steps}", state.failures or "", state.detail[:100])
        for cell, state in zip(cells, states, strict=True)
    ]
    table = tabulate(rows, headers=("cell", "status", "step", "failures", "detail"), disable_numparse=True)
    return f"{table}\n\n{len(cells)} cells: {tally(states)}"


def plan_table(cells: Sequence[SweepCell], store_folder: Path, home: Path, *, probe: bool) -> str:
    """Lay out the cells with their parameters; with `probe`, train each configuration for a moment and estimate.

    Cells that differ in their seed only are probed once.
    """
    store = Store(store_folder)
    states = [state_of(store, cell) for cell in cells]
    measured: dict[bytes, Cost | None] = {}
    rows, minutes = [], 0.0
    for cell, state in zip(cells, states, strict=True):
        config = cell.config
        key = canonical_json(config.model_dump(exclude={"seed"}))
        parameters, full = parameters_of(config)
        row = [cell.label, state.word, str(config.train.steps), f"{parameters:,}", f"{parameters / full:.3f}"]
        if probe:
            if key not in measured:
                measured[key] = None if state.final else _probe(config, home)
            estimate, memory, cost = "-", "-", measured[key]
            if cost is not None and cost.examples_per_second and not state.final:
                left = (config.train.steps - state.step) * config.train.batch_size / cost.examples_per_second / 60
                minutes, estimate = minutes + left, f"{left:.1f}"
                memory = "-" if cost.peak_memory_bytes is None else f"{cost.peak_memory_bytes / 2**20:,.0f}"
            row += [estimate, memory]
        rows.append(row)
    headers = ["cell", "status", "steps", "parameters", "x full", *(["minutes", "peak MiB"] if probe else [])]
    lines = [tabulate(rows, headers=headers, disable_numparse=True), "", f"{len(cells)} cells: {tally(states)}"]
    if probe:
        lines.append(f"Training left: {minutes:.0f} minutes in all, one cell at a time and without evaluations.")
    return "\n".join(lines)


def _probe(config: RunConfig, home: Path) -> Cost | None:
    """Train a few steps in a process and a store of their own; None if that fails."""
    train = config.train.model_copy(update={"steps": PROBE_STEPS, "eval_every": PROBE_STEPS, "selection": "last"})
    short = config.model_copy(update={"train": train})
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        threads = str(os.cpu_count() or 1)
        arguments = ("--store", folder, "--data-dir", str(home), "--threads", threads, "--quiet")
        job = Job(key="probe", config=short.model_dump_json(), arguments=arguments, log=Path(folder) / "log")
        run_job(job, {}, lambda: False)
        records = [record for record in store.records() if not isinstance(record, Exception)]
        return records[0].cost if records else None
