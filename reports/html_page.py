"""One self-contained HTML page: tables, figures, runs, settings, environments and caveats; it asks the network nothing.

Every text from a record goes through the template's escaping, and the page's own policy forbids all scripts but one, by
its hash, and all addresses but `data:` images.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup
from PIL import Image

from lra.errors import UsageError

from .figures import curve_titles, figures, place
from .figures.style import house_style
from .render import clean, render
from .result_set import ResultSet
from .tables.accuracy import accuracy, cost, depth, seeds
from .tables.captions import seeds_by_cell, seeds_in_words
from .tables.comparisons import ranks
from .tables.efficiency import efficiency, reading_groups
from .tables.published import beside
from .tables.table import Table

FIGURE_BYTES = 1_200_000
"""Room for figures, as base64, in a page that stays under 2 MB."""
MOST_RUNS = 1000
MOST_SETTINGS = 60
DPI = 150
COLOURS_KEPT = 64
"""Of a figure in the page; it has a dozen, and their blends."""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A line of the list of runs."""

    cell: str
    task: str
    variant: str
    profile: str
    seed: int
    status: str
    accuracy: str
    step: str
    settings: int
    """Number of its settings in the page."""
    curve: int
    """Number of the figure with its learning curve; 0 if there is none."""


def page(loaded: ResultSet, command: str) -> str:
    """Return the page.

    Args:
        loaded: Records of any profiles.
        command: The command that makes it, to be shown.
    """
    drawn, left_out = _figures(loaded)
    rows, settings = _runs(loaded, [title for title, _ in drawn])
    script = (Path(__file__).parent / "html_page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("html_page.html.j2").render(
        command=clean(command),
        caveats=_caveats(loaded, left_out),
        tables=[Markup(render(table, "html")) for table in _tables(loaded)],  # escaped by `render`
        figures=drawn,
        runs=rows,
        settings=settings,
        environments=_environments(loaded),
        script=Markup(script),  # our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        most_runs=MOST_RUNS,
        most_settings=MOST_SETTINGS,
    )


def _tables(loaded: ResultSet) -> list[Table]:
    """Make the tables that the records give."""
    found = []
    for profile, track in loaded.profiles():
        part = loaded.only(profile, track)
        makers = [accuracy, seeds, cost]
        if len({record.config.model.num_layers for record in part.records.values()}) > 1:
            makers.append(depth)
        found += [make(part, profile, track) for make in makers]
        for make in (ranks, beside):
            try:
                found.append(make(part, profile, track))
            except UsageError:  # needs two tasks, or a variant with published numbers
                continue
    return found + [efficiency(group) for group in reading_groups(loaded)]


def _figures(loaded: ResultSet) -> tuple[list[tuple[str, str]], int]:
    """Return (title, PNG in base64) of the figures there is room for, and how many there is none for."""
    found, room, left_out = [], FIGURE_BYTES, 0
    for title, figure in figures(loaded):
        buffer = io.BytesIO()
        with house_style():
            figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
        small = io.BytesIO()
        with Image.open(buffer) as picture:  # a quarter of the bytes, so that four times as many figures fit
            picture.convert("RGB").quantize(COLOURS_KEPT).save(small, format="png", optimize=True)
        data = base64.b64encode(small.getvalue()).decode()
        if len(data) > room:
            left_out += 1
            continue
        room -= len(data)
        found.append((clean(title), data))
    return found, left_out


def _runs(loaded: ResultSet, titles: list[str]) -> tuple[list[RunRow], list[str]]:
    """List the runs; runs that differ in their seed alone share their settings."""
    rows, numbers = [], dict[str, int]()
    frame = pd.concat([_with_curves(loaded.only(*pair).frame(), *pair) for pair in loaded.profiles()])
    for _, run in frame.iterrows():
        text = json.dumps(
            {"task": run["task"], "data": run["dataset"], "variant": run["variant"], **run["settings"]}, indent=1
        )
        number = numbers.setdefault(text, len(numbers) + 1)
        curve = clean(run["curve"])
        scored = pd.notna(run["accuracy"])
        rows.append(
            RunRow(
                cell=clean(run["run_id"])[:12],
                task=clean(run["column"]),
                variant=clean(run["label"]),
                profile=clean(f"{run['profile']}, {run['track']}"),
                seed=int(run["seed"]),
                status=str(run["status"]),
                accuracy=f"{run['accuracy']:.2f}" if scored else "-",
                step=str(int(run["selected_step"])) if scored else "-",
                settings=number,
                curve=titles.index(curve) + 1 if scored and curve in titles else 0,
            )
        )
    return rows, list(numbers)


def _with_curves(frame: pd.DataFrame, profile: str, track: str) -> pd.DataFrame:
    """Add the title of the figure with each run's learning curve."""
    parts = []
    for column, group in frame.groupby("column", sort=False):
        parts.append(group.assign(curve=curve_titles(group, place(str(column), profile, track))))
    return pd.concat(parts)


def _environments(loaded: ResultSet) -> list[str]:
    """List the different surroundings, without what changes from minute to minute."""
    texts = {
        json.dumps({k: v for k, v in record.environment.items() if k != "load_average"}, indent=1, sort_keys=True)
        for record in loaded.records.values()
    }
    return sorted(texts)


def _caveats(loaded: ResultSet, figures_left_out: int) -> list[str]:
    """Say what a reader must know before the numbers."""
    found = ["Validation chose the weights; the test set was read once for each run."]
    if len(loaded.profiles()) > 1:
        found.append("Profiles and tracks are different recipes; their numbers are never mixed in a table.")
    for profile, track in loaded.profiles():
        frame = loaded.only(profile, track).frame()
        if seeds_by_cell(frame)[0] < 5:
            rest = f"numbers rest on {seeds_in_words(frame)}; five make a table."
            found.append(f"Profile {clean(profile)}, {track} track: {rest}")
    lost = [record for record in loaded.records.values() if record.outcome is None]
    if lost or loaded.attempts:
        found.append(f"{len(lost)} runs diverged, and {len(loaded.attempts)} cells were tried and have no record.")
    if loaded.problems:
        found.append(f"{len(loaded.problems)} files were passed over: {'; '.join(map(clean, loaded.problems[:5]))}.")
    if figures_left_out:
        found.append(f"{figures_left_out} figures are left out for size; lra-report figures draws them.")
    return found
