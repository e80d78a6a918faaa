"""Tries the commands of the documentation: in this process, up to the point where a long work would begin."""

import importlib
import itertools
import re
import sys
import tomllib
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from attention_zoo import get_variant
from reports import cli as report_command
from runners.cli import (
    bench as bench_command,
)
from runners.cli import (
    data as data_command,
)
from runners.cli import (
    doctor as doctor_command,
)
from runners.cli import (
    run as run_command,
)
from runners.cli import (
    sweep as sweep_command,
)
from runners.cli import (
    zoo as zoo_command,
)
from tests.docs.pages import ROOT, Command

COMMANDS = {
    "lra-run": run_command.command,
    "lra-sweep": sweep_command.command,
    "lra-bench": bench_command.command,
    "lra-report": report_command.command,
    "lra-data": data_command.main,
    "lra-zoo": zoo_command.main,
    "lra-doctor": doctor_command.command,
}

STOPS = {
    "lra-run": ("runners.train.prepare_data.prepare", "trains; with --dry-run it is run for real"),
    "lra-doctor": ("runners.cli.doctor.self_test", "trains for a moment"),
    "lra-sweep run": ("runners.sweep.driver.Sweep.run", "trains"),
    "lra-sweep plan --probe": ("runners.sweep.tables.plan_rows", "trains for a moment"),
    "lra-bench": ("runners.bench.measure.measure_length", "takes minutes"),
    "lra-data prepare": ("lra.tasks.base.Task.prepare", "takes minutes, or needs a file"),
    "lra-data show": ("lra.tasks.base.Task.prepare", "prepares the data first"),
    "lra-data fetch": ("lra.data.download.Transfer.__init__", "downloads"),
    "lra-data verify": ("runners.cli.data.prepared_folders", "needs prepared data"),
    "lra-data remove": ("runners.cli.data.prepared_folders", "needs prepared data"),
    "lra-zoo check": ("attention_zoo.checks.contract_checks", "takes half a minute; tests/attention_zoo runs it"),
    "lra-report figures": ("reports.cli.load", "tests/reports draws them"),
    "lra-report html": ("reports.cli.load", "tests/reports makes the page"),
    "lra-report probes": ("reports.cli.load", "needs runs of probes"),
    "lra-report locality": ("reports.cli.load", "needs trained weights"),
    "lra-report verify": ("reports.verify.verify", "needs true records"),
    "lra-report site": ("reports.cli.load", "tests/reports makes the site"),
    "lra-run --from": ("lra.trained.load_run", "needs a finished run"),
    "lra-report pooling": ("reports.cli.load", "needs trained weights"),
    "lra-report compare": ("reports.cli.load", "needs the records of a page"),
    "lra-report table --store": ("reports.cli.load", "needs the records of a page"),
    "lra-report table --suite": ("reports.cli.load", "needs the records of a suite"),
    "lra-report table [": ("reports.cli.load", "needs the records of a page"),
}
"""Commands that are only parsed: all that the command itself checks is checked, and this function is where it stops.

The others are run for real: `lra-run --dry-run`, `lra-sweep plan`, `status`, `retry` and `gc`, `lra-data list`,
`lra-zoo list`, `describe` and `docs`, `lra-report table` on made-up records, and `--help` of all.
"""

PLACEHOLDERS = {"NAME": "full", "TASK": "text", "FILE": "file", "SUITE": "quick", "VARIANT": "full"}

FOREIGN = {
    "git": "fetches the project",
    "cd": "of the shell",
    "export": "of the shell",
    "for": "of the shell",
    "do": "of the shell",
    "done": "of the shell",
    "ray": "starts a cluster",
    "sbatch": "needs Slurm",
    "squeue": "needs Slurm",
    "srun": "needs Slurm",
    "nvidia-smi": "needs a GPU",
    "mkdocs": "needs the extra docs; test_site.py builds the site",
}
"""Programs that are not ours and not run, with the reason."""

TOOLS = ("pip", "pytest", "python", "ruff", "mypy", "lint-imports", "vulture", "torchrun")
PROGRAMS = (*COMMANDS, *TOOLS, *FOREIGN)


class ReachedError(BaseException):
    """The command has checked everything and would begin its work. No `except Exception` on the way catches it."""


