# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page with tables, figures, runs, settings, environments and caveats.

The template escapes every text from a record. The page's own policy allows one script, by its hash, and no addresses
but `data:` images.
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
from lra.terminal import clean_line

from .figures import all_figures
from .figures.draw import FIGURES, curve_titles, figure_subtitle
from .figures.style import house_style
from .render import render, shared_notes
from .result_set import ResultSet
from .tables import Table, accuracy, cost, depth, ranks, seeds, vs_published
from .tables.captions import seeds_by_cell, seeds_in_words
from .tables.efficiency import efficiency, measurement_groups

FIGURE_BYTES = 1_200_000
"""Room for figures, in bytes of base64, so that the page stays under 2 MB."""
MOST_RUNS = 1000
MOST_SETTINGS = 60
DPI = 150
COLOURS_KEPT = 128
"""Number of colours in a figure of the page; a figure has up to twenty, and blends of them."""


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A line of the list of runs."""

    run_id: str
    task: str
    variant: str
    profile: str
    seed: int
    status: str
    accuracy: str
    step: str
    settings: int
    """Number of its settings on the page."""
    curve: int
    """Number of the figure with its learning curve; 0 without one."""


def page(results: ResultSet, command: str) -> str:
    """Return the page.

    Args:
        results: Records of any profiles.
        command: The command that makes the page, which shows it.
    """
    drawn, left_out = _figures(results)
    terms, tables = shared_notes(_tables(results))
    shown = results.with_full()  # as the figures have it
    rows, settings = _runs(shown, [title for title, *_ in drawn])
    script = (Path(__file__).parent / "html_page.js").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("html_page.html.j2").render(
        command=clean_line(command),
        caveats=_caveats(shown, left_out),
        terms=[clean_line(term) for term in terms],
        tables=[(clean_line(table.caption), Markup(render(table, "html"))) for table in tables],  # escaped by `render`
        figures=drawn,
        runs=rows,
        settings=settings,
        environments=_environments(shown),
        script=Markup(script),  # our own file
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        most_runs=MOST_RUNS,
        most_settings=MOST_SETTINGS,
    )


def _tables(results: ResultSet) -> list[Table]:
    """Make all tables that can be made of the records."""
    found = []
    for profile, track in results.profiles():
        part = results.for_profile(profile, track)
        makers = [accuracy, seeds, cost]
        if part.frame()["layers"].nunique() > 1:
            makers.append(depth)
        found += [make(results, profile, track) for make in makers]
        for make in (ranks, vs_published):
            try:
                found.append(make(results, profile, track))
            except UsageError:  # ranks need two tasks; some variants have no published numbers
                continue
    return found + [efficiency(group) for group in measurement_groups(results)]


def _figures(results: ResultSet) -> tuple[list[tuple[str, str, str]], int]:
    """Return title, meaning and PNG in base64 of each figure that fits, and how many figures do not fit."""
    found, room, left_out = [], FIGURE_BYTES, 0
    for title, figure in all_figures(results):
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
        kind = next(kind for kind in FIGURES if title.startswith(kind))
        found.append((clean_line(title), FIGURES[kind], data))
    return found, left_out


def _runs(results: ResultSet, titles: list[str]) -> tuple[list[RunRow], list[str]]:
    """List the runs; runs that differ only in their seed share their settings."""
    rows, numbers = [], dict[str, int]()
    frame = pd.concat([_with_curves(results.for_profile(*pair).frame(), *pair) for pair in results.profiles()])
    for _, run in frame.iterrows():
        text = json.dumps(
            {
                "task": run["task"],
                "data": run["dataset"],
                "variant": run["variant"],
                **dict(sorted(run["settings"].items())),
            },
            indent=1,
        )
        number = numbers.setdefault(text, len(numbers) + 1)
        curve = clean_line(run["curve"])
        scored = pd.notna(run["accuracy"])
        rows.append(
            RunRow(
                run_id=clean_line(run["run_id"])[:12],
                task=clean_line(run["column"]),
                variant=clean_line(run["label"]),
                profile=clean_line(run["place"]),
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
    """Add to each run the recipe under which tables show it, and the title of the figure with its learning curve."""
    parts = []
    for column, group in frame.groupby("column", sort=False):
        parts.append(group.assign(curve=curve_titles(group, figure_subtitle(str(column), profile, track))))
    return pd.concat(parts).assign(place=f"{profile}, {track}")


def _environments(results: ResultSet) -> list[str]:
    """List the different environments, without the load, which changes from minute to minute."""
    texts = {
        json.dumps({k: v for k, v in record.environment.items() if k != "load_average"}, indent=1, sort_keys=True)
        for record in results.records.values()
    }
    return sorted(texts)


_SELECTED = {"best": "those that were best on validation data", "last": "those of the last step"}
"""What `train.selection` means."""


def _caveats(results: ResultSet, figures_left_out: int) -> list[str]:
    """List what a reader must know about the numbers."""
    found = ["The test set was read once for each run."]
    for profile, track in results.profiles():
        runs = results.for_profile(profile, track).records.values()
        ways = [_SELECTED[way] for way in sorted({run.config.train.selection for run in runs})]
        if ways:
            found.append(f"Profile {clean_line(profile)}, {track} track: the weights are {', or '.join(ways)}.")
    if len(results.profiles()) > 1:
        found.append("Profiles and tracks are different recipes; their numbers are never mixed in a table.")
    for profile, track in results.profiles():
        frame = results.for_profile(profile, track).frame()
        if seeds_by_cell(frame)[0] < 5:
            rest = f"numbers rest on {seeds_in_words(*seeds_by_cell(frame))}; five make a table."
            found.append(f"Profile {clean_line(profile)}, {track} track: {rest}")
    lost = [record for record in results.records.values() if record.outcome is None]
    if lost or results.attempts:
        found.append(f"{len(lost)} runs diverged, and {len(results.attempts)} runs were tried and have no record.")
    if results.problems:
        found.append(
            f"{len(results.problems)} files could not be used: {'; '.join(map(clean_line, results.problems[:5]))}."
        )
    if figures_left_out:
        found.append(f"{figures_left_out} figures are left out because of their size; lra-report figures draws them.")
    return found
