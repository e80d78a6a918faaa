# SPDX-License-Identifier: Apache-2.0
"""`lra-report`: tables, figures and comparisons of the records of runs.

Each command imports pandas, matplotlib and torch only when it needs them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lra.cli import CONTEXT, Group, echo_json, json_option, one_line_errors, version_option
from lra.config.labels import split_row
from lra.errors import UsageError
from lra.names import parse_seeds, suggest
from lra.terminal import clean_line, echo, progress_bar

from .selection import (
    FILE,
    FOLDER,
    Selection,
    find,
    invocation,
    load,
    need_report_extra,
    resolve_name,
    takes_selection,
    write,
)

if TYPE_CHECKING:
    from lra.measure.locality import Change

    from .result_set import ResultSet
    from .tables.table import Table

FC = TypeVar("FC", bound=Callable[..., Any] | click.Command)

PRESETS = {
    "accuracy": "variants by tasks, with averages and trivial baselines",
    "seeds": "intervals, extremes, and how many runs learnt anything",
    "ranks": "average rank over tasks, with the critical difference",
    "cost": "speed, memory, operations and parameters, relative to full attention",
    "efficiency": "speed, peak memory and state by length, from lra-bench, laid out like the paper's table 2",
    "depth": "accuracy by number of layers, with operations and time",
    "probes": "accuracy on generated tasks at the length of training and at longer ones",
    "published": "our numbers and published ones",
    "head-to-head": "A B...: paired differences of A and each other over seeds, and McNemar's test",
    "ablation": "VARIANT: one row for each changed option",
    "calibration": "PROFILE PROFILE: rank correlation of the variants; also PROFILE:open, published:SOURCE",
}
NAMES_TAKEN = {"head-to-head": 2, "ablation": 1, "calibration": 2}
"""The number of variants, of `calibration` profiles, that a preset takes as arguments; the others take none.
`head-to-head` takes more as well."""
FIGURES = {
    "ranks": "average ranks over tasks, with the critical difference",
    "seeds": "the runs of all seeds as dots",
    "speed, score and memory": "the benchmark's chart, one bubble per variant",
    "front": "the Pareto front of cost and score",
    "state": "the numbers that a layer keeps of a sequence, and the score",
    "learning": "validation accuracy over training, with the band of the seeds",
    "depth": "accuracy by layers and by operations, where depths differ",
    "scaling": "time and memory by length, with slopes, from lra-bench",
}
"""The figures that `figures` draws, by the beginning of their titles."""
ORDERS = ("score", "family", "name")
FIGURE_FORMATS = ("png", "svg", "pdf")

EXAMPLES = """
\b
Examples:
  lra-report table accuracy
  lra-report table head-to-head contextpool full --format latex --out table.tex
  lra-report figures --out figures --format pdf
  lra-report html --out report.html
  lra-report site --out site
  lra-report verify lra-results
  lra-report pooling 3f2a --out pooling.png
"""
LOCALITY_EXAMPLES = """
\b
Examples:
  lra-report locality 3f2a
  lra-report locality 3f2a --shuffle 0,4,16 --answers 50
  lra-report locality 3f2a 9c01 --hide 0,1,2,4,8,16,32 --figure locality.pdf
