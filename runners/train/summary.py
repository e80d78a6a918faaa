# SPDX-License-Identifier: Apache-2.0
"""The table that ends `lra-run`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from attention_zoo import get_variant
from lra.config.labels import names_in_command, row_name, told_apart
from lra.config.schema import RunConfig
from lra.measure.environment import decisive, differences
from lra.metrics import of_whole_test, wilson_interval
from lra.names import legible
from lra.results.bench_format import breaks_parameter_rule
from lra.results.dataframe import conditions_of_speed
from lra.results.records import EARLIER, RunRecord, Store
from lra.tasks import get_task


def summaries(tables: Sequence[Sequence[tuple[RunConfig, RunRecord | str]]], store: Store) -> str:
    """Lay out the results of several tasks or profiles, see `summary`, with tasks of one title told apart."""
    tasks = [rows[0][0].task for rows in tables]
    titles = told_apart([get_task(task).info.title for task in tasks], tasks)
    return "\n\n".join(summary(rows, store, title) for rows, title in zip(tables, titles, strict=True))


def summary(rows: Sequence[tuple[RunConfig, RunRecord | str]], store: Store, task_title: str = "") -> str:
    """Lay out the results of a small grid.

    Args:
        rows: Configuration and record, or the status of a run that ended without one; all of one task and profile.
        store: Where the records are.
        task_title: How the task is called, if not as in the records.
    """
    labels = _labels(rows)
    named = [(label, record) for label, (_, record) in zip(labels, rows, strict=True) if isinstance(record, RunRecord)]
    records = [record for _, record in named]
    lines = [
        tabulate(
            [_row(label, *row) for label, row in zip(labels, rows, strict=True)],
            headers=_HEADERS,
            disable_numparse=True,
            tablefmt="simple",
        )
    ]
    if records:
        first = records[0]
        task = f"{task_title or first.task_title} ({first.dataset})"
        title = f"{task}, profile {first.config.profile}, {first.config.track} track"
        highest = dict[str, float]()  # those of two machines may differ a little
        for record in records:
            highest |= {name: max(value, highest.get(name, value)) for name, value in record.baselines.items()}
        baselines = ", ".join(
            f"{name} {value:.1f}" for name, value in sorted(of_whole_test(highest).items(), key=lambda item: item[1])
        )
        notes = [
            f"Trivial baselines, in %: {baselines}.",
            "Intervals: Wilson, 95 %, over the test examples; they do not show what another seed would do.",
            *_cost_notes(named),
            *_untrained_notes(records),
            *_parameter_notes(
                [(name, r) for name, (_, r) in zip(labels, rows, strict=True) if isinstance(r, RunRecord)]
            ),
            *_environment_notes(records),
            *(f"{path}: {words}" for r in records for path, words in store.other_outcomes(r.run_id).items()),
            *(f"{row_name(r.config)}, seed {r.config.seed}: {store.record_path(r.run_id)}" for r in records),
        ]
        lines = [title, "", *lines, "", *notes]
    return "\n".join(lines)


def summary_rows(rows: Sequence[tuple[RunConfig, RunRecord | str]], store: Store) -> list[dict[str, Any]]:
    """Return what `summary` shows of each run as plain values; what a run did not give is None."""
    found = []
    for label, (config, record) in zip(_labels(rows), rows, strict=True):
        row: dict[str, Any] = {
            "task": config.task,
            "profile": config.profile,
            "track": config.track,
            "variant": config.variant.name,
            "label": label,
            "seed": config.seed,
            "status": record if isinstance(record, str) else record.status,
        }
        row |= dict.fromkeys(
            ("dataset", "correct", "total", "interval_percent", "trained", "selected_step", "cost", "run_id", "record")
        )
        row |= {"continued": None, "other_outcomes": []}
        if isinstance(record, RunRecord):
            row |= {"run_id": record.run_id, "record": str(store.record_path(record.run_id))}
            row |= {"dataset": record.dataset, "cost": record.cost.model_dump(), "continued": _continued(record)}
            row["other_outcomes"] = [str(path) for path in store.other_outcomes(record.run_id)]
            if record.outcome is not None:
                test = record.outcome.test
                interval = [100 * bound for bound in wilson_interval(test.correct, test.total)]
                row |= {"correct": test.correct, "total": test.total, "interval_percent": interval}
                row |= {"selected_step": record.outcome.selected_step, "trained": not record.unbeaten()}
        found.append(row)
    return found


_HEADERS = (
    "variant",
    "seed",
    "test accuracy %",
    "interval",
    "parameters",
    "examples/s",
    "tokens/s",
    "peak MiB",
    "step",
)


def _labels(rows: Sequence[tuple[RunConfig, RunRecord | str]]) -> list[str]:
    """Name each row: see `lra.config.labels.names_in_command`."""
    configs = [config for config, _ in rows]
    return names_in_command(configs, [legible(get_variant(config.variant.name).title) for config in configs])


def _row(label: str, config: RunConfig, record: RunRecord | str) -> tuple[str, ...]:
    first = (label, str(config.seed))
    if isinstance(record, str) or record.outcome is None:
        status = record if isinstance(record, str) else record.status
        return (*first, status, *("-",) * (len(_HEADERS) - 3))
    test, cost = record.outcome.test, record.cost
    low, high = wilson_interval(test.correct, test.total)
    return (
        *first,
        f"{100 * test.correct / test.total:.2f}",
        f"{100 * low:.1f} .. {100 * high:.1f}",
        f"{cost.parameters:,}",
        "-" if cost.examples_per_second is None else f"{cost.examples_per_second:,.0f}",
        "-" if cost.tokens_per_second is None else f"{cost.tokens_per_second:,.0f}",
        "-" if cost.peak_memory_bytes is None else f"{cost.peak_memory_bytes / 2**20:,.0f}",
        str(record.outcome.selected_step),
    )


def _untrained_notes(records: Sequence[RunRecord]) -> list[str]:
    """Name the runs that learnt no more than a trivial baseline knows, and what is known to help on the task."""
    notes = []
    for record in records:
        if unbeaten := record.unbeaten():
            name, value = max(unbeaten.items(), key=lambda item: item[1])
            notes.append(
                f"{row_name(record.config)}, seed {record.config.seed}: trained: no, as it is not above the baseline "
                f"{name} ({value:.1f}) by more than the noise of the test set."
            )
    if notes:
        task = get_task(records[0].config.task).info
        notes.append(f"Known to help on {task.title}: {task.advice}. See docs/training.md.")
    return notes


def _environment_notes(records: Sequence[RunRecord]) -> list[str]:
    return [
        f"{row_name(record.config)}, seed {record.config.seed}: continued under another environment ({other}); its "
        "last bits may depend on that."
        for record in records
        if (other := _continued(record))
    ]


def _continued(record: RunRecord) -> str | None:
    """Say in what the environment differs under which a run was continued; None if it was not."""
    if EARLIER not in record.environment:
        return None
    return differences(record.environment[EARLIER][-1], decisive(record.environment))


def _cost_notes(named: Sequence[tuple[str, RunRecord]]) -> list[str]:
    """Say how memory was measured; where rows are of several machines or ways to measure, on which and how each."""
    records = [record for _, record in named]
    machines = conditions_of_speed([each.processor for each in records], [each.environment for each in records])
    rows: dict[tuple[str, str], list[str]] = {}
    for (name, record), machine in zip(named, machines, strict=True):
        rows.setdefault((machine, record.cost.peak_memory_method), []).append(f"{name}, seed {record.config.seed}")
    if len(rows) == 1:
        return [f"Memory: {method}." for _, method in rows]
    return [f"Cost of {'; '.join(names)}: on {machine}; memory: {method}." for (machine, method), names in rows.items()]


def _parameter_notes(records: Sequence[tuple[str, RunRecord]]) -> list[str]:
    notes = []
    for title, record in dict(records).items():
        ratio = record.cost.parameters / record.cost.parameters_full
        if breaks_parameter_rule(ratio):
            notes.append(f"Parameters of {title}: {ratio:.2f} x full attention, outside the benchmark's 10 % rule.")
    return notes
