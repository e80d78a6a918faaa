# SPDX-License-Identifier: Apache-2.0
"""Tables that compare: variants head to head, the options of one variant, and all variants by rank."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from lra.config.labels import fits, short_name, shown_value, split_row, varying
from lra.errors import UsageError
from lra.names import suggest
from lra.results.dataframe import label_rows

from ..result_set import ResultSet
from ..statistics import average_ranks, compare_paired, holm, mcnemar
from .accuracy import accuracy_cell, lost_words
from .captions import (
    NOT_RUN,
    headings,
    number,
    p_text,
    preview,
    provenance_notes,
    seeds_by_cell,
    table_caption,
)
from .table import Table, Term, plain_table

BASE = "(base)"
NO_SPREAD = Term("No interval: equal differences have no spread to make one of.")
SUGGESTED = 2
"""Rows that an error names."""


def head_to_head(
    results: ResultSet, profile: str, track: str, first: str, *others: str, any_budget: bool = False
) -> Table:
    """Compare a variant with others, task by task: paired over seeds, and on the same test examples.

    Args:
        results: The records.
        profile: Profile of the records to use.
        track: Their track.
        first: Row of the accuracy table, with the registered name: `contextpool [num_layers=1]`. Settings may be left
            out that no two rows of the variant need to be told apart.
        others: One or more rows to compare it with.
        any_budget: Whether to compare runs with different numbers of steps too, those of the runs that they started
            from included.

    Raises:
        UsageError: One of them has no records here, or another budget than the first, or is named twice, or none of
            the others has a task and seed in common with the first.
    """
    frame = results.for_profile(profile, track).frame()
    frame["row"] = label_rows(frame, name="variant", elsewhere=results.naming.differing)
    labels = [_label_of_row(row, frame, f"under profile {profile}, {track} track") for row in (first, *others)]
    if twice := [label for label, times in Counter(labels).items() if times > 1]:
        raise UsageError(f"{twice[0]!r} against itself shows nothing; `lra-report table accuracy` lists the names")
    name, *rivals = labels
    alone = len(rivals) == 1
    rows, pairs, p_values, used, lost, apart = [], list[int](), list[float](), set[str](), list[str](), list[str]()
    expected = len(results.seeds)
    for column, rival in itertools.product(headings(frame), rivals):
        here = frame[frame["column"] == column]
        sides = [_scored(here[here["label"] == label]) for label in (name, rival)]
        seeds = sorted(set(sides[0].index) & set(sides[1].index))
        budgets = [{results.records[run_id].config.budget for run_id in side["run_id"]} for side in sides]
        if seeds and not any_budget and budgets[0] != budgets[1]:
            steps = " and ".join("/".join(f"{budget:,}" for budget in sorted(each)) for each in budgets)
            raise UsageError(
                f"{name} and {rival} have different budgets on {column}, {steps} steps; --any-budget compares them"
            )
        for label in (name, rival):
            words = ", ".join(lost_words(here[here["label"] == label]))
            lost += [f"{label} on {column} lost runs: {words}. No difference counts them."] if words else []
        if not seeds:
            wanted = expected or all(map(len, sides))
            apart += [f"{name} and {rival} have no seed in common on {column}."] if wanted else []
            continue
        result = compare_paired(*(side.loc[seeds, "accuracy"].tolist() for side in sides))
        difference = result.difference
        bits = [_mcnemar(results, *(str(side.loc[seed, "run_id"]) for side in sides)) for seed in seeds]
        pairs.append(len(seeds))
        p_values.append(result.p_value)
        used.update(run_id for side in sides for run_id in side.loc[seeds, "run_id"])
        rows.append(
            {
                "task": column,
                **({} if alone else {"against": rival}),
                "seeds": f"{len(seeds)} of {expected}" if len(seeds) < expected else str(len(seeds)),
                "difference (points)": f"{difference.mean:+.2f}",
                "95 % interval (points)": _interval(difference.low, difference.high),
                "p (paired t)": p_text(result.p_value),
                "p (Holm)": "",
                "detectable (points)": number(result.detectable, "{:.2f}"),
                "McNemar p per seed": ", ".join(p_text(p) for _, _, p in bits),
                f"only {name}": ", ".join(str(a) for a, _, _ in bits),
                f"only {rival if alone else 'the other'}": ", ".join(str(b) for _, b, _ in bits),
            }
        )
    if not rows:
        raise UsageError(f"{first} and {', '.join(others)} have no task and seed in common under profile {profile}")
    for row, adjusted in zip(rows, holm(p_values), strict=True):
        row["p (Holm)"] = p_text(adjusted)
    frame = frame[frame["run_id"].isin(used)]
    intervals = [row["95 % interval (points)"] for row in rows]
    notes: list[str] = [
        *dict.fromkeys(lost),
        *apart,
        Term("Difference: first minus second, points of test accuracy, mean over the seeds that both have."),
        *([NO_SPREAD] if any(text == NOT_RUN and n > 1 for text, n in zip(intervals, pairs, strict=True)) else []),
        Term(
            "Detectable: the true difference that this many pairs with this spread would show in 80 % of cases; "
            f"{NOT_RUN} for one pair, and for pairs without spread, where the t test does not apply."
        ),
        Term("Only: test examples that one has right and the other has wrong, per seed (exact McNemar test)."),
        Term("Holm: p adjusted for the number of rows that have one."),
    ]
    if max(pairs) == 1:
        notes.insert(0, "PREVIEW: one common seed, which supports no claim.")
    return plain_table(
        table_caption(f"{name} against {rivals[0] if alone else 'others'}", profile, track, (min(pairs), max(pairs))),
        rows,
        notes + provenance_notes(frame),
        frame,
    )


def ablation(results: ResultSet, profile: str, track: str, variant: str) -> Table:
    """Tabulate the runs of one variant by its changed settings, with the difference to the base setting.

    The base setting has the most common value of each setting. Of equally common values, it has that of the run that
    ended first.

    Args:
        results: The records.
        profile: Profile of the records to use.
        track: Their track.
        variant: Name of the variant. Settings in brackets, as in `contextpool [placement=stream]`, choose the base.

    Raises:
        UsageError: The variant has no records here, or all of its records have the same settings.
    """
    everything = results.for_profile(profile, track).frame()
    row = variant
    variant, base_settings = split_row(row)
    frame = everything[everything["variant"] == variant]
    if not any(fits(settings, base_settings) for settings in frame["settings"]):
        raise UsageError(f"no records of {row!r} under profile {profile}, {track} track")
    rows, notes = [], []
    for column in headings(frame):
        here = frame[frame["column"] == column]
        changes, setting = _changes(here, base_settings)
        base_runs = here[[change == "" for change in changes]]
        named = [label for label in sorted(set(base_runs["label"])) if "[" in label]
        notes.append(f"Base on {column}: {'; '.join([setting or 'the only setting', *named])}.")
        base = _scored(base_runs)
        for changed in sorted(set(changes)):
            group = here[[change == changed for change in changes]]
            text, _ = accuracy_cell(group, len(results.seeds))
            rows.append(
                {
                    "task": column,
                    "changed": changed or BASE,
                    "test accuracy (%)": text,
                    "difference to base (points)": _difference(_scored(group), base) if changed else NOT_RUN,
                }
            )
    if not any(row["changed"] != BASE for row in rows):
        raise UsageError(
            f"{variant} has one setting only under profile {profile}, {track} track; "
            "lra-run --set variant.OPTION=VALUE runs another"
        )
    notes.append(Term("Difference to base: mean over common seeds, with its 95 % t interval and the number of pairs."))
    differences = [row["difference to base (points)"] for row in rows]
    notes += [NO_SPREAD] if any("[" not in text and not text.endswith(("(1)", NOT_RUN)) for text in differences) else []
    notes += provenance_notes(frame)
    title = table_caption(
        f"Ablation of {', '.join(sorted(set(frame['variant_title'])))}", profile, track, seeds_by_cell(frame)
    )
    return plain_table(title, rows, preview(frame) + notes, frame)


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The variants that have a number for every task, by average rank."""

    columns: list[str]
    """The tasks."""
    labels: list[str]
    """The variants, best first."""
    ranks: list[float]
    """The average rank of each."""
    critical: float
    p_value: float
    """See `statistics.AverageRanks`."""
    missing: list[str]
    """Variants without a number for every task."""
    runs: pd.DataFrame
    """The runs behind the ranks."""


