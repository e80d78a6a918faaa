"""Tables of a paper from records: each function returns a `Table` of text cells, ready to be rendered."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pandas as pd

from lra.errors import UsageError
from lra.metrics import wilson_interval

from ..result_set import ResultSet, label_by_settings
from ..statistics import mean_with_interval, trained
from .captions import (
    FIVE,
    NOT_RUN,
    SIX,
    headings,
    number,
    preview,
    surroundings,
    table_caption,
)
from .table import Table, plain_table

PARAMETER_RULE = 0.10
"""The benchmark's own rule: at most this much off the parameters of full attention."""
FLOPS_NOTE = (
    "MFLOPs: million operations of one example of the longest length, forward and backward, a multiplication and an "
    "addition being two; matrix products, convolutions and fused attention only."
)
STATUS_WORDS = {"oom": "OOM"}
"""How statuses are written where they have a spelling of their own."""


def accuracy(loaded: ResultSet, profile: str, track: str) -> Table:
    """Tabulate test accuracy: variants x tasks, with averages over complete rows, and what needs no model."""
    loaded = loaded.only(profile, track)
    frame = loaded.frame()
    columns, labels = headings(frame), sorted(frame["label"].unique())
    seeds = loaded.seed_count(frame)
    cells = pd.DataFrame(NOT_RUN, index=labels, columns=columns, dtype=object)
    values = pd.DataFrame(np.nan, index=labels, columns=columns)
    for (label, column), group in frame.groupby(["label", "column"]):
        cells.loc[label, column], values.loc[label, column] = accuracy_cell(group, seeds)
    tasks = dict(zip(frame["column"], frame["task"], strict=True))
    notes = ["Cells: test accuracy in %, mean ± standard deviation over seeds (n); (k/n): k of n seeds gave a number."]
    for name, members in (("A5", FIVE), ("A6", SIX)):
        chosen = [column for column in columns if tasks[column] in members]
        if sorted(tasks[column] for column in chosen) == sorted(members):
            averages = values[chosen].mean(axis=1, skipna=False)
            cells[name] = [NOT_RUN if math.isnan(value) else f"{value:.2f}" for value in averages]
            values[name] = averages
            notes.append(
                f"{name}: mean of {len(members)} tasks; {NOT_RUN} unless every one has a number from each seed."
            )
    cells, values = _add_baselines(cells, values, loaded, frame)
    notes = preview(frame) + notes + _noise(frame) + _untrained(loaded, frame) + _unequal(frame) + surroundings(frame)
    title = table_caption("Test accuracy", profile, track, loaded, frame)
    return Table(caption=title, cells=cells, values=values, notes=notes, records=frame["run_id"].tolist())


def accuracy_cell(group: pd.DataFrame, expected: int) -> tuple[str, float]:
    """Write the runs of one variant on one task, and their mean.

    The mean is NaN, so that no average and no ranking uses it, if one of the runs ended without a number.
    """
    scores = group["accuracy"].dropna().tolist()
    failures = Counter(group["status"][group["accuracy"].isna()])
    words = [f"{STATUS_WORDS.get(status, status)} ({count}/{len(group)})" for status, count in sorted(failures.items())]
    if not scores:
        return ", ".join(words), math.nan
    estimate = mean_with_interval(scores)
    spread = "" if math.isnan(estimate.deviation) else f" ± {estimate.deviation:.2f}"
    count = f"({estimate.count}/{expected})" if estimate.count < expected else f"({estimate.count})"
    return ", ".join([f"{estimate.mean:.2f}{spread} {count}", *words]), (math.nan if words else estimate.mean)


