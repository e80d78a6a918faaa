# SPDX-License-Identifier: Apache-2.0
"""`lra-data`: find, fetch, prepare, list, verify, show and remove the data of the tasks."""

from __future__ import annotations

import re
import sys
import textwrap
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lra.cli import Group, echo_json, json_option, one_line_errors, version_option
from lra.reading import visible
from lra.terminal import echo, terminal_size

from .options import AT_A_TIME, data_dir_option

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from lra.data.dataset import PreparedData
    from lra.data.places import Place
    from lra.data.split import SplitName
    from lra.tasks.base import Task, TaskOptions

PREPARE_EXAMPLES = """
\b
Examples:
  lra-data prepare listops
  lra-data prepare text --from aclImdb_v1.tar.gz --profile official
  lra-data prepare image --small 2000
"""
SHEET_IMAGES = 36
LEFTOVERS = "leftovers"
WIDTH = 100
"""Columns that `where` takes at most."""

task_argument = click.argument("task_name", metavar="TASK")
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change an option of the task, such as seed=1; may be repeated.",
)
profile_option = click.option(
    "--profile", metavar="NAME", help="Use the data options of this profile.  [default: those of the task]"
)
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress bar.")


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@version_option
def main() -> None:
    """Find, fetch, prepare, list, verify, show and remove the data of the tasks."""


@main.command("list")
@json_option
@data_dir_option
@one_line_errors
def list_command(home: Path, *, as_json: bool) -> None:
    """List the prepared data."""
    from tabulate import tabulate

    from lra.data.dataset import open_prepared
    from lra.data.split import SPLITS
    from lra.errors import DataError

    rows, facts = [], list[dict[str, Any]]()
    for folder in prepared_folders(home):
        size = size_of(folder)
        try:
            manifest = open_prepared(folder, verify=False).manifest
        except DataError as error:
            rows.append((folder.name, "?", f"unusable: {error}", "", f"{size / 1e6:.1f} MB", ""))
            facts.append({"folder": str(folder), "bytes": size, "problem": str(error)})
            continue
        examples = " / ".join(str(manifest.splits[name].examples) for name in SPLITS)
        rows.append(
            (folder.name, manifest.task, manifest.dataset, examples, f"{size / 1e6:.1f} MB", manifest.digest[:12])
        )
        counts = {name: record.examples for name, record in manifest.splits.items()}
        shown = {"task": manifest.task, "dataset": manifest.dataset, "examples": counts, "digest": manifest.digest}
        facts.append({"folder": str(folder), "bytes": size, **shown})
    if as_json:
        echo_json(facts)
        return
    echo(f"Prepared data in {home}: {len(rows) or 'none'}")
    if rows:
        echo(tabulate(rows, headers=["folder", "task", "dataset", "examples", "size", "digest"]))
    if left := leftovers(home):
        echo(f"Left behind by commands that were killed: {len(left)}")
        echo("\n".join(f"  {path.relative_to(home)}  {size_of(path) / 1e6:.1f} MB" for path in left))
        echo(f"Remove them with: lra-data remove {LEFTOVERS}. What was generated or fetched goes on if they stay.")


@main.command(epilog=PREPARE_EXAMPLES)
@task_argument
@click.option(
    "--from", "source", type=click.Path(path_type=Path), help="Archive or folder to read; later commands find it again."
)
@click.option("--generate", is_flag=True, help="Generate the data (ListOps, Pathfinder) even if the profile reads it.")
@click.option(
    "--small",
    type=click.IntRange(min=1),
    metavar="N",
    help="Make a separate dataset variant with N training examples and smaller other splits.",
)
@click.option("--workers", type=AT_A_TIME, help="Number of processes.  [default: one per core]")
@quiet_option
@profile_option
@set_option
@data_dir_option
@one_line_errors
def prepare(
    *,
    task_name: str,
    source: Path | None,
    generate: bool,
    small: int | None,
    workers: int | None,
    quiet: bool,
    profile: str | None,
    settings: tuple[str, ...],
    home: Path,
) -> None:
    """Prepare the data of TASK: read or generate it, tokenize it and store it in the data folder.

    Data that is prepared already is left as it is.
    """
    from lra.errors import UsageError
    from lra.tasks import GeneratedTask, get_task

    if generate and source is not None:
        raise UsageError("--generate makes data and --from reads it; give one of them")
    if generate and not isinstance(get_task(task_name), GeneratedTask):
        name = get_task(task_name).info.name
        if not get_task(task_name).info.generated:
            raise UsageError(f"{name} is not generated; lra-data fetch {name} fetches its file")
        settings = (*without(settings, ["source"]), "source=generated")
    task, options = resolve(task_name, settings, profile)
    if small is not None:
        fewer = task.small(options, small)
        settings = (*without(settings, fewer), *(f"{key}={value}" for key, value in fewer.items()))
        task, options = resolve(task_name, settings, profile)
    present = is_prepared(task, options, home)
    data = task.prepare(options, home, source=source, workers=workers, progress=not quiet)
    describe(data, present=present, unread="--from" if source is not None else "")
    if small is not None and profile is not None:
        chosen = " ".join(f"--set data.{setting.removeprefix('data.')}" for setting in settings)
        name = task.info.name
        echo(f"Train on it with: lra-run --attn NAME --task {name} --profile {profile} --track open {chosen}")


