"""`lra-report`: records in; tables, figures and comparisons out. pandas, matplotlib and torch come when needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lra.cli import one_line_errors, version_option
from lra.errors import UsageError
from lra.names import fold, suggest

from .selection import (
    Selection,
    find,
    invocation,
    load,
    need_report_extra,
    out_option,
    takes_selection,
    write,
)

if TYPE_CHECKING:
    from .result_set import ResultSet
    from .tables.table import Table

PRESETS = {
    "accuracy": "variants x tasks, with averages and baselines",
    "seeds": "intervals, extremes and how many runs learnt anything",
    "ranks": "average rank over tasks, with the critical difference",
    "cost": "speed, memory, operations and parameters, relative to full",
    "efficiency": "steps per second and peak memory by length, from lra-bench, as in the original table 2",
    "depth": "accuracy by number of layers, with operations and time",
    "published": "our numbers beside published ones",
    "head-to-head": "A B: paired differences over seeds, McNemar on the same examples",
    "ablation": "VARIANT: one row per changed option",
}
NAMES_TAKEN = {"head-to-head": 2, "ablation": 1}
"""How many variants a preset is given; the others take none."""
FIGURES = {
    "seeds": "the runs of all seeds as dots",
    "speed, score and memory": "the benchmark's chart, one bubble a variant",
    "front": "what nothing beats in cost and score",
    "learning": "validation accuracy over training, with the band of the seeds",
    "depth": "accuracy by layers and by operations, where depths differ",
    "scaling": "time and memory by length, with slopes, from lra-bench",
}
"""What `figures` draws, by the beginning of the title; `pooling` draws the widths of one run."""
FIGURE_FORMATS = ("png", "svg", "pdf")

EXAMPLES = """
\b
Examples:
  lra-report table accuracy
  lra-report table head-to-head contextpool full --format latex --out table.tex
  lra-report figures --out figures --format pdf
  lra-report html --out report.html
  lra-report pooling 3f2a --out pooling.png
