# SPDX-License-Identifier: Apache-2.0
"""The table of test accuracy: variants by tasks, with averages and trivial baselines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from lra.config.schema import canonical_json
from lra.metrics import beatable, is_above, wilson_interval
from lra.results.bench_format import STATUS_WORDS
from lra.results.records import AttemptedRun, RunRecord

from ..baselines import highest_baselines
from ..result_set import ResultSet
from ..statistics import exact_mean, mean_with_interval
from .captions import (
    FIVE,
    NOT_RUN,
    SIX,
    baseline_titles,
    headings,
    parameter_notes,
    preview,
    provenance_notes,
    seeds_by_cell,
    table_caption,
)
from .table import RowKey, Table, Term, as_printed

UNMARKED = "the best mean is not above the best trivial baseline by more than the noise of the test set"
"""Why no number of a column is marked as the best."""


def accuracy(results: ResultSet, profile: str, track: str) -> Table:
    """Tabulate test accuracy: variants by tasks, with averages of complete rows, and the trivial baselines below."""
    results = results.for_profile(profile, track)
    frame = results.frame()
    columns, labels = headings(frame), sorted(frame["label"].unique())
    seeds = len(results.seeds)
    cells = pd.DataFrame(NOT_RUN, index=labels, columns=columns, dtype=object)
    values = pd.DataFrame(np.nan, index=labels, columns=columns)
    for (label, column), group in frame.groupby(["label", "column"]):
        cells.loc[label, column], values.loc[label, column] = accuracy_cell(group, seeds)
    tasks = dict(zip(frame["column"], frame["task"], strict=True))
    notes: list[str] = [Term("Cells: mean ± standard deviation over seeds (n); (k/n): k of n seeds gave a number.")]
    variants = dict(zip(frame["label"], frame["variant"], strict=True))
    # The score is NaN with a task missing.
    keys = [RowKey(label=label, variant=variants[label], score=exact_mean(values.loc[label])) for label in labels]
    measured, unlike = _measured(results, frame)
    totals = frame.groupby("column")["total"].min()
    unmarked = [
        column
        for column in columns
        if values[column].notna().any()
        and not _above_trivial(values[column].max(), totals[column], beatable(measured.get(column, {})).values())
    ]
    for name, members in (("A5", FIVE), ("A6", SIX)):
        chosen = [column for column in columns if tasks[column] in members]
        if sorted(tasks[column] for column in chosen) == sorted(members):
            averages = values[chosen].apply(exact_mean, axis=1).where(_same_seeds(frame, chosen, labels))
            cells[name] = [NOT_RUN if math.isnan(value) else f"{value:.2f}" for value in averages]
            values[name] = averages
            unmarked += [name] if set(chosen) <= set(unmarked) else []
            notes.append(
                Term(f"{name}: mean of {len(members)} tasks; {NOT_RUN} unless every task has a number from each seed.")
            )
        elif {tasks[column] for column in chosen} == set(members):
            twice = [column for column in chosen if [tasks[each] for each in chosen].count(tasks[column]) > 1]
            notes.append(f"No {name}: a task has several columns, on other data: {', '.join(twice)}.")
    values[unmarked] = np.nan
    baselines = _baseline_rows(results, frame, list(cells.columns), measured)
    baselines.index = [f"{name} (baseline)" if name in cells.index else name for name in baselines.index]
    cells = pd.concat([cells, baselines])
    values = pd.concat([values, pd.DataFrame(np.nan, index=baselines.index, columns=values.columns)])
    notes = (
        preview(frame)
        + notes
        + _noise(frame)
        + _untrained(results, frame)
        + unlike
        + ([f"No number is marked under {', '.join(unmarked)}: {UNMARKED}."] if unmarked else [])
        + parameter_notes(frame)
        + provenance_notes(frame)
    )
    return Table(
        caption=table_caption("Test accuracy", profile, track, seeds_by_cell(frame)),
        cells=cells,
        values=as_printed(values, 2),
        notes=notes,
        records=frame["run_id"].tolist(),
        baselines=len(baselines),
        unit="%",
        keys=keys,
    )


def _same_seeds(frame: pd.DataFrame, columns: list[str], labels: list[str]) -> pd.Series:
    """Say of each row whether it has numbers of the same seeds in all columns: (labels,)."""
    scored = frame.dropna(subset=["accuracy"])
    seeds = scored.groupby(["label", "column"])["seed"].agg(frozenset).unstack().reindex(index=labels, columns=columns)
    return seeds.apply(lambda row: len(set(row)) == 1, axis=1)


def lost_words(group: pd.DataFrame, lost: pd.Series | None = None) -> list[str]:
    """Say how many runs of one variant on one task ended without a number, for each way in which they did.

    Args:
        group: The runs.
        lost: Whether each of them did; None for those without an accuracy.
    """
    failures = Counter(group["status"][group["accuracy"].isna() if lost is None else lost])
    return [f"{STATUS_WORDS.get(status, status)} ({count}/{len(group)})" for status, count in sorted(failures.items())]


def accuracy_cell(group: pd.DataFrame, expected: int) -> tuple[str, float]:
    """Write the runs of one variant on one task, and return their mean.

    The mean is NaN if one of the runs ended without a number, or if there are fewer than a suite asks for, so that no
    mark, no average and no ranking uses it.

    Args:
        group: The runs.
        expected: How many seeds a suite asks for; 0 without one: as many as were tried.
    """
    scores, words = group["accuracy"].dropna().tolist(), lost_words(group)
    if not scores:
        return ", ".join(words), math.nan
    estimate = mean_with_interval(scores)
    spread = "" if math.isnan(estimate.deviation) else f" ± {estimate.deviation:.2f}"
    expected = max(expected, group["seed"].nunique())
    count = f"({estimate.count}/{expected})" if estimate.count < expected else f"({estimate.count})"
    whole = not words and estimate.count >= expected
    return ", ".join([f"{estimate.mean:.2f}{spread} {count}", *words]), (estimate.mean if whole else math.nan)


def _baseline_rows(
    results: ResultSet, frame: pd.DataFrame, columns: list[str], measured: Mapping[str, Mapping[str, float]]
) -> pd.DataFrame:
    """Return one row for each trivial baseline, such as chance."""
    headings_of_runs = dict(zip(frame["run_id"], frame["column"], strict=True))
    titles = baseline_titles(name for found in measured.values() for name in found)
    baselines: dict[str, dict[str, str]] = {}
    for heading, found in measured.items():
        for name, value in found.items():
            baselines.setdefault(titles[name], {})[heading] = f"{value:.2f}"
    trained_mlp = _reference_row(results, headings_of_runs)
    if trained_mlp:
        title = "MLP only, trained"
        baselines[f"{title} (mlp_only)" if title in baselines else title] = trained_mlp
    rows = [[by_column.get(column, NOT_RUN) for column in columns] for by_column in baselines.values()]
    return pd.DataFrame(rows, index=list(baselines), columns=columns, dtype=object)


def _measured(results: ResultSet, frame: pd.DataFrame) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return the trivial baselines by heading, and a note for each heading whose records do not agree on them."""
    headings_of_runs = dict(zip(frame["run_id"], frame["column"], strict=True))
    records: dict[str, list[RunRecord]] = {}
    for record in results.records.values():
        records.setdefault(headings_of_runs[record.run_id], []).append(record)
    ranges = {heading: highest_baselines(group) for heading, group in records.items()}
    found = {heading: highest for heading, (highest, _) in ranges.items()}
    titles = baseline_titles(name for highest in found.values() for name in highest)
    notes = []
    for heading, (highest, lowest) in ranges.items():
        words = [f"{titles[name]} {low:.2f} to {highest[name]:.2f}" for name, low in lowest.items()]
        if words:
            listed = ", ".join(words)
            notes.append(f"{heading}: records of the same data have other baselines; the highest counts: {listed}.")
    return found, notes


