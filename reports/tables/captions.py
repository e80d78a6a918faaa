"""The words around the numbers of a report: headings, captions, notes, and numbers that are not there."""

from __future__ import annotations

import math

import pandas as pd

from ..result_set import ResultSet

FIVE = ("listops", "text", "retrieval", "image", "pathfinder")
"""Tasks of the five-task average, A5."""
SIX = (*FIVE, "pathx")
NOT_RUN = "-"


def headings(frame: pd.DataFrame) -> list[str]:
    """List the headings of the tasks: in the benchmark's order, others after them."""
    order = {task: position for position, task in enumerate(SIX)}
    tasks = dict(zip(frame["column"], frame["task"], strict=True))
    return sorted(tasks, key=lambda column: (order.get(tasks[column], len(order)), column))


def preview(frame: pd.DataFrame) -> list[str]:
    """Warn if there is one seed only."""
    return ["PREVIEW: one seed. No claim can rest on it."] if seeds_by_cell(frame)[1] == 1 else []


def seeds_by_cell(frame: pd.DataFrame) -> tuple[int, int]:
    """Return the fewest and the most seeds behind a number: of each label under each heading, at each depth.

    Where nothing gave a number, the seeds are those that were tried.
    """
    scored = frame.dropna(subset=["accuracy"])
    counts = (scored if len(scored) else frame).groupby(["label", "column", "layers"])["seed"].nunique()
    return int(counts.min()), int(counts.max())


def seeds_in_words(frame: pd.DataFrame) -> str:
    """Say how many seeds are behind the numbers, such as `3 to 5 seeds`."""
    fewest, most = seeds_by_cell(frame)
    return f"{most} seed{'' if most == 1 else 's'}" if fewest == most else f"{fewest} to {most} seeds"


def surroundings(frame: pd.DataFrame) -> list[str]:
    """Say on what data."""
    return [
        f"{title}: {dataset}." for title, dataset in sorted(set(zip(frame["title"], frame["dataset"], strict=True)))
    ]


def table_caption(what: str, profile: str, track: str, loaded: ResultSet, frame: pd.DataFrame) -> str:
    """Write a caption: what it is, profile, track, hardware, training steps, seeds."""
    machines = set()
    for cell in frame["run_id"]:
        if cell in loaded.records:
            environment = loaded.records[cell].environment
            device = str(environment.get("device", ""))
            machines.add(str(environment.get("cpu", device)) if device == "cpu" else device)
    steps = "/".join(f"{int(count)}" for count in sorted(set(frame["steps"])))
    return (
        f"{what}, profile {profile}, {track} track; {', '.join(sorted(machines)) or 'no device'}, {steps} steps, "
        f"{seeds_in_words(frame)}"
    )


def number(value: float, form: str) -> str:
    """Write a number, or that there is none."""
    return NOT_RUN if math.isnan(value) else form.format(value)


def p_text(value: float) -> str:
    """Write a p value, which is never zero, or that there is none."""
    return "<0.001" if value < 0.001 else number(value, "{:.3f}")