"""
PRESET_LIST = "\n".join(["\b", "Presets:", *(f"  {name:<14}{text}" for name, text in PRESETS.items())])
FIGURE_LIST = "\n".join(["\b", "Figures:", *(f"  {name:<25}{text}" for name, text in FIGURES.items())])


def _begun_presets(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
    """Return the presets that a shell offers."""
    return [name for name in PRESETS if name.startswith(begun)]


def format_option(*formats: str) -> Callable[[FC], FC]:
    """Return the option for the format of the output; the first format is the default."""
    return click.option("--format", "form", type=click.Choice(formats), default=formats[0], show_default=True)


def out_option(kind: click.Path, default: Path | None, text: str) -> Callable[[FC], FC]:
    """Return the option for the file or folder to write."""
    return click.option("--out", type=kind, default=default, show_default=default is not None, help=text)


figure_option = click.option("--figure", type=FILE, help="File for the figure: .png, .svg or .pdf (extra: report).")
title_option = click.option("--title", "titled", is_flag=True, help="Write a title on each figure.")


def image_form(path: Path, option: str) -> str:
    """Return the format of a figure, from the end of its name.

    Raises:
        UsageError: It is none of `FIGURE_FORMATS`, or the libraries for figures are not installed.
    """
    need_report_extra()
    form = path.suffix.removeprefix(".").lower()
    if form not in FIGURE_FORMATS:
        raise UsageError(f"{option} {path}: the figure is written as {', '.join(FIGURE_FORMATS)}")
    return form


@click.group(cls=Group, epilog=EXAMPLES, context_settings=CONTEXT)
@version_option
def command() -> None:
    """Make tables, figures and comparisons from the records of runs."""


@command.command(epilog=PRESET_LIST)
@click.argument("preset", shell_complete=_begun_presets)
@click.argument("names", nargs=-1)
@takes_selection
@format_option("text", "markdown", "latex", "csv", "html")
@click.option(
    "--sort",
    "order",
    type=click.Choice(ORDERS),
    help="Best first, by family of the variant, or by name.  [default: name; ranks: score]",
)
@click.option(
    "--any-budget",
    is_flag=True,
    help="With head-to-head: compare runs with different numbers of steps too, pretraining and --from included.",
)
@click.option("--siunitx", is_flag=True, help="With --format latex: align numbers, in columns of siunitx.")
@out_option(FILE, None, "File to write instead of printing.")
@json_option
@one_line_errors
def table(
    selection: Selection,
    *,
    preset: str,
    names: tuple[str, ...],
    form: str,
    order: str | None,
    any_budget: bool,
    siunitx: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Print the tables of a preset, one for each profile and track."""
    from .render import plain_values, render_all

    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}; {suggest(preset, PRESETS)}")
    takes = NAMES_TAKEN.get(preset, 0)
    more, what = preset == "head-to-head", "profiles" if preset == "calibration" else "variant names"
    if len(names) < takes or (len(names) > takes and not more):
        raise UsageError(f"{preset} takes {takes}{' or more' if more else ''} {what}, got {len(names)}")
    if as_json and (out or form != "text"):
        raise UsageError("--json prints; it goes without --format and --out")
    if any_budget and preset != "head-to-head":
        raise UsageError("--any-budget belongs to head-to-head")
    if siunitx and form != "latex":
        raise UsageError("--siunitx needs --format latex")
    results = load(selection)
    tables = make_tables(preset, names, results, order, any_budget=any_budget)
    if as_json:
        echo_json([plain_values(each) for each in tables])
        return
    write(render_all(tables, form, command=invocation(), siunitx=siunitx), out)


@command.command()
@click.argument("first")
@click.argument("second")
@takes_selection
@one_line_errors
def compare(selection: Selection, *, first: str, second: str) -> None:
    """Show what differs between two records.

    FIRST and SECOND are the beginnings of their run ids.
    """
    from .record_diff import differences

    results = load(selection)
    pair = [find(results, prefix) for prefix in (first, second)]
    write("\n".join(differences(results, *pair)), None)


@command.command()
@takes_selection
@click.option("--csv", "csv_file", type=FILE, help="CSV file to write.")
@click.option("--parquet", type=FILE, help="Parquet file to write (extra: export).")
@one_line_errors
def export(selection: Selection, *, csv_file: Path | None, parquet: Path | None) -> None:
    """Write one row per run to CSV or Parquet.

    The columns are those of lra.results.load, with the settings as JSON.
    """
    from .export import export_frame, write_csv, write_parquet

    if csv_file is None and parquet is None:
        raise UsageError("nothing to write; give --csv FILE, --parquet FILE or both")
    frame = export_frame(load(selection))
    if csv_file is not None:
        write_csv(frame, csv_file)
    if parquet is not None:
        write_parquet(frame, parquet)


@command.command(epilog=FIGURE_LIST)
@takes_selection
@out_option(FOLDER, Path("figures"), "Folder for the figures.")
@format_option(*FIGURE_FORMATS)
@title_option
@one_line_errors
def figures(selection: Selection, *, out: Path, form: str, titled: bool) -> None:
    """Draw all figures of the records (extra: report).

    The figures of runs are drawn for each profile, track and task, and scaling for each machine and recipe.
    """
    need_report_extra()
    from .figures import draw_all

    for path in draw_all(load(selection), out, form, titled=titled):
        echo(path)


@command.command()
@takes_selection
@out_option(FILE, Path("report.html"), "File for the page.")
@one_line_errors
def html(selection: Selection, *, out: Path) -> None:
    """Write one self-contained HTML page (extra: report).

    It holds tables, figures, runs, settings, environments and caveats, and loads nothing from the network.
    """
    need_report_extra()
    from .html_page import page

    write(page(load(selection), invocation()), out)
    echo(out)


@command.command()
@takes_selection
@out_option(FOLDER, Path("site"), "Folder for the pages.")
@one_line_errors
def site(selection: Selection, *, out: Path) -> None:
    """Write a static site: rankings, and a page for each variant and each run (extra: report).

    A ranking is one task under one profile, beside the published numbers. The pages need no server and no network.
    """
    need_report_extra()
    from .site import build_site

    pages = build_site(load(selection), out, invocation())
    echo(f"{out / 'index.html'}: {pages:,} pages")