def rank_variants(frame: pd.DataFrame, seeds: int) -> Ranking:
    """Rank the variants of one profile and track within each task, and average the ranks.

    Args:
        frame: The runs.
        seeds: How many a suite asks for; 0 without one. A variant that lacks a number has no mean.

    Raises:
        UsageError: Fewer than two variants have numbers for all tasks, or there is only one task.
    """
    columns, labels = headings(frame), sorted(frame["label"].unique())
    scores = {
        label: [accuracy_cell(part, seeds)[1] if len(part) else math.nan for part in _by_column(frame, label, columns)]
        for label in labels
    }
    complete = [label for label in labels if not any(map(math.isnan, scores[label]))]
    if len(complete) < 2 or len(columns) < 2:
        raise UsageError("ranks need two tasks and two variants with numbers for all tasks")
    found = average_ranks(pd.DataFrame([scores[label] for label in complete]).to_numpy())
    ranks, in_order = zip(*sorted(zip(found.ranks.tolist(), complete, strict=True)), strict=True)
    return Ranking(
        columns=columns,
        labels=list(in_order),
        ranks=list(ranks),
        critical=found.critical,
        p_value=found.p_value,
        missing=sorted(set(labels) - set(complete)),
        runs=frame[frame["label"].isin(complete)],
    )