def _reference_row(results: ResultSet, headings_of_runs: Mapping[str, str]) -> dict[str, str]:
    """Return the accuracy of the reference by heading: of its runs on the same data under the same recipe.

    Runs that are among those of the table are not repeated. Where runs under one heading have several recipes, there is
    none, since one number cannot stand beside all of them.
    """
    recipes: dict[str, set[str]] = {}
    for record in results.records.values():
        recipes.setdefault(headings_of_runs[record.run_id], set()).add(_recipe(results, record))
    runs: dict[str, list[dict[str, float | str]]] = {}
    for run in results.references:
        if run.run_id in results.records or run.run_id in results.attempts:
            continue
        if results.seeds and run.config.seed not in results.seeds:
            continue
        test = run.outcome.test if isinstance(run, RunRecord) and run.outcome is not None else None
        accuracy = 100.0 * test.correct / test.total if test else math.nan
        for heading, found in recipes.items():
            if found == {_recipe(results, run)}:
                runs.setdefault(heading, []).append(
                    {"accuracy": accuracy, "status": run.status, "seed": run.config.seed}
                )
    return {heading: accuracy_cell(pd.DataFrame(rows), len(results.seeds))[0] for heading, rows in runs.items()}


def _recipe(results: ResultSet, run: RunRecord | AttemptedRun) -> str:
    """Return everything that must be the same in two runs that differ in variant and seed alone."""
    recipe = {name: value for name, value in run.config.hashed().items() if name not in ("variant", "seed")}
    return canonical_json([recipe, run.data_digest, results.naming.versions[run.run_id]]).decode()


