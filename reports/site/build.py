# SPDX-License-Identifier: Apache-2.0
"""The pages of the site, made from records and published numbers.

No page needs a network or a server, and only sorting and filtering need a script. The templates escape every text from
a record.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from attention_zoo import VariantSpec, get_variant
from attention_zoo.registry import is_own
from lra.config.builtin import profile_names
from lra.config.labels import split_row
from lra.config.schema import without_folder
from lra.errors import DamagedFileError, StoreError, UsageError, refusals_as
from lra.metrics import beatable, wilson_interval
from lra.results.bench_format import STATUS_WORDS
from lra.results.records import RunRecord, read_record
from lra.tasks import PROBES, TASKS
from lra.terminal import clean_line, progress_bar

from ..baselines import baselines_of, highest_baselines
from ..result_set import ResultSet
from ..statistics import comparable, mean_with_interval
from ..tables.accuracy import is_above_chance
from ..tables.captions import baseline_titles, headings
from ..tables.published import Published, is_off_recipe, load_published
from .command_line import repeat_command

HERE = Path(__file__).parent
CURVE_WIDTH, CURVE_HEIGHT = 480, 200
"""Size of the drawing area of a learning curve, in pixels of the page."""
LONGEST_NAME = 60
"""Letters of a title in the name of a file."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a board: a variant with its options, or an answer that needs no model, or a published number."""

    name: str
    mean: float
    """Test accuracy in percent."""
    low: float = math.nan
    high: float = math.nan
    interval: str = ""
    """What the interval covers: `seeds` or `test examples`."""
    seeds: int = 0
    """How many runs have a number,"""
    tried: int = 0
    """of how many, be it that a suite asks for them. Where one is missing, the mean is that of the others, and the row
    has no place."""
    above_chance: int = 0
    """How many of the runs are above chance and majority by more than the noise of the test set."""
    parameters: float = math.nan
    megaflops: float = math.nan
    """Operations of one example, forward and backward."""
    variant: str = ""
    """Registered name."""
    family: str = ""
    note: str = ""
    runs: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Board:
    """The ranking of one task under one recipe."""

    task: str
    profile: str
    track: str
    dataset: str
    rows: list[Row]
    """Best first; after these, the rows that lost runs."""
    baselines: list[Row]
    """The accuracies of answers that need no model, best first;"""
    beatable: float
    """the best that a model can be asked to beat, in percent; NaN for none."""
    published: list[Row]
    lost: list[tuple[str, str, str, str]]
    """Label, variant and status of each run without a number, and its id if it has a record; else an empty text."""
    address: str
    """The file of the page, from the root of the site."""

    @property
    def title(self) -> str:
        """The title of the page."""
        return f"{self.task}, profile {self.profile}" + ("" if self.track == "matched" else f", {self.track} track")

    @property
    def placed(self) -> list[Row]:
        """The rows that have a place, best first."""
        return [row for row in self.rows if row.seeds == row.tried]

    @property
    def leaders(self) -> list[Row]:
        """The rows from which the first is the best: those with a place that are above chance, or else all."""
        return [row for row in self.placed if row.above_chance] or self.rows

    @property
    def first(self) -> list[Row]:
        """The leaders that share the first place; a row that lost runs has no place, and stands alone."""
        best, *others = self.leaders
        return [best, *(row for row in others if self.place(row) == self.place(best) != "-")]

    def place(self, row: Row) -> str:
        """Return the place of a row, which rows of the same mean share; a dash if runs of it are lost."""
        first, *_ = comparable([row.mean])
        others = comparable([other.mean for other in self.rows if other.seeds == other.tried])
        above = int((others > first).sum())
        return "-" if row.seeds < row.tried else str(above + 1)