def ranks(results: ResultSet, profile: str, track: str) -> Table:
    """Tabulate the average ranks of the variants over tasks, with the tests of Friedman and Nemenyi.

    Raises:
        UsageError: Fewer than two variants have numbers for all tasks, or there is only one task.
    """
    found = rank_variants(results.for_profile(profile, track).frame(), len(results.seeds))
    rows = [
        {"variant": label, "average rank": f"{rank:.2f}"} for label, rank in zip(found.labels, found.ranks, strict=True)
    ]
    notes = [
        f"Ranks over {len(found.columns)} tasks ({', '.join(found.columns)}); 1 is best. Friedman's test of no "
        f"difference: p {p_text(found.p_value)}.",
        f"Critical difference (Nemenyi, 0.05): {found.critical:.2f} ranks of at most {len(found.labels) - 1}. Variants "
        "that are closer than this cannot be told apart.",
    ]
    notes += [f"Left out because a task or a seed is missing: {', '.join(found.missing)}."] if found.missing else []
    notes = preview(found.runs) + notes + provenance_notes(found.runs)
    title = table_caption("Average ranks", profile, track, seeds_by_cell(found.runs))
    return plain_table(title, rows, notes, found.runs, [-rank for rank in found.ranks])


def _label_of_row(row: str, frame: pd.DataFrame, where: str) -> str:
    """Return the label of a row of the accuracy table that is given by its registered name.

    Raises:
        UsageError: There is no such row; the error names the rows of the same variant, if there are any.
    """
    known = set(frame["row"])
    if row not in known:
        variant, settings = split_row(row)
        of_variant = frame[frame["variant"] == variant]
        fitting = sorted(set(of_variant["row"][[fits(found, settings) for found in of_variant["settings"]]]))
        if len(fitting) > 1:
            some = ", ".join(map(repr, fitting[:SUGGESTED]))
            raise UsageError(
                f"no row {row!r} {where}, but {len(fitting)} with settings, such as {some}; --suite narrows"
            )
        if not fitting:
            raise UsageError(f"no row {row!r} {where}; {suggest(row, set(of_variant['row']) or set(frame['variant']))}")
        row = fitting[0]
    return str(frame["label"][frame["row"] == row].iloc[0])


def _changes(frame: pd.DataFrame, base: str) -> tuple[list[str], str]:
    """Return the departures of each row from the base setting, and the values of the base in what differs.

    The base has the most common settings of the rows that fit the given ones.
    """
    names = varying(frame["settings"])
    texts = [
        {name: shown_value(settings[name]) if name in settings else "(absent)" for name in names}
        for settings in frame["settings"]
    ]
    order = frame["finished_at"].reset_index(drop=True).sort_values(kind="stable").index
    fitting = [row for row in order if fits(frame["settings"].iloc[row], base)] or list(order)
    common = {name: Counter(texts[row][name] for row in fitting).most_common(1)[0][0] for name in names}

    holders = Counter(map(short_name, names))

    def written(values: dict[str, str]) -> str:
        # An option of a variant may have the name of another setting: then both have their whole paths.
        shown = {name: short_name(name) if holders[short_name(name)] == 1 else name for name in values}
        return ", ".join(f"{shown[name]}={value}" for name, value in values.items())

    changes = [written({name: text[name] for name in names if text[name] != common[name]}) for text in texts]
    return changes, written(common)


def _by_column(frame: pd.DataFrame, label: str, columns: Sequence[str]) -> list[pd.DataFrame]:
    ours = frame[frame["label"] == label]
    return [ours[ours["column"] == column] for column in columns]


def _scored(group: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that have a number, indexed by seed."""
    return group.dropna(subset=["accuracy"]).set_index("seed")


def _difference(ours: pd.DataFrame, base: pd.DataFrame) -> str:
    shared = sorted(set(ours.index) & set(base.index))
    if not shared:
        return NOT_RUN
    result = compare_paired(ours.loc[shared, "accuracy"].tolist(), base.loc[shared, "accuracy"].tolist()).difference
    interval = "" if math.isnan(result.low) else f" {_interval(result.low, result.high)}"
    return f"{result.mean:+.2f}{interval} ({len(shared)})"


def _mcnemar(results: ResultSet, first: str, second: str) -> tuple[int, int, float]:
    bits = [results.arrays(run_id)["test_correct"] for run_id in (first, second)]
    return mcnemar(bits[0], bits[1])


def _interval(low: float, high: float) -> str:
    return NOT_RUN if math.isnan(low) else f"[{low:+.2f}, {high:+.2f}]"