@main.command()
@click.argument("task_name", metavar="[TASK]", required=False)
@json_option
@one_line_errors
def where(task_name: str | None, *, as_json: bool) -> None:
    """List every known place that has the data of TASK, or of all tasks.

    Of each place it says the form, size, digest and licence of the data, what is reported of the place, and the command
    that reads it.
    """
    from lra.data.places import places_of
    from lra.tasks import get_task

    places = places_of(None if task_name is None else get_task(task_name).info.name)
    if as_json:
        echo_json([{key: value for key, value in asdict(place).items() if value} for place in places])
    else:
        echo("\n\n".join(map(describe_place, places)))


@main.command()
@task_argument
@click.option("--mirror", metavar="URL", help="Folder of another server that has the same files.")
@quiet_option
@set_option
@data_dir_option
@one_line_errors
def fetch(task_name: str, mirror: str | None, *, quiet: bool, settings: tuple[str, ...], home: Path) -> None:
    """Download the files that TASK reads, and prepare the data.

    If a download was interrupted, the same command continues it. Of the files of retrieval, 10.6 GB, only what the task
    reads is kept.
    """
    from lra.data.places import REMOTES
    from lra.data.raw_files import FOLDER, keep_source, read_command
    from lra.errors import UsageError

    task, options = resolve(task_name, settings)
    name, key = task.info.name, task.source_key(options)
    if key is None:
        raise UsageError(f"{name} is generated; lra-data prepare {name} makes it")
    if key not in REMOTES:
        raise UsageError(
            f"there is no known address of this dataset variant; lra-data prepare {name} --from reads a copy"
        )
    for remote in REMOTES[key]:
        echo(f"Fetching {remote.file_name} from {mirror or remote.url}")
    otherwise = f"lra-data where {name} lists other places; {read_command(name, home)} reads a copy"
    source, checked = task.fetch(options, home / FOLDER, mirror=mirror, progress=not quiet, otherwise=otherwise)
    echo(f"Fetched: {source} ({checked})")
    present = is_prepared(task, options, home)
    known = {remote.file_name: remote.sha256 for remote in REMOTES[key] if remote.sha256}
    data = task.prepare(options, home, source=source, known=known, progress=not quiet)
    keep_source(home, key, source)
    describe(data, present=present, unread="what was fetched")


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@data_dir_option
@one_line_errors
def remove(names: tuple[str, ...], home: Path, *, yes: bool) -> None:
    """Remove prepared data.

    Each NAME is a folder as `list` shows it, or a task, which stands for all its dataset variants, or the word
    `leftovers` for what killed commands left behind. Of a folder that is a link, the link is removed.

    The files that the data was read from stay.
    """
    from lra.atomic_io import remove_folder
    from lra.errors import DataError, refusals_as
    from lra.names import suggest
    from lra.tasks import TASKS

    present = {folder.name: folder for folder in prepared_folders(home)}
    left = {str(path.relative_to(home)): path for path in leftovers(home)}
    to_delete: dict[str, Path] = {}
    for name in names:
        chosen = {key: folder for key, folder in present.items() if name and name in (key, task_of(folder))}
        chosen |= {key: path for key, path in left.items() if name in (key, LEFTOVERS)}
        if name == LEFTOVERS and not chosen:
            echo(f"Nothing is left behind in {home}")
            continue
        if not chosen:
            hint = "" if name in TASKS else f"; {suggest(name, {*present, *left, *TASKS})}"
            raise DataError(f"nothing named {name!r} is prepared in {home}{hint}")
        to_delete |= chosen
    if not to_delete:
        return
    echo("\n".join(to_delete))
    if not yes:
        click.confirm(f"Remove {len(to_delete)} of {len({**present, **left})} in {home}?", abort=True)
    removed = 0
    for name, folder in to_delete.items():
        if name in left and folder not in leftovers(home):  # somebody took it up meanwhile
            echo(f"{name} is in use by now, or gone; left alone")
            continue
        with refusals_as(DataError, f"cannot remove {folder}"):
            if folder.is_dir():
                remove_folder(folder)
            else:
                folder.unlink()
        removed += 1
    echo(f"Removed {removed}")


