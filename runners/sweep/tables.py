# SPDX-License-Identifier: Apache-2.0
"""The tables that `lra-sweep plan` and `lra-sweep status` print."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from lra.config.schema import RunConfig, canonical_json
from lra.data.dataset import read_manifest
from lra.results.records import Cost, Store

from ..train.cost import examples_to_score, parameters_of
from .launchers.base import Job
from .launchers.process import run_job
from .state import SweepRun, data_folder, state_of, tally

TRIAL_STEPS = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """How a sweep would run: what an estimate of its time depends on."""

    slots: int
    """Runs at a time."""
    threads: int
    """CPU threads of each."""
    device: str


def status_table(runs: Sequence[SweepRun], store: Store) -> str:
    """Format the state of each run."""
    states = [state_of(store, run) for run in runs]
    rows = [
        (run.label, state.word, f"{state.step}/{run.config.train.steps}", state.failures or "", state.detail[:100])
        for run, state in zip(runs, states, strict=True)
    ]
    table = tabulate(rows, headers=("run", "status", "step", "failures", "detail"), disable_numparse=True)
    return f"{table}\n\n{len(runs)} runs: {tally(states)}"


def plan_table(runs: Sequence[SweepRun], store_folder: Path, home: Path, probe: Probe | None = None) -> str:
    """Format the runs with their parameters, and if wanted with operations, time and memory from a few steps.

    Runs that differ only in their seed share one estimate.

    Args:
        runs: The runs.
        store_folder: The store, from which their states are read.
        home: Folder of prepared data.
        probe: How the sweep would run them; None estimates nothing.
    """
    store = Store(store_folder)
    states = [state_of(store, run) for run in runs]
    measured: dict[bytes, Cost | None] = {}
    rows, minutes = [], 0.0
    for run, state in zip(runs, states, strict=True):
        config = run.config
        key = canonical_json(config.model_dump(exclude={"seed"}))
        parameters, full = parameters_of(config)
        row = [run.label, state.word, str(config.train.steps), f"{parameters:,}", f"{parameters / full:.3f}"]
        if probe is not None:
            if key not in measured:
                measured[key] = None if state.final else _measure_cost(config, home, probe)
            estimate, memory, cost = "-", "-", measured[key]
            if cost is not None and cost.examples_per_second and not state.final:
                left = _examples_left(config, state.step, home) / cost.examples_per_second / 60
                minutes, estimate = minutes + left, f"{left:.1f}"
                memory = "-" if cost.peak_memory_bytes is None else f"{cost.peak_memory_bytes / 2**20:,.0f}"
            examples = config.train.steps * config.train.batch_size
            operations = "-" if cost is None or cost.flops is None else f"{cost.flops * examples / 1e12:,.1f}"
            row += [operations, estimate, memory]
        rows.append(row)
    headers = ["run", "status", "steps", "parameters", "x full", *(["TFLOPs", "minutes", "peak MiB"] if probe else [])]
    lines = [tabulate(rows, headers=headers, disable_numparse=True), "", f"{len(runs)} runs: {tally(states)}"]
    if probe is not None:
        lines.append(
            f"Left: {minutes / probe.slots:.0f} minutes in all on {probe.device}, evaluations included, with "
            f"{probe.slots} runs at a time and {probe.threads} threads each. TFLOPs: at most, of the whole training."
        )
    return "\n".join(lines)


def _examples_left(config: RunConfig, step: int, home: Path) -> float:
    """Count the examples to train on and to score; one that is scored counts a third: forward without backward."""
    splits = read_manifest(data_folder(config, home)).splits
    scored = examples_to_score(config.train, step, splits["validation"].examples, splits["test"].examples)
    return (config.train.steps - step) * config.train.batch_size + scored / 3


def _measure_cost(config: RunConfig, home: Path, probe: Probe) -> Cost | None:
    """Train a few steps in a process and a temporary store of their own; return None if that fails."""
    train = config.train.model_copy(update={"steps": TRIAL_STEPS, "eval_every": TRIAL_STEPS, "selection": "last"})
    short = config.model_copy(update={"train": train, "track": "open"})
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        where = ("--store", folder, "--data-dir", str(home), "--device", probe.device)
        arguments = (*where, "--threads", str(probe.threads), "--quiet")
        job = Job(key="trial", config=short.model_dump_json(), arguments=arguments, log=Path(folder) / "log")
        run_job(job, {}, lambda: False)
        records = [record for record in store.records() if not isinstance(record, Exception)]
        return records[0].cost if records else None