def build_site(results: ResultSet, folder: Path, command: str, *, quiet: bool = False) -> int:
    """Write the site and return the number of its pages.

    Args:
        results: Records of any profiles.
        folder: Where the pages go. Files of an earlier site there are replaced, and no other file is touched.
        command: The command that makes the site, which the first page shows.
        quiet: Whether to show no progress.

    Raises:
        UsageError: There is no record of a run, or the folder cannot be written.
    """
    if not results.records:
        raise UsageError("the store holds no records of runs yet; a site has none to show")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("site.css", "site.js"))
    environment.globals |= {
        "style": Markup(style),  # our own files
        "style_hash": _hash(style),
        "script": Markup(script),
        "script_hash": _hash(script),
        "slug": slug,
        "number": _number,
    }
    published = load_published()
    boards = make_boards(results, published)
    pages = {"index.html": ("index.html.j2", {"boards": boards, "runs": len(results.records), "command": command})}
    for board in boards:
        pages[board.address] = ("board.html.j2", {"board": board})
    trained = {without_folder(record.config.variant.name) for record in results.records.values()}
    for variant, title in results.titles().items():
        if variant not in trained:
            continue  # it was measured or tried, and has no record
        pages[f"variants/{slug(variant)}.html"] = (
            "variant.html.j2",
            _variant_page(variant, title, boards, published),
        )
    names = {run: label for board in boards for label, _, _, run in board.lost}
    names |= {run_id: row.name for board in boards for row in board.rows for run_id in row.runs}
    places = {run_id: (board, row) for board in boards for row in board.rows for run_id in row.runs}
    with refusals_as(UsageError, f"cannot write {folder}"):
        for address, (template, values) in pages.items():
            _write(folder / address, environment.get_template(template), address, values)
        for run_id, record in progress_bar(
            list(results.records.items()), title="pages of runs", unit="page", shown=not quiet
        ):
            address = f"runs/{run_id[:16]}.html"
            values = _run_page(record, results, places.get(run_id), names[run_id])
            _write(folder / address, environment.get_template("run.html.j2"), address, values)
            _copy_record(results.stores[run_id].record_path(run_id), folder / "runs" / f"{run_id[:16]}.json", record)
    return len(pages) + len(results.records)


def _copy_record(source: Path, target: Path, record: RunRecord) -> None:
    """Copy the file of a record that was read before.

    Raises:
        StoreError: The file has changed since.
    """
    target.write_bytes(source.read_bytes())
    try:
        same = read_record(target) == record
    except DamagedFileError:
        same = False
    if not same:
        raise StoreError(f"{source} changed while the site was written; run the command again")


def make_boards(results: ResultSet, published: Sequence[Published]) -> list[Board]:
    """Rank the variants of each task, profile and track by the mean of their seeds."""
    boards = []
    for profile, track in results.profiles():
        part = results.for_profile(profile, track)
        frame = part.frame()
        for heading in headings(frame):
            group = frame[frame["column"] == heading]
            rows = [
                _row(part, str(label), runs) for label, runs in group.groupby("label") if runs["accuracy"].notna().any()
            ]
            task = str(group["task"].iloc[0])
            baselines = _baselines(part, group["run_id"].tolist())
            titles = baseline_titles(dict(baselines))
            recipe = not any(is_off_recipe(part, str(run_id)) for run_id in group["run_id"])
            boards.append(
                Board(
                    task=clean_line(heading),
                    profile=clean_line(profile),
                    track=track,
                    dataset=clean_line(", ".join(sorted(set(group["dataset"])))),
                    rows=sorted(rows, key=lambda row: (row.seeds < row.tried, -comparable([row.mean])[0], row.name)),
                    baselines=[Row(name=clean_line(titles[name]), mean=each) for name, each in baselines],
                    beatable=max(beatable(dict(baselines)).values(), default=math.nan),
                    published=_published_rows(published, task, group["profile"].iloc[0] if recipe else None, track),
                    lost=_lost(results, group),
                    address=_address(heading, profile, track),
                )
            )
    return boards


def _address(heading: str, profile: str, track: str) -> str:
    """Return the file of a ranking: a short name for our tasks and profiles, and else one with a digest."""
    title = f"{heading}, profile {profile}" + ("" if track == "matched" else f", {track} track")
    own = {task.info.title for task in (TASKS | PROBES).values()}
    if heading in own and profile in profile_names():
        return f"boards/{_plain(title)}.html"
    return f"boards/{_plain(title)}-{_digest(repr((heading, profile, track)))}.html"