@main.command()
@click.argument("task_name", metavar="[TASK]", required=False)
@data_dir_option
@one_line_errors
def verify(task_name: str | None, home: Path) -> None:
    """Check the prepared data of all tasks, or of TASK, against its checksums and the names of its folders."""
    from lra.data.dataset import open_prepared
    from lra.errors import DataError
    from lra.tasks import PROBES, TASKS, get_task

    name = None if task_name is None else get_task(task_name).info.name
    folders = [folder for folder in prepared_folders(home) if name is None or is_of(folder, name)]
    if task_name is not None and not folders:
        raise DataError(f"no data of {task_name} is prepared in {home}")
    problems = []
    for folder in folders:
        try:
            data = open_prepared(folder, verify=True)
            task = data.manifest.task
            if task in TASKS | PROBES:  # else it is of somebody's task that is not loaded here
                get_task(task).check_name(data.manifest, folder)
            elif task != task_of(folder):
                raise DataError(f"{folder} holds data of task {task}; rename it")
            echo(f"{folder.name}: sound, SHA-256 of the content {data.digest}")
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    echo(f"{len(folders)} of {len(folders)} sound in {home}")


@main.command()
@task_argument
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test"]),
    default="train",
    show_default=True,
    help="Split to show an example of.",
)
@click.option("--index", type=int, default=0, show_default=True, help="Number of the example, from 0.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"Write {SHEET_IMAGES} images from --index on to this PNG file instead.",
)
@click.option("--all", "everything", is_flag=True, help="Show all of a long example, also on a terminal.")
@profile_option
@set_option
@data_dir_option
@one_line_errors
def show(
    *,
    task_name: str,
    split: SplitName,
    index: int,
    out: Path | None,
    everything: bool,
    profile: str | None,
    settings: tuple[str, ...],
    home: Path,
) -> None:
    """Show one example of TASK in readable form, after preparing the data if necessary.

    On a terminal, it shows as much of a long example as fits the screen.
    """
    from lra.errors import UsageError

    task, options = resolve(task_name, settings, profile)
    if out is not None and task.info.grid is None:
        raise UsageError(f"--out draws images, and {task.info.name} has none")
    data = task.prepare(options, home)
    data = data.verified()
    if out is None:
        text = task.show(data, split, index)
        echo(text if everything or not sys.stdout.isatty() else screenful(text, *terminal_size(sys.stdout)))
        return
    from lra.tasks.image_preview import contact_sheet

    last = min(index + SHEET_IMAGES, len(data.split(split)))
    contact_sheet(data, split, range(index, max(last, index + 1)), out)
    echo(f"Wrote {split} examples {index} to {last - 1} to {out}")


def screenful(text: str, columns: int, rows: int) -> str:
    """Return the beginning of a text that fits a screen, and a last line that says how much is missing."""
    lines = [line[start : start + columns] for line in text.splitlines() for start in range(0, len(line) or 1, columns)]
    room = max(rows - 2, 1)  # for that line, and the prompt that follows
    if len(lines) <= room + 1:
        return text
    return "\n".join([*lines[:room], f"... {len(lines) - room:,} more lines; --all shows them"])


def without(settings: Sequence[str], names: Container[str]) -> list[str]:
    """Return the settings, as `--set` takes them, but for those of some names."""
    return [each for each in settings if each.partition("=")[0].strip().removeprefix("data.") not in names]


def resolve(task_name: str, settings: tuple[str, ...], profile: str | None = None) -> tuple[Task[Any], TaskOptions]:
    """Find a task and build its options from `--profile` and then `--set`.

    Raises:
        UsageError: A setting is not `key=value`, has two values, or is not an option of the task.
    """
    from lra.config.overrides import parse_overrides
    from lra.config.profiles import load_profile
    from lra.config.schema import valid_section
    from lra.tasks import get_task
    from lra.tasks import task_name as registered

    task, task_name = get_task(task_name), registered(task_name)
    values: dict[str, Any] = {} if profile is None else dict(load_profile(profile).recipe(task_name).data)
    given = parse_overrides([setting.removeprefix("data.") for setting in settings], example="seed=1")
    return task, valid_section(task.options, values | given, "data")


