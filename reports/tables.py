"""Tables of a paper from records: each function returns a `Table` of text cells, ready to be rendered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lra.errors import UsageError
from lra.records import RunRecord

from .load import Loaded, tidy
from .statistics import compare_paired, holm, mcnemar, mean_with_interval

FIVE = ("listops", "text", "retrieval", "image", "pathfinder")
"""Tasks of the five-task average."""
SIX = (*FIVE, "pathx")
NOT_RUN = "-"


@dataclass(kw_only=True)
class Table:
    """Text cells with what is needed to mark the best ones."""

    caption: str
    cells: pd.DataFrame
    """Text; the index holds the rows' names."""
    values: pd.DataFrame
    """Numbers of the same shape, higher is better, NaN where a cell takes no part."""
    notes: list[str] = field(default_factory=list)


def profiles(loaded: Loaded) -> list[tuple[str, str]]:
    """List the (profile, track) pairs there are; each makes tables of its own."""
    return sorted({(record.config.profile, record.config.track) for record in loaded.records.values()})


def select(loaded: Loaded, profile: str, track: str) -> list[RunRecord]:
    """Return the records of one profile and track."""
    return [r for r in loaded.records.values() if (r.config.profile, r.config.track) == (profile, track)]


def accuracy(loaded: Loaded, profile: str, track: str) -> Table:
    """Tabulate test accuracy: variants x tasks, with averages over complete rows, and what needs no model."""
    records = select(loaded, profile, track)
    frame = with_columns(records)
    columns = list(dict.fromkeys(frame.sort_values(["task", "edition"])["column"]))
    labels, seeds = sorted(frame["label"].unique()), sorted(frame["seed"].unique())
    cells = pd.DataFrame(NOT_RUN, index=labels, columns=columns, dtype=object)
    values = pd.DataFrame(np.nan, index=labels, columns=columns)
    for (label, column), group in frame.groupby(["label", "column"]):
        cells.loc[label, column], values.loc[label, column] = accuracy_cell(group, len(seeds))
    tasks = dict(zip(frame["column"], frame["task"], strict=True))
    for name, members in (("A5", FIVE), ("A6", SIX)):
        chosen = [column for column in columns if tasks[column] in members]
        if sorted(tasks[column] for column in chosen) == sorted(members):
            averages = values[chosen].mean(axis=1, skipna=False)
            cells[name] = [NOT_RUN if math.isnan(value) else f"{value:.2f}" for value in averages]
            values[name] = averages
    cells, values = _add_rails(cells, values, records, dict(zip(frame["cell_id"], frame["column"], strict=True)))
    notes = _editions(frame)
    notes.append("Cells: mean of the test accuracy in % ± standard deviation over seeds (n). (k/n): k of n seeds.")
    if len(seeds) == 1:
        notes.insert(0, "PREVIEW: one seed. Differences below the noise of a seed mean nothing.")
    notes += _hardware(records)
    return Table(caption=_caption("Test accuracy", profile, track), cells=cells, values=values, notes=notes)


def accuracy_cell(group: pd.DataFrame, expected: int) -> tuple[str, float]:
    """Write the runs of one variant on one task, and their mean; NaN if some gave no number."""
    scores = group["accuracy"].dropna().tolist()
    if not scores:
        return f"diverged (0/{len(group)})", math.nan
    estimate = mean_with_interval(scores)
    spread = "" if math.isnan(estimate.deviation) else f" ± {estimate.deviation:.2f}"
    failed = len(group) - len(scores)
    count = f"({estimate.count}/{expected})" if estimate.count < expected else f"({estimate.count})"
    text = f"{estimate.mean:.2f}{spread} {count}"
    return (f"{text}, diverged {failed}" if failed else text), (math.nan if failed else estimate.mean)


