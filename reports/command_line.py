"""What the commands of `lra-report` share: stores in, text out."""

from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lra.errors import UsageError

if TYPE_CHECKING:
    from .load import Loaded

PROBLEMS_SHOWN = 10

store_option = click.option(
    "--store",
    "stores",
    multiple=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Store of records; may be given several times.  [default: LRA_STORE, else lra-results]",
    envvar="LRA_STORE",
)
profile_option = click.option("--profile", help="Only records of this profile.")
out_option = click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="File to write instead.")


def load(stores: tuple[Path, ...], profile: str | None = None) -> Loaded:
    """Load the stores and say on stderr what had to be passed over.

    Raises:
        UsageError: There is no record of this profile, or none at all.
    """
    from .load import load_stores
    from .render import clean

    loaded = load_stores(stores or (Path("lra-results"),))
    if loaded.problems:
        click.echo(f"{len(loaded.problems)} files passed over:", err=True)
        for problem in loaded.problems[:PROBLEMS_SHOWN]:
            click.echo(f"  {clean(problem)}", err=True)
        if len(loaded.problems) > PROBLEMS_SHOWN:
            click.echo(f"  and {len(loaded.problems) - PROBLEMS_SHOWN} more", err=True)
    names = sorted({name for name, _ in loaded.profiles()})
    if not names:
        raise UsageError("the store holds no records yet")
    if profile is not None and profile not in names:
        raise UsageError(f"no records of profile {profile!r}; there is {', '.join(names)}")
    return loaded if profile is None else loaded.of_profile(profile)


def need_report_extra() -> None:
    """Say how to install what figures and pages need.

    Raises:
        UsageError: matplotlib or jinja2 is not installed.
    """
    missing = [name for name in ("matplotlib", "jinja2") if find_spec(name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} not installed; pip install 'lra-harness[report]'")


def find(loaded: Loaded, prefix: str) -> str:
    """Complete the beginning of a cell id.

    Raises:
        UsageError: No record, or several, begin so.
    """
    found = [cell for cell in loaded.records if cell.startswith(prefix)]
    if len(found) != 1:
        raise UsageError(f"{len(found)} records begin with {prefix!r}; give more or other digits of the cell id")
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