def _lost(results: ResultSet, runs: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """List the runs without a number: see `Board.lost`."""
    return [
        (
            clean_line(run["label"]),
            run["variant"],
            STATUS_WORDS.get(run["status"], run["status"]),
            run["run_id"] if run["run_id"] in results.records else "",
        )
        for _, run in runs[runs["accuracy"].isna()].iterrows()
    ]


def _row(results: ResultSet, label: str, tried: pd.DataFrame) -> Row:
    """Summarise the runs of one row: Student's interval over seeds, or Wilson's for one run."""
    runs = tried.dropna(subset=["accuracy"])
    variant = str(runs["variant"].iloc[0])
    estimate = mean_with_interval(runs["accuracy"].tolist())
    low, high, interval = estimate.low, estimate.high, "seeds"
    if estimate.count == 1:
        single = runs.iloc[0]
        low, high = (100 * bound for bound in wilson_interval(int(single["correct"]), int(single["total"])))
        interval = "test examples"
    spec = _spec(variant)
    return Row(
        name=clean_line(label), mean=estimate.mean, low=low, high=high, interval=interval, seeds=estimate.count,
        tried=max(len(tried), len(results.seeds)),
        above_chance=sum(is_above_chance(results, run_id) for run_id in runs["run_id"]),
        parameters=float(runs["parameters"].iloc[0]), megaflops=_one_value(runs["flops"]) / 1e6,
        variant=variant, family=spec.family if spec else "other",
        runs=runs.sort_values("seed")["run_id"].tolist(),
    )  # fmt: skip


def _one_value(column: pd.Series) -> float:
    """Return the one value of all runs that have any; NaN where devices count differently, or there is none."""
    found = column.dropna().unique()
    return float(found[0]) if len(found) == 1 else math.nan


def _baselines(results: ResultSet, run_ids: Sequence[str]) -> list[tuple[str, float]]:
    """Return the accuracies of answers that need no model with their names, best first."""
    found, _ = highest_baselines(results.records[run_id] for run_id in run_ids if run_id in results.records)
    return sorted(found.items(), key=lambda each: (-each[1], each[0]))


def _published_rows(sources: Sequence[Published], task: str, profile: str | None, track: str) -> list[Row]:
    """Return the published numbers of a task, best first, each with its source and its flags.

    Args:
        sources: What was published.
        task: Of the board.
        profile: That of the board, if all its runs have the recipe of it.
        track: Of the board.
    """
    rows = []
    for source in sources:
        same = source.profile == profile and track == "matched"
        for name, numbers in source.rows.items():
            value = dict(zip(source.columns, numbers, strict=True)).get(task)
            if value is not None:
                rows.append(_published_row(source, name, value, same=same))
    return sorted(rows, key=lambda row: (-row.mean, row.name))


def _published_row(source: Published, name: str, value: float, *, same: bool) -> Row:
    """Write one published number. `same`: whether the profile of the board has the sizes of the source."""
    variant, options = split_row(name)
    spec = _spec(variant)
    title = spec.title if spec else variant
    flags = [flag.replace("_", " ") for flag in [*source.flags, *source.row_flags.get(name, [])]]
    words = [source.title, *([] if same else ["other recipe"]), *flags, *filter(None, [source.notes.get(name)])]
    return Row(
        name=f"{title} [{options}]" if options else title, mean=value, note="; ".join(dict.fromkeys(words)),
        variant=variant, family=spec.family if spec else "other",
    )  # fmt: skip


def _variant_page(variant: str, title: str, boards: Sequence[Board], sources: Sequence[Published]) -> dict[str, Any]:
    """Collect what there is of one variant: its traits, its places on all boards, and what was published of it."""
    spec = _spec(variant)
    return {
        "title": clean_line(title),
        "name": clean_line(variant),
        "paper": spec.paper if spec else "",
        "family": spec.family if spec else "",
        "complexity": spec.traits.complexity if spec else "",
        "places": [
            (board, row) for board in boards for row in board.rows if row.variant == variant
        ],
        "lost": [
            (board, label, status) for board in boards for label, name, status, _ in board.lost if name == variant
        ],
        "published": [
            (source, [f"{name}: {note}" for name, note in source.notes.items() if split_row(name)[0] == variant],
             [(task, row) for name, numbers in source.rows.items() if split_row(name)[0] == variant
              for task, value in zip(source.columns, numbers, strict=True) if value is not None
              for row in [_published_row(source, name, value, same=True)]])  # the page has runs of several recipes
            for source in sources
            if any(split_row(name)[0] == variant for name in source.rows)
        ],
    }  # fmt: skip


def _run_page(record: RunRecord, results: ResultSet, place: tuple[Board, Row] | None, name: str) -> dict[str, Any]:
    """Collect what there is of one run, whose row has a name."""
    arrays = results.arrays(record.run_id)
    curve, steps = "", arrays.get("curve.step")
    if record.outcome is not None and steps is not None and len(steps) > 1:
        accuracies = 100 * arrays["curve.validation_correct"] / record.outcome.validation.total
        across = (steps - steps[0]) / max(1.0, float(steps[-1] - steps[0])) * CURVE_WIDTH
        curve = " ".join(
            f"{x:.1f},{(100 - y) / 100 * CURVE_HEIGHT:.1f}" for x, y in zip(across, accuracies, strict=True)
        )
    baselines = baselines_of(record)
    titles = baseline_titles(baselines)
    interval = (math.nan, math.nan)
    if record.outcome is not None:
        low, high = wilson_interval(record.outcome.test.correct, record.outcome.test.total)
        interval = (100 * low, 100 * high)
    return {
        "record": record,
        "title": clean_line(name),
        "variant": without_folder(record.config.variant.name),
        "board": place[0] if place else None,
        "task": clean_line(record.task_title),
        "dataset": clean_line(record.dataset),
        "profile": clean_line(record.config.profile),
        "interval": interval,
        "baselines": sorted((clean_line(titles[name]), value) for name, value in baselines.items()),
        "curve": curve,
        "first_step": int(steps[0]) if steps is not None and len(steps) else 0,
        "last_step": int(steps[-1]) if steps is not None and len(steps) else 0,
        "repeat": clean_line(repeat_command(record.config)),
        "config": json.dumps(record.config.model_dump(), indent=1, sort_keys=True),
        "environment": json.dumps(record.environment, indent=1, sort_keys=True),
        "backend": clean_line(record.backend),
        "status": f"{record.status}: {clean_line(record.detail)}" if record.detail else record.status,
        "finished_at": clean_line(record.finished_at),
    }


def slug(text: str) -> str:
    """Return a text as the name of a file: that of a variant in snake case as it is, and else with a digest.

    So no two texts have one file, also where a file system folds case.
    """
    snake_case = re.fullmatch("[a-z0-9]+(_[a-z0-9]+)*", text) and len(text) <= LONGEST_NAME
    return _plain(text) if snake_case else f"{_plain(text)}-{_digest(text)}"


def _plain(text: str) -> str:
    """Return what of a text is plain letters and digits."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")[:LONGEST_NAME]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _spec(variant: str) -> VariantSpec | None:
    """Return a variant of this project, or None: for a name in a record no code of others is loaded."""
    return get_variant(variant) if is_own(variant) else None


def _number(value: float, form: str = "{:,.0f}") -> str:
    """Write a number, or a dash for one that there is not."""
    return "-" if math.isnan(value) else form.format(value)


def _hash(text: str) -> str:
    """Return the digest by which the page's own policy admits a style or script."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _write(file: Path, template: jinja2.Template, address: str, values: dict[str, Any]) -> None:
    """Write one page; links in it begin at the root of the site, which is `root`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(template.render(root="../" * address.count("/"), **values), encoding="utf-8")