def describe_place(place: Place) -> str:
    """Return what is known of a place, in lines of at most `WIDTH` columns."""
    facts = [
        ("tasks", ", ".join(place.tasks)),
        ("address", place.address),
        ("form", place.form),
        ("size", place.size),
        *(("SHA-256", f"{digest} of {name}") for name, digest in place.sha256),
        ("licence", place.licence),
        ("reported", place.state),
        ("command", place.read_with),
    ]
    lines = [place.name]
    for name, text in facts:
        lines += textwrap.wrap(
            text,
            WIDTH,
            initial_indent=f"  {name:<9} ",
            subsequent_indent=" " * 12,
            break_on_hyphens=False,
            break_long_words=False,
        )
    return "\n".join(lines)


def is_prepared(task: Task[Any], options: TaskOptions, home: Path) -> bool:
    """Return whether the folder of this prepared data exists."""
    return (home / task.folder_name(options)).is_dir()


def describe(data: PreparedData, *, present: bool, unread: str = "") -> None:
    """Print where prepared data is, what it holds, and the accuracy of trivial baselines.

    Args:
        data: The data.
        present: Whether it was there already,
        unread: and what was not read then.

    Raises:
        DataError: It has changed since.
    """
    from lra.metrics import of_whole_test

    if present:
        data.verified()
    echo(
        f"Already prepared: {data.path}{f'; {unread} was not read' if unread else ''}"
        if present
        else f"Prepared: {data.path}"
    )
    echo(f"{data.manifest.task}, {data.manifest.dataset}; digest {data.digest[:12]}")
    for name, record in data.manifest.splits.items():
        lengths = f"{record.min_length} to {record.max_length} tokens"
        echo(f"  {name}: {record.examples:,} examples of {lengths}, {record.tokens:,} in all")
    baselines = ", ".join(f"{name} {value:.1f}" for name, value in of_whole_test(data.manifest.baselines).items())
    echo(f"Trivial baselines, in %: {baselines}")
    echo("SHA-256, to compare with those of others:")
    for what, digest in {**data.manifest.sources, "content of all arrays": data.digest}.items():
        echo(f"  {digest}  {what}")


def prepared_folders(home: Path) -> list[Path]:
    """List the folders of prepared data; temporary folders, whose names begin with a dot, are not included.

    A file, or a link to what is not there, that has the name of one is one: the data may be on a disk that is not
    mounted.

    Raises:
        DataError: The home is a link to what is not there, or nobody can tell.
    """
    from lra.data.manifest import MANIFEST

    return [path for path in visible(home) if task_of(path) or (path / MANIFEST).is_file()]


def leftovers(home: Path) -> list[Path]:
    """List what killed commands left: temporary files and folders, and what nobody generates or fetches now."""
    from lra.atomic_io import leftovers as temporary
    from lra.data.raw_files import FOLDER
    from lra.data.work_folder import in_progress, is_locked

    works = [path for path in sorted(home.glob(".*.work")) if task_of(path.with_suffix(""))]  # others' have other names
    generations = [path for path in works if not in_progress(path)]
    fetched = [path for path in sorted((home / FOLDER).glob("*")) if not path.is_symlink()]
    fetches = [path for path in fetched if path.suffix == ".part" and not is_locked(path)]
    fetches += [path for path in fetched if path.is_dir() and not in_progress(path) and is_half_fetched(path)]
    return [*generations, *fetches, *temporary(home), *temporary(home / FOLDER)]


def is_half_fetched(folder: Path) -> bool:
    """Say whether a command that was killed has fetched a part of the files of a folder."""
    from lra.errors import DataError
    from lra.tasks.pairs_fetch import DamagedNoteError, read_state

    try:
        state = read_state(folder)
    except DataError as error:  # what cannot be read, such as on a disk that is not mounted, may be complete
        return isinstance(error, DamagedNoteError)
    return (folder / "lock").is_file() if state is None else not state.complete


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    files = [path] if not path.is_dir() else [file for file in path.rglob("*") if not file.is_dir()]
    return sum(file.lstat().st_size for file in files)


def task_of(folder: Path) -> str:
    """Return the name of the task that a folder is called after; empty for a name that no prepared data has.

    The beginning says nothing alone: `text-corpus` may be a folder of the user's own.
    """
    return folder.name.partition("-")[0] if re.search("-[0-9a-f]{10}$", folder.name) else ""


def is_of(folder: Path, task: str) -> bool:
    """Say whether a folder is called after a task, or holds data of it under another name."""
    from lra.data.manifest import read_manifest
    from lra.errors import DataError

    with suppress(DataError):
        return task in (task_of(folder), read_manifest(folder).task)
    return task == task_of(folder)


if __name__ == "__main__":
    main()