def seeds(loaded: ResultSet, profile: str, track: str) -> Table:
    """Tabulate each variant on each task over its seeds: interval, extremes, and how many learnt anything."""
    loaded = loaded.only(profile, track)
    frame = loaded.frame()
    rows = []
    for (column, label), group in frame.groupby(["column", "label"]):
        scores = group["accuracy"].dropna()
        row = {"task": str(column), "variant": str(label), "runs": str(len(group)), "mean": NOT_RUN}
        row |= {"interval": NOT_RUN, "lowest": NOT_RUN, "highest": NOT_RUN, "trained": f"0/{len(group)}"}
        if len(scores):
            estimate = mean_with_interval(scores.tolist())
            low, high, kind = estimate.low, estimate.high, "t"
            if estimate.count == 1:
                single = group.loc[scores.index[0]]
                low, high = (100 * bound for bound in wilson_interval(int(single["correct"]), int(single["total"])))
                kind = "Wilson"
            row |= {"mean": f"{estimate.mean:.2f}", "interval": f"{low:.2f} to {high:.2f} ({kind})"}
            learnt = sum(_is_trained(loaded, cell) for cell in group["run_id"])
            row |= {"lowest": f"{scores.min():.2f}", "highest": f"{scores.max():.2f}"}
            row["trained"] = f"{learnt}/{len(group)}"
        rows.append(row)
    notes = [
        "Intervals: 95 %, Student's t over seeds; Wilson over test examples where there is one run, which says "
        "nothing of other seeds.",
        "Trained: above every answer that needs no input (chance, majority) by more than the noise of the test set.",
    ]
    notes = preview(frame) + notes + surroundings(frame)
    return plain_table(table_caption("Test accuracy over seeds", profile, track, loaded, frame), rows, notes, frame)


def cost(loaded: ResultSet, profile: str, track: str) -> Table:
    """Tabulate what training took, relative to `full` on the same task and device: speed, memory, size, operations."""
    loaded = loaded.only(profile, track)
    frame = loaded.frame()
    rows = []
    frame["recipe"] = [_recipe(settings) for settings in frame["settings"]]
    for (column, device, label), group in frame.dropna(subset=["parameters"]).groupby(["column", "device", "label"]):
        peers = frame[(frame["column"] == column) & (frame["device"] == device) & (frame["variant"] == "full")]
        base = peers[peers["recipe"] == group["recipe"].iloc[0]]
        parameters, reference = int(group["parameters"].iloc[0]), int(group["parameters_full"].iloc[0])
        row = {"task": str(column), "variant": str(label), "device": str(device)}
        for name, source, unit, form in (
            ("tokens/s", "tokens_per_second", 1.0, "{:,.0f}"),
            ("peak MiB", "peak_bytes", 2**20, "{:,.0f}"),
            ("MFLOPs", "flops", 1e6, "{:,.1f}"),
        ):
            value = _median(group[source])
            row |= {name: number(value / unit, form), f"{name} x full": number(value / _median(base[source]), "{:.2f}")}
        row |= {"parameters": f"{parameters:,}", "parameters x full": f"{parameters / reference:.3f}"}
        rows.append(row | {"backend": ", ".join(sorted(set(group["backend"])))})
    methods = sorted({record.cost.peak_memory_method for record in loaded.records.values()})
    notes = ["Medians over seeds, measured during training runs, which may have shared their machine with other work."]
    notes += [f"Memory: {'; '.join(methods)}.", FLOPS_NOTE, *_unequal(frame), *surroundings(frame)]
    return plain_table(table_caption("Cost of training", profile, track, loaded, frame), rows, notes, frame)


