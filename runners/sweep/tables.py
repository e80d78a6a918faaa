# SPDX-License-Identifier: Apache-2.0
"""The tables that `lra-sweep plan` and `lra-sweep status` print."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from lra.config.schema import RunConfig, canonical_json
from lra.data.manifest import read_manifest
from lra.measure.model_size import parameters_of
from lra.results.records import Cost, Store

from ..train.cost import examples_to_score
from .launchers.base import Job
from .launchers.process import run_job
from .state import SweepRun, data_folder, state_of

TRIAL_STEPS = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """How a sweep would run: what an estimate of its time depends on."""

    slots: int
    """Runs at a time."""
    threads: int
    """CPU threads of each."""
    device: str


def status_rows(runs: Sequence[SweepRun], store: Store) -> list[dict[str, Any]]:
    """Return the state of each run."""
    states = [state_of(store, run) for run in runs]
    return [
        {
            "run": run.label,
            "status": state.word,
            "step": None if state.word == "diverged" else state.step,
            "steps": run.config.train.steps,
            "failures": state.failures,
            "detail": state.detail,
            "unread": list(state.unread),
        }
        for run, state in zip(runs, states, strict=True)
    ]


def status_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of `status_rows`."""
    cells = [
        (
            row["run"], row["status"], f"{'-' if row['step'] is None else row['step']}/{row['steps']}",
            row["failures"] or "", row["detail"][:100],
        )
        for row in rows
    ]  # fmt: skip
    table = tabulate(cells, headers=("run", "status", "step", "failures", "detail"), disable_numparse=True)
    return f"{table}\n\n{_count(rows)}"


def _count(rows: Sequence[dict[str, Any]]) -> str:
    counts = Counter(row["status"] for row in rows)
    return f"{len(rows)} runs: {', '.join(f'{count} {word}' for word, count in counts.most_common())}"


def plan_rows(
    runs: Sequence[SweepRun], store_folder: Path, home: Path, probe: Probe | None = None
) -> list[dict[str, Any]]:
    """Return the runs with their parameters, and if wanted with operations, time and memory from a few steps.

    Runs that differ only in their seed share one estimate. What is not known is None.

    Args:
        runs: The runs.
        store_folder: The store, from which their states are read.
        home: Folder of prepared data.
        probe: How the sweep would run them; None estimates nothing.
    """
    store = Store(store_folder)
    measured: dict[bytes, Cost | None] = {}
    rows = []
    for run in runs:
        config, state = run.config, state_of(store, run)
        parameters, full = parameters_of(config)
        row: dict[str, Any] = {"run": run.label, "status": state.word, "steps": config.train.steps}
        row |= {"parameters": parameters, "parameters_full": full if config.mixes else None}
        if probe is not None:
            key = canonical_json(config.model_dump(exclude={"seed"}))
            if key not in measured and not state.final:
                measured[key] = _measure_cost(config, home, probe)
            cost = measured.get(key)
            row |= {"operations": None, "minutes": None, "peak_memory_bytes": None, "left": not state.final}
            if cost is not None and cost.flops is not None:
                row["operations"] = cost.flops * config.train.steps * config.train.batch_size
            if cost is not None and cost.examples_per_second and not state.final:
                row["minutes"] = _examples_left(config, state.step, home) / cost.examples_per_second / 60
                row["peak_memory_bytes"] = cost.peak_memory_bytes
        rows.append(row)
    return rows


def plan_table(rows: Sequence[dict[str, Any]], probe: Probe | None = None) -> str:
    """Format the rows of `plan_rows`."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    cells = []
    for row in rows:
        share = row["parameters_full"] and row["parameters"] / row["parameters_full"]
        cells.append([row["run"], row["status"], str(row["steps"]), f"{row['parameters']:,}", shown(share, ".3f")])
        if probe is not None:
            memory, operations = row["peak_memory_bytes"], row["operations"]
            cells[-1] += [
                shown(operations and operations / 1e12, ",.1f"),
                shown(row["minutes"], ".1f"),
                shown(memory and memory / 2**20, ",.0f"),
            ]
    headers = ["run", "status", "steps", "parameters", "x full", *(["TFLOPs", "minutes", "peak MiB"] if probe else [])]
    lines = [tabulate(cells, headers=headers, disable_numparse=True), "", _count(rows)]
    if probe is not None:
        minutes = sum(row["minutes"] or 0.0 for row in rows)
        unknown = sum(row["left"] and row["minutes"] is None for row in rows)
        besides = f", besides {unknown} runs that could not be tried" if unknown else ""
        lines.append(
            f"Left: {minutes / probe.slots:.0f} minutes in all on {probe.device}{besides}, evaluations included, with "
            f"{probe.slots} runs at a time and {probe.threads} threads each. TFLOPs: at most, of the whole training."
        )
    return "\n".join(lines)


def _examples_left(config: RunConfig, step: int, home: Path) -> float:
    """Count the examples to train on and to score; one that is scored counts a third: forward without backward."""
    splits = read_manifest(data_folder(config, home)).splits
    scored = examples_to_score(config, step, splits["validation"].examples, splits["test"].examples)
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
