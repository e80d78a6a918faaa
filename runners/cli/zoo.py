# SPDX-License-Identifier: Apache-2.0
"""`lra-zoo`: list, describe and check the attention variants, including plug-ins."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lra.cli import Group, echo_json, json_option, one_line_errors, version_option
from lra.terminal import echo, progress_bar

from .options import write_file

if TYPE_CHECKING:
    from attention_zoo import VariantSpec


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@version_option
def main() -> None:
    """List, describe and check the attention variants, including plug-ins."""


@main.command("list")
@json_option
@one_line_errors
def list_command(*, as_json: bool) -> None:
    """List the variants; `lra-zoo describe NAME` tells more of each."""
    from .variant_docs import COLUMNS, catalogue, row, table

    specs, problems = catalogue()
    if as_json:
        echo_json([dict(zip(COLUMNS, row(spec), strict=True)) for spec in specs])
    else:
        echo(table(specs))
    for problem in problems:
        echo(f"Warning: {problem}", err=True)


@main.command()
@click.argument("name")
@one_line_errors
def describe(name: str) -> None:
    """Describe the variant NAME: what it does, what it claims, and its options."""
    spec = find(name)
    from attention_zoo.faults import fault_line
    from lra.errors import UsageError

    from .variant_docs import describe as describe_variant

    try:
        text = describe_variant(spec)
    except Exception as error:  # whatever a broken variant raises where its parameters are counted
        raise UsageError(f"variant {spec.name!r} cannot be built: {fault_line(error)}") from error
    echo(text)


@main.command()
@click.argument("name")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Check with this option, such as variant.window=8; may be repeated.",
)
@one_line_errors
def check(name: str, overrides: tuple[str, ...]) -> None:
    """Run the contract checks on the variant NAME, and print a line for each, what fails first.

    A line that begins with FAIL says what is wrong, where in the file of the variant an error comes from, and what
    usually helps. Begin with the first one; it often explains the others. The exit code is 1 if a check fails.
    """
    spec = find(name)
    import torch

    from attention_zoo import OptionError
    from attention_zoo.checks import contract_checks, verdict, with_options
    from lra.config.overrides import parse_overrides
    from lra.errors import UsageError

    given = [text.removeprefix("variant.") for text in overrides]
    options = parse_overrides(given, example="variant.window=8")
    try:
        checks = contract_checks(with_options(spec, options) if options else spec)
    except (OptionError, ValueError) as error:
        raise UsageError(f"{spec.name}: {error}") from error
    torch.set_num_threads(1)  # threads that wait for each other at small tensors take minutes on a busy machine
    bar = progress_bar(checks, title=spec.name, unit="check", shown=True, keep=False)
    problems = {check_name: verdict(check_name, run) for check_name, run in bar}
    shown: set[str] = set()
    for check_name, problem in problems.items():
        if problem:
            echo(f"FAIL  {check_name}: {'as above' if problem in shown else problem}")
            shown.add(problem)
    for check_name, problem in problems.items():
        if not problem:
            reason = spec.traits.waivers.get(check_name)
            echo(f"ok    {check_name}" if reason is None else f"waived {check_name}: {reason}")
    failed = sum(map(bool, problems.values()))
    echo(f"{spec.name}: {len(checks) - failed} of {len(checks)} checks passed")
    if failed:
        sys.exit(1)


@main.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("docs/variants.md"),
    show_default=True,
    help="File to write; the details go beside it, to appendix/variants-details.md.",
)
@one_line_errors
def docs(out: Path) -> None:
    """Write the two documentation pages about the variants of this project."""
    from lra.errors import LraError

    from .variant_docs import catalogue, details, page

    specs, problems = catalogue(own_only=True)
    if problems:
        raise LraError("\n".join(problems))
    beside = out.parent / "appendix" / "variants-details.md"
    write_file(out, page(specs))
    write_file(beside, details(specs))
    echo(f"{out}, {beside}: {len(specs)} variants")


def find(name: str) -> VariantSpec:
    """Return the variant of this name.

    Raises:
        UsageError: No variant has this name, or it cannot be imported or registered.
    """
    from attention_zoo import RegistrationError, UnknownVariantError, get_variant
    from lra.errors import UsageError

    try:
        return get_variant(name)
    except (UnknownVariantError, RegistrationError) as error:
        raise UsageError(str(error)) from error


if __name__ == "__main__":
    main()