class DocsError(AssertionError):
    """A command of the documentation does not work."""


def stop_of(words: tuple[str, ...]) -> str | None:
    """Return the key of STOPS that a command falls under; None if it is run for real."""
    name = words[0]
    group = f"{name} {words[1]}" if len(words) > 1 else name
    if "--help" in words or (name == "lra-run" and "--dry-run" in words):
        return None
    if name == "lra-run" and "--from" in words:
        return "lra-run --from"
    for key in (name, group):
        if key in STOPS:
            return key
    if group == "lra-report table" and any("[" in word for word in words):
        return "lra-report table ["
    return next((f"{group} {word}" for word in words if f"{group} {word}" in STOPS), None)


def try_own(command: Command, patch: pytest.MonkeyPatch) -> str | None:
    """Run one of the six commands, or as much of it as is quick.

    Returns:
        The key of STOPS where it stopped; None if it ran to its end.

    Raises:
        DocsError: It ended with an error.
    """
    words = tuple(PLACEHOLDERS.get(word, word) for word in command.words)
    stop = stop_of(words)
    with patch.context() as here:
        stand_in(here)
        if stop is not None:
            here.setattr(STOPS[stop][0], reached)
        for variable in command.variables:
            here.setenv(*variable.split("=", 1))
        here.setattr(sys, "argv", list(words))
        try:
            done = CliRunner().invoke(COMMANDS[words[0]], list(words[1:]), catch_exceptions=False, prog_name=words[0])
        except ReachedError:
            check_names(words)
            return stop
    if done.exit_code != 0 or stop is not None:
        raise DocsError(f"{command}: exit {done.exit_code}, {done.output.strip().splitlines()[-3:]}")
    return None