def depth(loaded: ResultSet, profile: str, track: str) -> Table:
    """Tabulate accuracy against layers, operations and time: one row per task, variant and number of layers.

    Raises:
        UsageError: All runs have the same number.
    """
    frame = loaded.only(profile, track).frame()
    if frame["layers"].nunique() == 1:
        raise UsageError(f"all runs under profile {profile}, {track} track, have the same number of layers")
    frame["label"] = label_by_settings(frame, leave_out=["model.num_layers"])
    frame["step_seconds"] = frame["batch_size"] / frame["examples_per_second"]
    seed_count = loaded.seed_count(frame)
    rows = []
    for (column, label, layers), group in frame.groupby(["column", "label", "layers"]):
        times = [
            number(_median(part["step_seconds"]), "{:.3f}") + ("" if frame["device"].nunique() == 1 else f" ({device})")
            for device, part in group.groupby("device")
        ]
        rows.append(
            {
                "task": str(column),
                "variant": str(label),
                "layers": str(layers),
                "test accuracy %": accuracy_cell(group, seed_count)[0],
                "MFLOPs": number(_median(group["flops"]) / 1e6, "{:,.1f}"),
                "seconds per step": ", ".join(times) or NOT_RUN,
            }
        )
    notes = [FLOPS_NOTE, "Seconds per step: median over seeds, of training runs that may have shared their machine."]
    notes = preview(frame) + notes + surroundings(frame)
    return plain_table(table_caption("Test accuracy by depth", profile, track, loaded, frame), rows, notes, frame)


def _add_baselines(
    cells: pd.DataFrame, values: pd.DataFrame, loaded: ResultSet, frame: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Add one row for each kind of answer that needs no model."""
    columns = dict(zip(frame["run_id"], frame["column"], strict=True))
    baselines: dict[str, dict[str, float]] = {}
    for record in loaded.records.values():
        for name, value in record.baselines.items():
            baselines.setdefault(f"({name})", {})[columns[record.run_id]] = value
    for name, by_column in baselines.items():
        cells.loc[name] = [f"{by_column[column]:.2f}" if column in by_column else NOT_RUN for column in cells.columns]
        values.loc[name] = math.nan
    return cells, values


def _is_trained(loaded: ResultSet, cell: str) -> bool:
    """Say whether a run is above chance and majority."""
    record = loaded.records.get(cell)
    if record is None or record.outcome is None:
        return False
    blind = max((value for name, value in record.baselines.items() if name in ("chance", "majority")), default=0.0)
    return trained(record.outcome.test.correct, record.outcome.test.total, blind)


def _untrained(loaded: ResultSet, frame: pd.DataFrame) -> list[str]:
    """Name the variants with runs that gave a number and learnt nothing, and say how many of how many."""
    found = frame.dropna(subset=["accuracy"])
    found = found.assign(lost=[not _is_trained(loaded, cell) for cell in found["run_id"]])
    counts: dict[str, list[str]] = {}
    for (label, column), group in found.groupby(["label", "column"]):
        if group["lost"].any():
            counts.setdefault(str(label), []).append(f"{column} in {group['lost'].sum()} of {len(group)} runs")
    return [
        f"Not above chance by more than the noise of the test set: {label} on {', '.join(where)}."
        for label, where in counts.items()
    ]


def _unequal(frame: pd.DataFrame) -> list[str]:
    """Name the variants that break the benchmark's rule on the number of parameters."""
    ratio = frame["parameters"] / frame["parameters_full"]
    names = sorted(set(frame["label"][(ratio - 1).abs() > PARAMETER_RULE]))
    return [f"Parameters more than 10 % off full attention's: {', '.join(names)}."] if names else []


def _recipe(settings: dict[str, object]) -> str:
    """Return all settings but the variant's own, as a key."""
    return repr({name: value for name, value in settings.items() if not name.startswith("variant.")})


def _noise(frame: pd.DataFrame) -> list[str]:
    """Say how wide the test set alone makes the interval of one run."""
    widths: dict[str, float] = {}
    found = frame.dropna(subset=["accuracy"])
    for column, correct, total in zip(found["column"], found["correct"], found["total"], strict=True):
        low, high = wilson_interval(int(correct), int(total))
        widths[column] = max(widths.get(column, 0.0), 50 * (high - low))
    text = ", ".join(f"{column} ± {width:.1f}" for column, width in sorted(widths.items()))
    return [f"Noise of the test set alone for one run (Wilson, 95 %), at most: {text}."] if text else []


def _median(column: pd.Series) -> float:
    return float(column.median()) if column.notna().any() else math.nan
