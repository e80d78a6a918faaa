"""`lra-report`: records in; tables, figures and comparisons out. pandas and matplotlib are imported when needed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

from lra.errors import LraError, UsageError

if TYPE_CHECKING:
    from .load import Loaded
    from .tables import Table

P = ParamSpec("P")
PRESETS = ("accuracy", "cost", "depth", "published", "head-to-head", "ablation")


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn every error that is meant for the user into `Error: ...` on stderr and its exit code."""

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except LraError as error:
            for line in str(error).splitlines():
                click.echo(f"Error: {line}", err=True)
            sys.exit(error.exit_code)

    return guarded


store_option = click.option(
    "--store",
    "stores",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Store of records; may be given several times.  [default: LRA_STORE, else lra-results]",
    envvar="LRA_STORE",
)
out_option = click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write instead.")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def command() -> None:
    """Make tables, figures and comparisons from the records of runs."""


@command.command()
@click.argument("preset", type=click.Choice(PRESETS))
@click.argument("names", nargs=-1)
@store_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "latex", "csv", "html"]),
    default="text",
    show_default=True,
)
@click.option("--profile", help="Only records of this profile.")
@out_option
@one_line_errors
def table(
    *, preset: str, names: tuple[str, ...], stores: tuple[Path, ...], form: str, profile: str | None, out: Path | None
) -> None:
    r"""Print the tables of a preset, one for each profile and track there is.

    \b
    accuracy              variants x tasks, with averages and rails
    cost                  speed, memory and parameters, relative to full
    depth                 accuracy by number of layers
    published             our numbers beside published ones of the same profile
    head-to-head A B      paired differences over seeds, McNemar on the same examples
    ablation VARIANT      one row per changed option
    """
    from .render import render
    from .tables import profiles

    loaded = load(stores)
    made = "lra-report " + shlex.join(sys.argv[1:])
    pairs = [pair for pair in profiles(loaded) if profile is None or pair[0] == profile]
    if not pairs:
        raise UsageError(f"no records of profile {profile!r} here" if profile else "the store holds no records yet")
    texts = [render(make_table(preset, names, loaded, *pair), form, command=made) for pair in pairs]
    write("\n".join(texts), out)


@command.command()
@click.argument("first")
@click.argument("second")
@store_option
@one_line_errors
def compare(*, first: str, second: str, stores: tuple[Path, ...]) -> None:
    """Show what differs between two records, given by the beginnings of their cell ids."""
    from .compare import differences

    loaded = load(stores)
    pair = [find(loaded, prefix) for prefix in (first, second)]
    write("\n".join(differences(loaded, *pair)), None)


def load(stores: tuple[Path, ...]) -> Loaded:
    """Load the stores and say on stderr what had to be passed over."""
    from .load import load_stores

    loaded = load_stores(stores or (Path("lra-results"),))
    if loaded.problems:
        click.echo(f"{len(loaded.problems)} files passed over:", err=True)
        for problem in loaded.problems[:10]:
            click.echo(f"  {problem}", err=True)
    return loaded


def find(loaded: Loaded, prefix: str) -> str:
    """Complete the beginning of a cell id.

    Raises:
        UsageError: No record, or several, begin so.
    """
    found = [cell for cell in loaded.records if cell.startswith(prefix)]
    if len(found) != 1:
        raise UsageError(f"{len(found)} records begin with {prefix!r}; give more or other digits of the cell id")
    return found[0]


def make_table(preset: str, names: tuple[str, ...], loaded: Loaded, profile: str, track: str) -> Table:
    """Make one table of a preset.

    Raises:
        UsageError: The preset takes another number of names.
    """
    from . import beside, tables

    takes = {"head-to-head": 2, "ablation": 1}.get(preset, 0)
    if len(names) != takes:
        raise UsageError(f"{preset} takes {takes} variant names, got {len(names)}")
    if preset == "head-to-head":
        return tables.head_to_head(loaded, profile, track, *names)
    if preset == "ablation":
        return tables.ablation(loaded, profile, track, names[0])
    plain = {"accuracy": tables.accuracy, "cost": tables.cost, "depth": tables.depth, "published": beside.beside}
    return plain[preset](loaded, profile, track)


def write(text: str, out: Path | None) -> None:
    """Print, or write to a file.

    Raises:
        UsageError: The file cannot be written.
    """
    if out is None:
        click.echo(text)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {out}: {error.strerror or error}") from error


def main() -> None:
    """Run the command line."""
    command()