def is_above_chance(results: ResultSet, run_id: str) -> bool:
    """Say whether a run is above chance and majority by more than the noise of its test set."""
    record = results.records.get(run_id)
    if record is None or record.outcome is None:
        return False
    blind = max((value for name, value in record.baselines.items() if name in ("chance", "majority")), default=0.0)
    return is_above(record.outcome.test.correct, record.outcome.test.total, blind)


def _untrained(results: ResultSet, frame: pd.DataFrame) -> list[str]:
    """Name for each task the variants with runs that learnt nothing, and say how many of their runs those are."""
    found = frame.dropna(subset=["accuracy"])
    found = found.assign(lost=[not is_above_chance(results, run_id) for run_id in found["run_id"]])
    places = list[str]()
    for column, group in found.groupby("column"):
        runs = [(label, int(part["lost"].sum()), len(part)) for label, part in group.groupby("label")]
        words = ", ".join(f"{label} in {lost} of {count} runs" for label, lost, count in runs if lost)
        places += [f"{column}: {'all runs' if group['lost'].all() else words}"] if words else []
    return [f"Not above chance by more than the noise of the test set: {'; '.join(places)}."] if places else []


def _above_trivial(best: float, total: float, baselines: Collection[float]) -> bool:
    """Say whether a score is above every trivial baseline by more than the noise of the test set.

    Args:
        best: The best mean of a task, in %, of the rows that lost no run: only these are marked.
        total: Its test examples.
        baselines: In %.
    """
    return is_above(round(best / 100 * total), int(total), max(baselines, default=0.0))


def _noise(frame: pd.DataFrame) -> list[str]:
    """Say how wide the interval of one run is because of the size of the test set alone."""
    widths: dict[str, float] = {}
    found = frame.dropna(subset=["accuracy"])
    for column, correct, total in zip(found["column"], found["correct"], found["total"], strict=True):
        low, high = wilson_interval(int(correct), int(total))
        widths[column] = max(widths.get(column, 0.0), 50 * (high - low))
    text = ", ".join(f"{column} ± {width:.1f}" for column, width in sorted(widths.items()))
    return [f"Noise of the test set alone for one run (Wilson, 95 %), at most: {text}."] if text else []