def cost(loaded: Loaded, profile: str, track: str) -> Table:
    """Tabulate what training took, relative to `full` on the same task and device: speed, memory, parameters."""
    records = select(loaded, profile, track)
    frame = with_columns(records)
    rows = []
    for (column, device, label), group in frame.groupby(["column", "device", "label"]):
        base = frame[(frame["column"] == column) & (frame["device"] == device) & (frame["label"] == "full")]
        speed, memory = _median(group["tokens_per_second"]), _median(group["peak_bytes"])
        rows.append(
            {
                "task": column,
                "variant": label,
                "device": device,
                "tokens/s": _number(speed, "{:,.0f}"),
                "x full ": _number(speed / _median(base["tokens_per_second"]), "{:.2f}"),
                "peak MiB": _number(memory / 2**20, "{:,.0f}"),
                "x full": _number(memory / _median(base["peak_bytes"]), "{:.2f}"),
                "parameters": f"{group['parameters'].iloc[0]:,}",
                "x full  ": f"{group['parameters'].iloc[0] / group['parameters_full'].iloc[0]:.3f}",
                "backend": group["backend"].iloc[0],
            }
        )
    cells = pd.DataFrame(rows)
    values = pd.DataFrame(np.nan, index=cells.index, columns=cells.columns)
    methods = sorted({record.cost.peak_memory_method for record in records})
    notes = ["Medians over seeds, as the runs found them; `lra-bench` measures speed and memory apart from other work."]
    notes.append(f"Memory: {'; '.join(methods)}.")
    return Table(caption=_caption("Cost of training", profile, track), cells=cells, values=values, notes=notes)


def head_to_head(loaded: Loaded, profile: str, track: str, first: str, second: str) -> Table:
    """Compare two variants task by task: paired over seeds, and on the same test examples.

    Raises:
        UsageError: One of the two has no records here.
    """
    records = select(loaded, profile, track)
    frame = with_columns(records)
    for name in (first, second):
        if name not in set(frame["label"]):
            raise UsageError(f"no records of {name!r} under profile {profile}; there are {sorted(set(frame['label']))}")
    rows, p_values = [], []
    for column in dict.fromkeys(frame["column"]):
        sides = [
            frame[(frame["column"] == column) & (frame["label"] == name)].dropna(subset="accuracy").set_index("seed")
            for name in (first, second)
        ]
        seeds = sorted(set(sides[0].index) & set(sides[1].index))
        if not seeds:
            continue
        result = compare_paired(*(side.loc[seeds, "accuracy"].tolist() for side in sides))
        difference = result.difference
        bits = [_mcnemar(loaded, *(str(side.loc[seed, "cell_id"]) for side in sides)) for seed in seeds]
        p_values.append(result.p_value)
        rows.append(
            {
                "task": column,
                "seeds": str(len(seeds)),
                "difference": f"{difference.mean:+.2f}",
                "95 % interval": _interval(difference.low, difference.high),
                "p (paired t)": _number(result.p_value, "{:.3f}"),
                "detectable": _number(result.detectable, "{:.2f}"),
                "McNemar p per seed": ", ".join(f"{p:.3f}" for _, _, p in bits),
                f"only {first}": ", ".join(str(a) for a, _, _ in bits),
                f"only {second}": ", ".join(str(b) for _, b, _ in bits),
            }
        )
    if not rows:
        raise UsageError(f"{first} and {second} have no task and seed in common under profile {profile}")
    for row, adjusted in zip(rows, holm(p_values), strict=True):
        row["p (Holm)"] = _number(adjusted, "{:.3f}")
    cells = pd.DataFrame(rows)
    values = pd.DataFrame(np.nan, index=cells.index, columns=cells.columns)
    notes = [
        f"Difference: {first} minus {second}, points of test accuracy, mean over seeds that both have.",
        "Detectable: true difference that so many pairs of such spread would show in 80 % of cases.",
        "Only: test examples that one of the two has right and the other wrong, per seed (exact McNemar test).",
    ]
    if all(row["seeds"] == "1" for row in rows):
        notes.insert(0, "PREVIEW: one seed. No claim can rest on it.")
    title = _caption(f"{first} against {second}", profile, track)
    return Table(caption=title, cells=cells, values=values, notes=notes + _editions(frame))