@command.command()
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RECORD...")
@json_option
@one_line_errors
def verify(*, records: tuple[Path, ...], as_json: bool) -> None:
    """Check records that somebody sends in.

    RECORD is a file results/ab/RUN_ID.json of a store, or a store with all its records. What can be worked out again
    must agree with what the record says: its id, the answers, the variant, parameters and operations, the recipe of the
    profile, and the digest of known data. The exit code is 1 if a record is refused.
    """
    from .verify import UNKNOWABLE, records_below, verify

    refused = 0
    verdicts = []
    for path in records_below(records):
        verdict = verify(path)
        refused += bool(verdict.faults)
        verdicts.append(verdict.as_row())
        if not as_json:
            echo(f"{'refused' if verdict.faults else 'accepted'}: {clean_line(path)}")
            for line in (*verdict.faults, *(f"not checked: {remark}" for remark in verdict.remarks)):
                echo(f"  {clean_line(line)}")
    if as_json:
        echo_json(verdicts)
    else:
        echo(f"{len(verdicts) - refused} accepted, {refused} refused. {UNKNOWABLE}")
    if refused:
        sys.exit(1)


@command.command()
@click.argument("record")
@takes_selection
@click.option("--data-dir", type=FOLDER, envvar="LRA_HOME", help="Folder of prepared data.")
@click.option("--examples", type=click.IntRange(1, 8), default=3, show_default=True, help="Test examples to show.")
@out_option(FILE, Path("pooling.png"), "File for the figure: .png, .svg or .pdf.")
@title_option
@one_line_errors
def pooling(
    selection: Selection, *, record: str, data_dir: Path | None, examples: int, out: Path, titled: bool
) -> None:
    """Draw how widely a trained ContextPool pools (extra: report).

    RECORD is the beginning of a run id. The command runs the chosen weights over test examples, token by token.
    """
    form = image_form(out, "--out")
    from .figures.pooling_widths import draw_supports, load_supports
    from .figures.style import house_style, save

    results = load(selection)
    run_id = find(results, record)
    found = results.records[run_id]
    supports = load_supports(found, results.stores[run_id], data_dir)
    config = found.config
    title = (
        f"{found.variant_title}, {found.task_title}, profile {config.profile}, seed {config.seed}, run {run_id[:12]}"
    )
    with house_style():
        figure = draw_supports(supports, title if titled else "", range(min(examples, len(supports.sigma))))
    echo(save(figure, out, form))


@command.command(epilog=LOCALITY_EXAMPLES)
@click.argument("runs", nargs=-1, required=True)
@takes_selection
@click.option("--data-dir", type=FOLDER, envvar="LRA_HOME", help="Folder of prepared data.")
@click.option("--examples", type=click.IntRange(1), default=8, show_default=True, help="Test examples to look at.")
@click.option("--places", type=click.IntRange(1), default=8, show_default=True, help="Tokens to read in each.")
@click.option("--hide", metavar="RADII", help="Also answer with tokens beyond each radius hidden, such as 0,4,16.")
@click.option("--shuffle", metavar="RADII", help="Also answer with tokens beyond each radius in a random order.")
@click.option("--answers", type=click.IntRange(1), default=100, show_default=True,
              help="Test examples to answer for --hide and --shuffle.")  # fmt: skip
@format_option("text", "markdown", "latex", "csv", "html")
@out_option(FILE, None, "File to write instead of printing.")
@figure_option
@one_line_errors
def locality(
    selection: Selection,
    *,
    runs: tuple[str, ...],
    data_dir: Path | None,
    examples: int,
    places: int,
    hide: str | None,
    shuffle: str | None,
    answers: int,
    form: str,
    out: Path | None,
    figure: Path | None,
) -> None:
    """Audit how far trained models look.

    RUNS are the beginnings of run ids. The final state of a token depends on other tokens; the table shows from which
    distances the influence comes, on test examples. --hide and --shuffle show which distances the answers need: the
    accuracy when each token sees only those within a radius, or those beyond it in a random order. The figure has the
    same as curves, and a map of the influence of each token on each other, for the first four runs.
    """
    image = None if figure is None else image_form(figure, "--figure")
    asked: dict[Change, list[int]] = {}
    if hide is not None:
        asked["hide"] = sorted(parse_seeds(hide, "--hide", "radius"))
    if shuffle is not None:
        asked["shuffle"] = sorted(parse_seeds(shuffle, "--shuffle", "radius"))
    from lra.trained import TrainedRun

    from .render import render_all
    from .tables import locality as tables

    results = load(selection)
    records = [results.records[run_id] for run_id in dict.fromkeys(find(results, run) for run in runs)]
    audits = []
    scores: dict[Change, list[dict[int, float]]] = {change: [] for change in asked}
    with progress_bar(records, title="runs", unit="run", shown=True) as bar:
        for record in bar:
            looked = tables.Looked(TrainedRun(record=record, store=results.stores[record.run_id]), data_dir)
            audits.append(looked.audit(examples, places))
            for change, radii in asked.items():
                scores[change].append({radius: looked.accuracy(answers, radius, change) for radius in radii})
    made = [tables.locality(records, audits, examples=examples, places=places)]
    made += [tables.answers(records, each, change, answers) for change, each in scores.items()]
    write(render_all(made, form, command=invocation()), out)
    if figure is None or image is None:
        return
    from .figures.locality import locality_panels
    from .figures.style import house_style, save

    with house_style():
        drawn = locality_panels(records, audits, scores)
    echo(save(drawn, figure, image), err=True)