def reached(*_: object, **__: object) -> None:
    raise ReachedError


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Take away what a documented command may need and this machine need not have: GPUs, clusters, shared folders."""
    real_device = run_command.pick_device
    patch.setattr(run_command, "pick_device", lambda name: real_device("cpu" if torch_device(name) else name))
    patch.setattr(sweep_command, "_gpus", lambda device: [])
    patch.setattr("runners.sweep.launchers.ray.RayLauncher.__init__", lambda self, **settings: None)
    patch.setattr("runners.sweep.launchers.slurm.SlurmLauncher.__init__", lambda self, **settings: None)
    patch.setattr("lra.results.records.Store.check_writable", lambda self: None)
    if sys.argv[0] != "lra-run":
        patch.setattr(sweep_command, "_runs", runs_without_data)


def torch_device(name: str) -> bool:
    return re.fullmatch(r"cuda(:\d+)?", name) is not None and torch.device(name).type == "cuda"


def runs_without_data(suite: str, data_dir: Path | None, *, prepare: bool) -> list[object]:
    """Expand a suite for real, and prepare nothing."""
    from lra.config.suites import expand, load_suite
    from runners.sweep.state import sweep_runs

    return list(sweep_runs(expand(load_suite(suite)), Path("nowhere")))


def check_names(words: tuple[str, ...]) -> None:
    """Check the names of variants and tasks that a command looks up only after the point where it was stopped."""
    from lra.tasks import TASKS

    if words[:3] in {("lra-report", "table", "head-to-head"), ("lra-report", "table", "ablation")}:
        for label in (word for word in words[3:] if not word.startswith("-")):
            if words[words.index(label) - 1].startswith("-"):
                continue
            get_variant(label.partition(" [")[0])
    if words[:2] == ("lra-data", "remove"):
        for name in (word for word in words[2:] if not word.startswith("-")):
            if name.partition("-")[0] not in TASKS:
                raise DocsError(f"{name} names no task")


def try_tool(command: Command, patch: pytest.MonkeyPatch) -> None:
    """Check a command that is not one of the six without running it.

    Raises:
        DocsError: It names a file, an extra or an option that is not there.
    """
    words = command.words
    if words[0] in FOREIGN:
        return
    if words[0] == "pip":
        check_pip(command)
    elif words[0] == "pytest":
        missing = [word for word in words[1:] if "/" in word and not (ROOT / word.partition("::")[0]).exists()]
        if missing:
            raise DocsError(f"{command}: no {missing}")
    elif words[0] == "python" and words[1:2] == ("-m",) and words[2].startswith("benchmarks."):
        try_benchmark(command, patch)
    elif words[0] == "torchrun":
        try_launched(command, patch)
    elif words[0] not in TOOLS:
        raise DocsError(f"{command}: unknown program; see FOREIGN and TOOLS")


def try_launched(command: Command, patch: pytest.MonkeyPatch) -> None:
    """Let torchrun parse its options, and try what it would start.

    Raises:
        DocsError: torchrun knows no such option, or it would start something else than one of the six.
    """
    from torch.distributed.run import parse_args

    try:
        parsed = parse_args(list(command.words[1:]))
    except SystemExit as stop:
        raise DocsError(f"{command}: exit {stop.code}") from stop
    if not parsed.no_python or parsed.training_script not in COMMANDS:
        raise DocsError(f"{command}: starts none of our commands")
    try_own(Command(command.page, (parsed.training_script, *parsed.training_script_args)), patch)


def check_pip(command: Command) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = project["optional-dependencies"]
    for word in command.words[1:]:
        named = re.fullmatch(r"(?:\.|lra-harness)\[([\w,]+)\]", word)
        unknown = [name for name in named[1].split(",") if name not in known] if named else []
        pinned = re.fullmatch(r"torch==.*", word)
        if unknown or (pinned and word not in (ROOT / "constraints.txt").read_text().splitlines()):
            raise DocsError(f"{command}: {word}")
        if word.endswith(".txt") and not (ROOT / word).is_file():
            raise DocsError(f"{command}: no {word}")


def try_benchmark(command: Command, patch: pytest.MonkeyPatch) -> None:
    """Let a script under benchmarks/ parse its command line, and stop it there."""
    import argparse

    try:
        module = importlib.import_module(command.words[2])
    except ImportError as error:
        raise DocsError(f"{command}: {error}") from error
    if (
        module.__file__ is None or module.__spec__.submodule_search_locations is not None
    ):  # a package: it is its `__main__`
        module = importlib.import_module(f"{command.words[2]}.__main__")
    words = list(command.words[3:])
    if isinstance(getattr(module, "command", None), click.Command):
        check_words(module.command, words, whole=True)
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, arguments: list[str] | None = None) -> None:
        parse(self, arguments)
        raise ReachedError

    with patch.context() as here:
        here.setattr(sys, "argv", [command.words[2], *words])
        here.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        try:
            module.main()
        except ReachedError:
            return
        except SystemExit as stop:
            raise DocsError(f"{command}: exit {stop.code}") from stop
    raise DocsError(f"{command}: parses no command line")


def check_words(command: click.Command, words: list[str], *, whole: bool = False) -> None:
    """Check subcommands, option names and choices of a fragment such as `lra-report figures --format pdf`.

    Raises:
        DocsError: One of them is unknown.
    """
    try:
        if isinstance(command, click.Group):
            if words and not words[0].startswith("-"):
                _, found, rest = command.resolve_command(click.Context(command), list(words))
                assert found is not None
                check_words(found, rest, whole=whole)
        elif whole:
            command.parse_args(click.Context(command), list(words))
        else:
            check_options(command, words)
    except click.UsageError as error:
        raise DocsError(f"{command.name}: {error.format_message()}") from error


def check_options(command: click.Command, words: list[str]) -> None:
    """Check the names of options, and the values of those that admit some only; NAME stands for any value."""
    options = {name: parameter for parameter in command.params for name in (*parameter.opts, "--help")}
    for word, value in itertools.pairwise([*words, ""]):
        name, _, attached = word.partition("=")
        if name.startswith("--") and name not in options:
            raise click.NoSuchOption(name, ctx=click.Context(command))
        parameter = options.get(name)
        if parameter is not None and isinstance(parameter.type, click.Choice) and not value.isupper():
            parameter.type.convert(attached or value, parameter, None)


def option_names() -> set[str]:
    """Every option of every command, as prose may name it alone."""
    found = {"--help"}
    for command in COMMANDS.values():
        parts = [*command.commands.values()] if isinstance(command, click.Group) else [command]
        found |= {name for part in parts for parameter in part.params for name in parameter.opts}
    return found