"""
PRESET_LIST = "\n".join(["\b", "Presets:", *(f"  {name:<14}{text}" for name, text in PRESETS.items())])
FIGURE_LIST = "\n".join(["\b", "Figures:", *(f"  {name:<25}{text}" for name, text in FIGURES.items())])


@click.group(epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@version_option
def command() -> None:
    """Make tables, figures and comparisons from the records of runs."""


@command.command(epilog=PRESET_LIST)
@click.argument("preset")
@click.argument("names", nargs=-1)
@takes_selection
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "latex", "csv", "html"]),
    default="text",
    show_default=True,
)
@out_option
@one_line_errors
def table(selection: Selection, *, preset: str, names: tuple[str, ...], form: str, out: Path | None) -> None:
    """Print the tables of a preset, one for each profile and track there is."""
    from .render import render

    if preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}; {suggest(preset, PRESETS)}")
    takes = NAMES_TAKEN.get(preset, 0)
    if len(names) != takes:
        raise UsageError(f"{preset} takes {takes} variant names, got {len(names)}")
    loaded = load(selection)
    tables, refusals = make_tables(preset, names, loaded)
    for refusal in refusals:
        click.echo(f"left out: {refusal}", err=True)
    texts = [render(each, form, command=invocation()) for each in tables]
    write("\n".join(texts), out)


@command.command()
@click.argument("first")
@click.argument("second")
@takes_selection
@one_line_errors
def compare(selection: Selection, *, first: str, second: str) -> None:
    """Show what differs between two records.

    FIRST and SECOND are the beginnings of their cell ids.
    """
    from .record_diff import differences

    loaded = load(selection)
    pair = [find(loaded, prefix) for prefix in (first, second)]
    write("\n".join(differences(loaded, *pair)), None)


@command.command()
@takes_selection
@click.option("--csv", "csv_file", type=click.Path(path_type=Path, dir_okay=False), help="CSV file to write.")
@click.option(
    "--parquet", type=click.Path(path_type=Path, dir_okay=False), help="Parquet file to write (extra: export)."
)
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
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("figures"),
    show_default=True,
    help="Folder for the figures.",
)
@click.option("--format", "form", type=click.Choice(FIGURE_FORMATS), default="png", show_default=True)
@one_line_errors
def figures(selection: Selection, *, out: Path, form: str) -> None:
    """Draw all figures that the records give (extra: report).

    Those of runs come for each profile, track and task; scaling comes for each machine and recipe.
    """
    need_report_extra()
    from .figures import draw_all

    for path in draw_all(load(selection), out, form):
        click.echo(path)


@command.command()
@takes_selection
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("report.html"),
    show_default=True,
    help="The page.",
)
@one_line_errors
def html(selection: Selection, *, out: Path) -> None:
    """Write one self-contained page with all of it (extra: report).

    Tables, figures, runs, settings, environments and caveats, in one file that asks the network nothing.
    """
    need_report_extra()
    from .html_page import page

    write(page(load(selection), invocation()), out)
    click.echo(out)


@command.command()
@click.argument("record")
@takes_selection
@click.option(
    "--data-dir", type=click.Path(path_type=Path, file_okay=False), envvar="LRA_HOME", help="Folder of prepared data."
)
@click.option("--examples", type=click.IntRange(1, 8), default=3, show_default=True, help="Test examples to show.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("pooling.png"),
    show_default=True,
    help="Figure: .png, .svg or .pdf.",
)
@one_line_errors
def pooling(selection: Selection, *, record: str, data_dir: Path | None, examples: int, out: Path) -> None:
    """Draw how widely a trained ContextPool pools (extra: report).

    RECORD is the beginning of a cell id. Its chosen weights are run over test examples, token by token.
    """
    need_report_extra()
    form = out.suffix.removeprefix(".").lower()
    if form not in FIGURE_FORMATS:
        raise UsageError(f"--out {out}: the figure is written as {', '.join(FIGURE_FORMATS)}")
    from .figures.pooling_widths import draw_supports, load_supports
    from .figures.style import house_style, save

    loaded = load(selection)
    cell = find(loaded, record)
    found = loaded.records[cell]
    supports = load_supports(found, loaded.stores[cell], data_dir)
    config = found.config
    title = f"{config.variant.name}, {found.task_title}, profile {config.profile}, seed {config.seed}, run {cell[:12]}"
    with house_style():
        figure = draw_supports(supports, title, range(min(examples, len(supports.sigma))))
    click.echo(save(figure, out, form))


def make_tables(preset: str, names: tuple[str, ...], loaded: ResultSet) -> tuple[list[Table], list[str]]:
    """Make the tables of a preset, one for each profile and track, and say which of them the records do not give.

    Raises:
        UsageError: They give none.
    """
    from .tables import accuracy, comparisons, published
    from .tables.efficiency import efficiency_tables

    if preset == "efficiency":
        return efficiency_tables(loaded), []
    makers: dict[str, Callable[..., Table]] = {
        "accuracy": accuracy.accuracy,
        "seeds": accuracy.seeds,
        "ranks": comparisons.ranks,
        "cost": accuracy.cost,
        "depth": accuracy.depth,
        "published": published.beside,
        "head-to-head": comparisons.head_to_head,
        "ablation": comparisons.ablation,
    }
    rows = known_rows(names, loaded)
    made, refusals = [], []
    for profile, track in loaded.profiles():
        try:
            made.append(makers[preset](loaded, profile, track, *rows))
        except UsageError as error:
            refusals.append(str(error))
    if not made:
        raise UsageError("\n".join(dict.fromkeys(refusals)) or "the store holds no records of runs yet")
    return made, refusals


def known_rows(names: tuple[str, ...], loaded: ResultSet) -> list[str]:
    """Return the names of rows as tables write them: case and dashes of the variant's name do not matter.

    Raises:
        UsageError: No run is of a variant of that name, or one row was named twice.
    """
    variants = {record.config.variant.name for record in loaded.records.values()}
    variants |= {attempt.config.variant.name for attempt in loaded.attempts.values()}
    rows = []
    for name in names:
        variant, bracket, settings = name.partition(" [")
        known = variant if variant in variants else fold(variant)
        if known not in variants:
            raise UsageError(f"no records of variant {variant!r}; {suggest(known, variants)}")
        rows.append(known + bracket + settings)
    if len(set(rows)) < len(rows):
        raise UsageError(f"{rows[0]!r} against itself shows nothing; `lra-report table accuracy` lists the names")
    return rows


def main() -> None:
    """Run the command line."""
    command()


if __name__ == "__main__":
    main()