@command.command()
@takes_selection
@format_option("text", "markdown", "latex", "csv", "html")
@out_option(FILE, None, "File for the table, instead of printing it.")
@figure_option
@one_line_errors
def probes(selection: Selection, *, form: str, out: Path | None, figure: Path | None) -> None:
    """Show which variants solve which probes, at the length of training and at longer ones.

    It takes the runs of generated tasks: the probes, and tasks of your own. Their option test_length gives the lengths.
    """
    image = None if figure is None else image_form(figure, "--figure")
    from .render import render_all

    results = load(selection)
    write(render_all(make_tables("probes", (), results), form, command=invocation()), out)
    if figure is None or image is None:
        return
    from .figures.probes import probe_panels
    from .figures.style import house_style, save
    from .tables.probes import scores_by_length

    places = results.profiles()
    if len(places) > 1:
        raise UsageError("the figure shows one profile; --profile chooses it")
    with house_style():
        drawn = probe_panels(scores_by_length(results.for_profile(*places[0])), len(results.seeds))
    echo(save(drawn, figure, image), err=True)


def make_tables(
    preset: str, names: tuple[str, ...], results: ResultSet, order: str | None = None, *, any_budget: bool = False
) -> list[Table]:
    """Make the tables of a preset, one for each profile and track, and say on stderr why some of them cannot be made.

    Args:
        preset: Which tables.
        names: The variants or profiles that it takes.
        results: The records.
        order: One of `ORDERS`; None leaves the rows in the order of the preset.
        any_budget: Whether head-to-head compares runs with different numbers of steps.

    Raises:
        UsageError: None of them can be made, or their rows have one order only.
    """
    from . import tables

    if preset == "efficiency":
        made = tables.efficiency_tables(results)
        return [tables.sort_rows(each, order) if order else each for each in made]
    if preset == "calibration":
        if order:
            raise UsageError("--sort: the rows of this table have one order only")
        each = tables.calibration(results, *names)
        each.name = " ".join([preset, *names])
        return [each]
    makers: dict[str, Callable[..., Table]] = {
        "accuracy": tables.accuracy,
        "seeds": tables.seeds,
        "ranks": tables.ranks,
        "cost": tables.cost,
        "depth": tables.depth,
        "probes": tables.probes,
        "published": tables.vs_published,
        "head-to-head": functools.partial(tables.head_to_head, any_budget=any_budget),
        "ablation": tables.ablation,
    }
    rows = known_rows(names, results)
    made, refusals = [], []
    for profile, track in results.profiles():
        try:
            each = makers[preset](results, profile, track, *rows)
        except UsageError as error:
            refusals.append(str(error))
        else:
            each.name = " ".join([preset, *rows, profile, track])
            made.append(tables.sort_rows(each, order) if order else each)
    if not made:
        raise UsageError("\n".join(dict.fromkeys(refusals)) or "the store holds no records of runs yet")
    for refusal in refusals:
        echo(f"left out: {refusal}", err=True)
    return made


def known_rows(names: tuple[str, ...], results: ResultSet) -> list[str]:
    """Return the rows that a user names, each by the registered name of its variant.

    A row may be given as a table prints it, `Local attention [window=4]`, or by the registered name,
    `local [window=4]`.

    Raises:
        UsageError: No run is of a variant of that name.
    """
    rows = []
    for name in names:
        variant, settings = split_row(name)
        variant = resolve_name("variant", variant, results.titles())
        rows.append(f"{variant} [{settings}]" if settings else variant)
    return rows


def main() -> None:
    """Run the command line."""
    command()


if __name__ == "__main__":
    main()
