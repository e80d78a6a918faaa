"""`lra-data`: fetch, prepare, list, verify, look at and remove the data of the tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lra.cli import one_line_errors, version_option

from .options import data_dir_option

if TYPE_CHECKING:
    from lra.data.dataset import SplitName


from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lra.data.dataset import PreparedData
    from lra.tasks.base import Task, TaskOptions


PREPARE_EXAMPLES = """
\b
Examples:
  lra-data prepare listops
  lra-data prepare text --from aclImdb_v1.tar.gz --profile official
  lra-data prepare image --small 2000
"""

set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the task, such as seed=1; may be repeated.",
)
profile_option = click.option(
    "--profile", metavar="NAME", help="Take the options of this recipe, such as quick, instead of the task's own."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@version_option
def main() -> None:
    """Fetch, prepare, list, verify, look at and remove the data of the tasks."""


@main.command("list")
@data_dir_option
@one_line_errors
def list_command(data_dir: Path | None) -> None:
    """List what is prepared."""
    from tabulate import tabulate

    from lra.data.dataset import data_home, open_prepared
    from lra.errors import DataError

    home = data_home(data_dir)
    rows = []
    for folder in prepared_folders(home):
        size = sum(file.stat().st_size for file in folder.iterdir())
        try:
            manifest = open_prepared(folder, verify=False).manifest
        except DataError as error:
            rows.append((folder.name, "?", f"unusable: {error}", "", f"{size / 1e6:.1f} MB", ""))
            continue
        examples = " / ".join(str(record.examples) for record in manifest.splits.values())
        rows.append(
            (folder.name, manifest.task, manifest.dataset, examples, f"{size / 1e6:.1f} MB", manifest.digest[:12])
        )
    click.echo(f"Prepared data in {home}: {len(rows) or 'none'}")
    if rows:
        click.echo(tabulate(rows, headers=["folder", "task", "dataset", "examples", "size", "digest"]))


@main.command(epilog=PREPARE_EXAMPLES)
@click.argument("task")
@click.option(
    "--from", "source", type=click.Path(path_type=Path), help="Archive or folder; remembered once it was read."
)
@click.option("--generate", is_flag=True, help="Generate ListOps or the Pathfinder family, whatever the profile says.")
@click.option(
    "--small",
    type=click.IntRange(min=1),
    metavar="N",
    help="A dataset variant of its own with N training examples, other splits in proportion.",
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes.  [default: one per core]")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@profile_option
@set_option
@data_dir_option
@one_line_errors
def prepare(
    *,
    task: str,
    source: Path | None,
    generate: bool,
    small: int | None,
    workers: int | None,
    quiet: bool,
    profile: str | None,
    settings: tuple[str, ...],
    data_dir: Path | None,
) -> None:
    """Prepare the data of TASK, unless it is there already."""
    from lra.data.dataset import data_home
    from lra.errors import UsageError
    from lra.tasks import get_task

    if generate and source is not None:
        raise UsageError("--generate makes data and --from reads it; give one of them")
    if generate:
        name = get_task(task).info.name
        if not get_task(task).info.generated:
            raise UsageError(f"{name} is not generated; lra-data fetch {name} fetches its file")
        settings = (*settings, "source=generated")
    the_task, options = resolve(task, settings, profile)
    if small is not None:
        settings = (*settings, *(f"{key}={value}" for key, value in the_task.small(options, small).items()))
        the_task, options = resolve(task, settings, profile)
    home = data_home(data_dir)
    present = (home / the_task.folder_name(options)).is_dir()
    data = the_task.prepare(options, home, source=source, workers=workers, progress=not quiet)
    unread = "; --from was not read" if present and source is not None else ""
    click.echo(f"{'Already prepared' if present else 'Prepared'}: {data.path}{unread}")
    describe(data)
    if small is not None and profile is not None:
        chosen = " ".join(f"--set data.{setting.removeprefix('data.')}" for setting in settings)
        name = the_task.info.name
        click.echo(f"Train on it with: lra-run --attn NAME --task {name} --profile {profile} --track open {chosen}")


@main.command()
@click.argument("task")
@click.option("--mirror", metavar="URL", help="Folder of another server that holds the same file.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@set_option
@data_dir_option
@one_line_errors
def fetch(task: str, mirror: str | None, *, quiet: bool, settings: tuple[str, ...], data_dir: Path | None) -> None:
    """Download the file that TASK is read from, and prepare its data.

    A download that broke off goes on where it ended when the same command is given again.
    """
    from lra.data.dataset import data_home
    from lra.data.download import REMOTES
    from lra.data.download import fetch as download
    from lra.data.raw_files import FOLDER, keep_source, read_command
    from lra.errors import UsageError

    the_task, options = resolve(task, settings)
    key = the_task.source_key(options)
    if key is None:
        raise UsageError(f"{the_task.info.name} is generated; lra-data prepare {the_task.info.name} makes it")
    if key not in REMOTES:
        raise UsageError(
            f"there is no address of this variant of the dataset; lra-data prepare {the_task.info.name} --from reads it"
        )
    home, remote = data_home(data_dir), REMOTES[key]
    click.echo(f"Fetching {remote.file_name} from {mirror or remote.url}")
    otherwise = f"read a copy with {read_command(the_task.info.name, home)}, or give --mirror URL of another server"
    file = download(remote, home / FOLDER, mirror=mirror, progress=not quiet, otherwise=otherwise)
    checked = "of the known SHA-256" if remote.sha256 is not None else "unchecked: no digest of it is known"
    click.echo(f"Fetched: {file} ({checked})")
    present = (home / the_task.folder_name(options)).is_dir()
    data = the_task.prepare(options, home, source=file, progress=not quiet)
    keep_source(home, key, file)
    click.echo(f"{'Already prepared' if present else 'Prepared'}: {data.path}")
    describe(data)


@main.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.option("--yes", is_flag=True, help="Do not ask.")
@data_dir_option
@one_line_errors
def remove(names: tuple[str, ...], data_dir: Path | None, *, yes: bool) -> None:
    """Remove prepared data: each NAME is a folder as `list` shows it, or a task for all its dataset variants.

    Files that the data was read from stay.
    """
    from lra.atomic_io import remove_folder
    from lra.data.dataset import data_home
    from lra.errors import DataError
    from lra.names import suggest
    from lra.tasks import TASKS

    home = data_home(data_dir)
    present = {folder.name: folder for folder in prepared_folders(home)}
    doomed: dict[str, Path] = {}
    for name in names:
        chosen = {key: folder for key, folder in present.items() if name in (key, task_of(folder))}
        if not chosen:
            hint = "" if name in TASKS else f"; {suggest(name, {*present, *TASKS})}"
            raise DataError(f"nothing named {name!r} is prepared in {home}{hint}")
        doomed |= chosen
    click.echo("\n".join(doomed))
    if not yes:
        click.confirm(f"Remove {len(doomed)} of {len(present)} in {home}?", abort=True)
    for folder in doomed.values():
        try:
            remove_folder(folder)
        except OSError as error:
            raise DataError(f"cannot remove {folder}: {error.strerror or error}") from error
    click.echo(f"Removed {len(doomed)}")


@main.command()
@click.argument("task", required=False)
@data_dir_option
@one_line_errors
def verify(task: str | None, data_dir: Path | None) -> None:
    """Recompute every digest of what is prepared, or of the data of TASK."""
    from lra.data.dataset import data_home, open_prepared
    from lra.errors import DataError
    from lra.tasks import get_task

    home = data_home(data_dir)
    name = None if task is None else get_task(task).info.name
    folders = [folder for folder in prepared_folders(home) if name is None or name == task_of(folder)]
    if task is not None and not folders:
        raise DataError(f"no data of {task} is prepared in {home}")
    problems = []
    for folder in folders:
        try:
            open_prepared(folder, verify=True)
            click.echo(f"{folder.name}: sound")
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    click.echo(f"{len(folders)} of {len(folders)} sound in {home}")


@main.command()
@click.argument("task")
@click.option("--split", type=click.Choice(["train", "validation", "test"]), default="train", show_default=True)
@click.option("--index", type=int, default=0, show_default=True, help="Which example, from 0.")
@click.option(
    "--out", type=click.Path(path_type=Path, dir_okay=False), help="Write a PNG with 36 images from --index on instead."
)
@profile_option
@set_option
@data_dir_option
@one_line_errors
def show(
    *,
    task: str,
    split: SplitName,
    index: int,
    out: Path | None,
    profile: str | None,
    settings: tuple[str, ...],
    data_dir: Path | None,
) -> None:
    """Show one example of TASK as a person would read it, preparing the data first if need be."""
    from lra.data.dataset import data_home
    from lra.errors import UsageError

    the_task, options = resolve(task, settings, profile)
    if out is not None and the_task.info.grid is None:
        raise UsageError(f"--out draws images, and {the_task.info.name} has none")
    data = the_task.prepare(options, data_home(data_dir))
    if out is None:
        click.echo(the_task.show(data, split, index))
        return
    from lra.tasks.image_preview import contact_sheet

    last = min(index + 36, len(data.split(split)))
    contact_sheet(data, split, range(index, max(last, index + 1)), out)
    click.echo(f"Wrote {split} examples {index} to {last - 1} to {out}")


if __name__ == "__main__":
    main()


def describe(data: PreparedData) -> None:
    """Print what prepared data holds, and what answers without a model get."""
    click.echo(f"{data.manifest.task}, {data.manifest.dataset}; digest {data.digest[:12]}")
    for name, record in data.manifest.splits.items():
        lengths = f"{record.min_length} to {record.max_length} tokens"
        click.echo(f"  {name}: {record.examples:,} examples of {lengths}, {record.tokens:,} in all")
    baselines = ", ".join(f"{name} {value:.1f}" for name, value in data.manifest.baselines.items())
    click.echo(f"Without a model, in %: {baselines}")


def resolve(task: str, settings: tuple[str, ...], profile: str | None = None) -> tuple[Task[Any], TaskOptions]:
    """Find a task and build its options from `--profile` and, over it, `--set`.

    Raises:
        UsageError: A setting is not `key=value`, or not one that the task takes.
    """
    from lra.config.profiles import load_profile
    from lra.config.schema import validate_section
    from lra.config.yaml_loader import load_text
    from lra.errors import UsageError
    from lra.tasks import get_task

    the_task = get_task(task)
    values: dict[str, Any] = {} if profile is None else dict(load_profile(profile).recipe(the_task.info.name).data)
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {setting}: expected key=value, such as seed=1")
        values[key.strip().removeprefix("data.")] = load_text(value, f"--set {key}")
    options, problems = validate_section(the_task.options, values, "data")
    if options is None:
        raise UsageError("\n".join(problems))
    return the_task, options


def prepared_folders(home: Path) -> list[Path]:
    """List the folders named after a task; temporary ones, whose names begin with a dot, are not among them."""
    from lra.tasks import TASKS

    if not home.is_dir():
        return []
    return sorted(path for path in home.iterdir() if path.is_dir() and task_of(path) in TASKS)


def task_of(folder: Path) -> str:
    """Return the name of the task that a prepared folder is of."""
    return folder.name.partition("-")[0]