def ablation(loaded: Loaded, profile: str, track: str, variant: str) -> Table:
    """Tabulate the runs of one variant by its changed options, with the difference to the most common setting.

    Raises:
        UsageError: The variant has no records here.
    """
    records = [r for r in select(loaded, profile, track) if r.config.variant.name == variant]
    if not records:
        raise UsageError(f"no records of {variant!r} under profile {profile}, {track} track")
    frame = with_columns(records)
    options = [
        name for name in _option_names(records) if frame["options"].map(lambda o, n=name: str(o.get(n))).nunique() > 1
    ]
    common = {name: frame["options"].map(lambda o, n=name: str(o.get(n))).mode().iloc[0] for name in options}
    rows = []
    for (column, label), group in frame.groupby(["column", "label"]):
        chosen = {name: str(group["options"].iloc[0].get(name)) for name in options}
        changed = {name: value for name, value in chosen.items() if value != common[name]}
        rows.append((column, len(changed), label, changed, group))
    base = {column: group for column, count, _, _, group in rows if count == 0}
    lines = []
    for column, _, _, changed, group in sorted(rows, key=lambda row: (row[0], row[1], row[2])):
        text, _ = accuracy_cell(group, frame["seed"].nunique())
        difference = NOT_RUN
        if column in base and changed:
            ours, theirs = (side.set_index("seed")["accuracy"].dropna() for side in (group, base[column]))
            shared = sorted(set(ours.index) & set(theirs.index))
            if shared:
                result = compare_paired(ours.loc[shared].tolist(), theirs.loc[shared].tolist()).difference
                difference = f"{result.mean:+.2f} {_interval(result.low, result.high)}".strip()
        what = ", ".join(f"{name}={value}" for name, value in changed.items()) or "base setting"
        lines.append({"task": column, "changed": what, "test accuracy %": text, "difference to base": difference})
    cells = pd.DataFrame(lines)
    values = pd.DataFrame(np.nan, index=cells.index, columns=cells.columns)
    setting = ", ".join(f"{name}={value}" for name, value in common.items()) or "all defaults"
    notes = [f"Base setting, the most common value of each option: {setting}.", *_editions(frame)]
    return Table(caption=_caption(f"Ablation of {variant}", profile, track), cells=cells, values=values, notes=notes)


def depth(loaded: Loaded, profile: str, track: str) -> Table:
    """Tabulate accuracy by number of layers, one row per variant and task."""
    records = select(loaded, profile, track)
    frame = with_columns(records)
    layers = sorted(frame["layers"].unique())
    rows = {}
    for (column, label), group in frame.groupby(["column", "label"]):
        by_layers = {n: group[group["layers"] == n] for n in group["layers"].unique()}
        rows[f"{column}: {label}"] = {
            f"{n} layers": accuracy_cell(by_layers[n], frame["seed"].nunique())[0] if n in by_layers else NOT_RUN
            for n in layers
        }
    cells = pd.DataFrame.from_dict(rows, orient="index")
    values = pd.DataFrame(np.nan, index=cells.index, columns=cells.columns)
    return Table(
        caption=_caption("Accuracy by depth", profile, track), cells=cells, values=values, notes=_editions(frame)
    )


def with_columns(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Return the tidy frame with the heading of each record's task; editions of one task are kept apart."""
    frame = tidy(records)
    editions = frame.groupby("task")["edition"].nunique()
    headings = [
        title if editions[task] == 1 else f"{title} ({edition})"
        for task, title, edition in zip(frame["task"], frame["title"], frame["edition"], strict=True)
    ]
    frame["column"] = headings
    return frame


def _add_rails(
    cells: pd.DataFrame, values: pd.DataFrame, records: Sequence[RunRecord], columns: Mapping[str, str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    rails: dict[str, dict[str, float]] = {}
    for record in records:
        for name, value in record.rails.items():
            rails.setdefault(f"({name})", {})[columns[record.cell_id]] = value
    for name, by_column in rails.items():
        cells.loc[name] = [f"{by_column[c]:.1f}" if c in by_column else NOT_RUN for c in cells.columns]
        values.loc[name] = math.nan
    return cells, values


def _editions(frame: pd.DataFrame) -> list[str]:
    pairs = sorted(set(zip(frame["title"], frame["edition"], strict=True)))
    return [f"{title}: {edition}." for title, edition in pairs]


def _hardware(records: Sequence[RunRecord]) -> list[str]:
    devices = sorted({str(r.environment.get("device", "?")) for r in records})
    steps = sorted({r.config.train.steps for r in records})
    return [f"Devices: {', '.join(devices)}. Steps: {', '.join(map(str, steps))}."]


def _option_names(records: Sequence[RunRecord]) -> list[str]:
    return sorted({name for record in records for name in record.config.variant.options})


def _mcnemar(loaded: Loaded, first: str, second: str) -> tuple[int, int, float]:
    bits = [loaded.stores[cell].arrays(cell)["test_correct"] for cell in (first, second)]
    return mcnemar(bits[0], bits[1])


def _median(column: pd.Series) -> float:
    numbers = [float(value) for value in column if value is not None and not pd.isna(value)]
    return float(np.median(numbers)) if numbers else math.nan


def _number(value: float, form: str) -> str:
    return NOT_RUN if math.isnan(value) else form.format(value)


def _interval(low: float, high: float) -> str:
    return NOT_RUN if math.isnan(low) else f"[{low:+.2f}, {high:+.2f}]"


def _caption(what: str, profile: str, track: str) -> str:
    return f"{what}, profile {profile}, {track} track"
