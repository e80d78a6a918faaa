"""What the commands of `lra-report` share: stores in, text out."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from lra.errors import UsageError
from lra.names import fold, suggest

if TYPE_CHECKING:
    from .result_set import ResultSet

P = ParamSpec("P")
PROBLEMS_SHOWN = 10
DEFAULT_STORE = Path("lra-results")

out_option = click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write instead.")


@dataclass
class Selection:
    """Which records a command uses: what its options say."""

    stores: tuple[Path, ...] = ()
    profile: str | None = None
    suite: str | None = None
    tasks: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Put the value of an option into the command's selection."""
    setattr(context.ensure_object(Selection), str(parameter.name), value)


_OPTIONS = (
    click.option("--store", "stores", multiple=True, type=click.Path(path_type=Path, file_okay=False),
                 envvar="LRA_STORE", callback=_keep, expose_value=False,
                 help="Store of records; may be given several times.  [default: LRA_STORE, else lra-results]"),
    click.option("--profile", callback=_keep, expose_value=False, help="Only records of this profile."),
    click.option("--suite", callback=_keep, expose_value=False,
                 help="Only cells of this suite: a name, or the path of a YAML file."),
    click.option("--task", "tasks", multiple=True, callback=_keep, expose_value=False,
                 help="Only records of this task; may be given several times."),
    click.option("--variant", "variants", multiple=True, callback=_keep, expose_value=False,
                 help="Only records of this variant; may be given several times."),
)  # fmt: skip


def takes_selection(command: Callable[Concatenate[Selection, P], None]) -> Callable[P, None]:
    """Give a command the options that select records; it gets them as its first argument."""
    given = click.make_pass_decorator(Selection, ensure=True)(command)
    for option in reversed(_OPTIONS):
        given = option(given)
    return given


def load(selection: Selection) -> ResultSet:
    """Load the stores and say on stderr what had to be passed over.

    Raises:
        UsageError: No record fits the selection, or there is none at all.
    """
    from .render import clean
    from .result_set import load_stores

    loaded = load_stores(selection.stores or (DEFAULT_STORE,))
    if loaded.problems:
        click.echo(f"{len(loaded.problems)} files passed over:", err=True)
        for problem in loaded.problems[:PROBLEMS_SHOWN]:
            click.echo(f"  {clean(problem)}", err=True)
        if len(loaded.problems) > PROBLEMS_SHOWN:
            click.echo(f"  and {len(loaded.problems) - PROBLEMS_SHOWN} more", err=True)
    if not loaded.configs():
        raise UsageError(f"the store holds no records yet{_below(selection.stores)}")
    return select(loaded, selection)


def _below(stores: tuple[Path, ...]) -> str:
    """Suggest the stores of the default name inside the folders that were taken for stores."""
    inner = [store / DEFAULT_STORE for store in stores]
    below = [store for store in inner if (store / "results").is_dir() or (store / "bench").is_dir()]
    return f"; did you mean --store {' --store '.join(shlex.quote(str(store)) for store in below)}?" if below else ""


def select(loaded: ResultSet, selection: Selection) -> ResultSet:
    """Return the records that a selection names; with a suite, say on stderr how many of its cells those are.

    Raises:
        UsageError: A name is unknown, or no record fits.
    """
    if selection.profile is not None:
        _check_name("profile", selection.profile, {config.profile for config in loaded.configs()}, selection.profile)
        loaded = loaded.where(lambda config: config.profile == selection.profile)
    if selection.suite is not None:
        from lra.config.suites import expand, load_suite

        cells = expand(load_suite(selection.suite))
        loaded = loaded.of_cells(cells)
        if not loaded.profiles():
            raise UsageError(f"no record is one of the {len(cells)} cells of suite {selection.suite}")
        configs = [record.config for record in loaded.records.values()]
        found = len({config.run_id("") for config in configs})
        click.echo(f"suite {selection.suite}: {found} of {len(cells)} cells have a record", err=True)
    if selection.tasks:
        tasks = _normalised("task", selection.tasks, {config.task for config in loaded.configs()})
        loaded = loaded.where(lambda config: config.task in tasks)
    if selection.variants:
        variants = _normalised("variant", selection.variants, {config.variant.name for config in loaded.configs()})
        loaded = loaded.where(lambda config: config.variant.name in variants)
    if not loaded.configs():
        raise UsageError("no record fits all that was asked for")
    return loaded


def _normalised(kind: str, given: tuple[str, ...], known: set[str]) -> set[str]:
    names = {name if name in known else fold(name): name for name in given}
    for name, written in names.items():
        _check_name(kind, name, known, written)
    return set(names)


def _check_name(kind: str, name: str, known: set[str], written: str) -> None:
    if name not in known:
        raise UsageError(f"no records of {kind} {written!r}; {suggest(name, known)}")


def need_report_extra() -> None:
    """Say how to install what figures and pages need.

    Raises:
        UsageError: matplotlib or jinja2 is not installed.
    """
    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} not installed; pip install 'lra-harness[report]'")


def find(loaded: ResultSet, prefix: str) -> str:
    """Complete the beginning of a cell id.

    Raises:
        UsageError: No record, or several, begin so.
    """
    found = sorted(cell for cell in loaded.records if cell.startswith(prefix.lower()))
    if not found:
        hint = suggest(prefix, {cell[: len(prefix)] for cell in loaded.records}, "the ids stand below every table")
        raise UsageError(f"no record begins with {prefix!r}; {hint}")
    if len(found) > 1:
        begin = ", ".join(cell[: len(prefix) + 6] for cell in found[:3])
        raise UsageError(f"{len(found)} records begin with {prefix!r}, such as {begin}; give more digits of one")
    return found[0]


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


def invocation() -> str:
    """Return the command line as it was given."""
    return "lra-report " + shlex.join(sys.argv[1:])
