# SPDX-License-Identifier: Apache-2.0
"""The options that select records, the loading of them, and other parts that the commands of `lra-report` share."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from lra.config.labels import fits, named_settings, split_row
from lra.config.schema import without_folder
from lra.errors import StoreError, UsageError, refusals_as
from lra.names import fold, suggest
from lra.reading import visible
from lra.terminal import clean_line, echo

if TYPE_CHECKING:
    from lra.config.schema import RunConfig

    from .result_set import ResultSet

P = ParamSpec("P")
PROBLEMS_SHOWN = 10
DEFAULT_STORE = Path("lra-results")
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


@dataclass
class Selection:
    """The records that a command uses, as its options name them."""

    stores: tuple[Path, ...] = ()
    profile: str | None = None
    suite: str | None = None
    tasks: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()


def _keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    """Keep the value of an option in the selection of the command."""
    setattr(context.ensure_object(Selection), str(parameter.name), value)


_OPTIONS = (
    click.option("--store", "stores", multiple=True, type=FOLDER,
                 envvar="LRA_STORE", callback=_keep, expose_value=False,
                 help="Store of records; may be repeated.  [default: LRA_STORE, else lra-results]"),
    click.option("--profile", callback=_keep, expose_value=False, help="Only records of this profile."),
    click.option("--suite", callback=_keep, expose_value=False,
                 help="Only runs of this suite: a name, or the path of a YAML file."),
    click.option("--task", "tasks", multiple=True, callback=_keep, expose_value=False,
                 help="Only records of this task; may be repeated."),
    click.option("--variant", "variants", multiple=True, callback=_keep, expose_value=False,
                 help="Only records of this variant, or of each of its rows with these settings, 'local [window=4]'; "
                      "may be repeated."),
)  # fmt: skip


def takes_selection(command: Callable[Concatenate[Selection, P], None]) -> Callable[P, None]:
    """Add the options that select records to a command, which gets the selection as its first argument."""
    given = click.make_pass_decorator(Selection, ensure=True)(command)
    for option in reversed(_OPTIONS):
        given = option(given)
    return given


def load(selection: Selection) -> ResultSet:
    """Load the stores and list on stderr the files that could not be used.

    Raises:
        UsageError: No record fits the selection, or the store is empty.
    """
    from .result_set import ENTRIES, load_stores

    results = load_stores(selection.stores or (DEFAULT_STORE,))
    if results.problems:
        echo(f"{len(results.problems)} files passed over:", err=True)
        for problem in results.problems[:PROBLEMS_SHOWN]:
            echo(f"  {clean_line(problem)}", err=True)
        if len(results.problems) > PROBLEMS_SHOWN:
            echo(f"  and {len(results.problems) - PROBLEMS_SHOWN} more", err=True)
    if not results.configs():
        raise UsageError(f"the store holds no records yet{_below(selection.stores)}")
    for store in selection.stores:
        held = [kind for kind, pattern in ENTRIES.items() if visible(store, pattern, StoreError)]
        if held in ([], ["measurements"]):
            echo(f"{store} holds no runs{', only measurements' if held else ''}{_below((store,))}", err=True)
    return select(results, selection)


def _below(stores: tuple[Path, ...]) -> str:
    """Suggest the stores with the default name inside the given folders."""
    inner = [store / DEFAULT_STORE for store in stores]
    below = [store for store in inner if (store / "results").is_dir() or (store / "bench").is_dir()]
    return f"; did you mean --store {' --store '.join(shlex.quote(str(store)) for store in below)}?" if below else ""


def select(results: ResultSet, selection: Selection) -> ResultSet:
    """Return the records that a selection names; with a suite, say on stderr how many of its runs have a record.

    Raises:
        UsageError: A name is unknown, or no record fits.
    """
    if selection.profile is not None:
        profiles = {config.profile for config in results.configs()}
        if selection.profile not in profiles:
            raise UsageError(f"no records of profile {selection.profile!r}; {suggest(selection.profile, profiles)}")
        results = results.filter(lambda config: config.profile == selection.profile)
    if selection.suite is not None:
        from lra.config.suites import expand, load_suite

        runs = expand(load_suite(selection.suite))
        results = results.for_suite(runs)
        if not results.profiles():
            raise UsageError(f"no record is one of the {len(runs)} runs of suite {selection.suite}")
        configs = [record.config for record in results.records.values()]
        found = len({config.run_id("") for config in configs})
        echo(f"suite {selection.suite}: {found} of {len(runs)} runs have a record", err=True)
    if selection.tasks:
        known = {task: task for config in results.configs() for task in [without_folder(config.task)]}
        tasks = {given: resolve_name("task", without_folder(given), known) for given in selection.tasks}
        results = _fitting(results, "--task", {given: _is_task(task) for given, task in tasks.items()})
    if selection.variants:
        rows = {
            given: _is_row(resolve_name("variant", without_folder(name), results.titles()), text)
            for given in selection.variants
            for name, text in [split_row(given)]
        }
        results = _fitting(results, "--variant", rows)
    if not results.configs():
        raise UsageError("no record fits all options together")
    return results


def _is_task(task: str) -> Callable[[RunConfig], bool]:
    return lambda config: without_folder(config.task) == task


def _is_row(variant: str, settings: str) -> Callable[[RunConfig], bool]:
    return lambda config: without_folder(config.variant.name) == variant and fits(named_settings(config), settings)


def _fitting(results: ResultSet, option: str, wanted: dict[str, Callable[[RunConfig], bool]]) -> ResultSet:
    """Return what fits any of the values of an option; of several, say which fits no run, or no measurement.

    Raises:
        UsageError: A value fits nothing.
    """
    runs = [record.config for record in results.records.values()]
    runs += [attempt.config for attempt in results.attempts.values()]
    measured = [measurement.config for measurement in results.measurements]
    for given, fitting in wanted.items():
        found = {
            kind: any(map(fitting, configs)) for kind, configs in (("run", runs), ("measurement", measured)) if configs
        }
        if not any(found.values()):
            raise UsageError(f"no record fits {option} {given!r}; `lra-report table accuracy` lists the rows")
        for kind, there in found.items():
            if not there and len(wanted) > 1:
                echo(f"{option} {given!r} fits no {kind}", err=True)
    return results.filter(lambda config: any(fitting(config) for fitting in wanted.values()))


def resolve_name(kind: str, given: str, titles: dict[str, str]) -> str:
    """Return the registered name for a name or a display name; case, spaces and hyphens do not matter.

    Args:
        kind: What is named, for the error message.
        given: The name that the user typed.
        titles: Display names by registered name.

    Raises:
        UsageError: No record has this name, or several have.
    """
    name = given if given in titles else fold(given)
    if name in titles:
        return name
    exact = [found for found, title in titles.items() if title == given]
    alike = exact or [found for found, title in titles.items() if _fold_title(title) == _fold_title(given)]
    if len(alike) > 1:
        raise UsageError(f"{kind} {given!r} may be any of {', '.join(sorted(alike))}; give one of these names")
    if not alike:
        raise UsageError(f"no records of {kind} {given!r}; {suggest(name, titles)}")
    return alike[0]


def _fold_title(title: str) -> str:
    return fold(title).replace(" ", "_")


def need_report_extra() -> None:
    """Check that the libraries for figures and pages are installed.

    Raises:
        UsageError: matplotlib or jinja2 is not installed.
    """
    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} not installed; pip install 'lra-harness[report]'")


def find(results: ResultSet, prefix: str) -> str:
    """Complete the beginning of a run id.

    Raises:
        UsageError: No record has such an id, or several have.
    """
    found = sorted(run_id for run_id in results.records if run_id.startswith(prefix.lower()))
    if not found:
        hint = suggest(prefix, {run_id[: len(prefix)] for run_id in results.records}, "every table lists its ids")
        raise UsageError(f"no record begins with {prefix!r}; {hint}")
    if len(found) > 1:
        begin = ", ".join(run_id[: len(prefix) + 6] for run_id in found[:3])
        raise UsageError(f"{len(found)} records begin with {prefix!r}, such as {begin}; give more digits of one")
    return found[0]


def write(text: str, out: Path | None) -> None:
    """Print a text, or write it to a file.

    Raises:
        UsageError: The file cannot be written.
    """
    if out is None:
        echo(text)
        return
    with refusals_as(UsageError, f"cannot write {out}"):
        out.write_text(text, encoding="utf-8")


def invocation() -> str:
    """Return the command line."""
    return "lra-report " + shlex.join(sys.argv[1:])
