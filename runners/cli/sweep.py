# SPDX-License-Identifier: Apache-2.0
"""`lra-sweep`: plan, run, watch and tidy up the runs of a suite. Torch is imported after signals are handled."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lra.cli import CONTEXT, Group, echo_json, json_option, one_line_errors, version_option
from lra.terminal import echo

from .. import fresh_python, signals
from ..threads import MAX_DEFAULT_SLOTS, default_slots, default_threads
from .options import (
    AT_A_TIME,
    THREADS_DEFAULT,
    FiniteRange,
    allow_other_environment_option,
    data_dir_option,
    deterministic_option,
    store_option,
)

if TYPE_CHECKING:
    from lra.results.records import Store

    from ..sweep.launchers.base import Launcher
    from ..sweep.state import SweepRun

EXIT_FAILED_RUNS = 5
EXAMPLES = """
\b
Examples:
  lra-sweep plan quick
  lra-sweep run quick --slots 2
  lra-sweep status quick              (from another terminal, while it runs)
  lra-sweep run my-suite.yaml --launcher ray --per-gpu 4
"""


def suite_command(function: Callable[..., None]) -> Callable[..., None]:
    """Add what every command of `lra-sweep` takes: the suite, the store and the data folder."""
    return click.argument("suite")(store_option(data_dir_option(function)))


slots_option = click.option(
    "--slots",
    type=AT_A_TIME,
    help=f"Runs at a time.  [default: --per-gpu on each GPU, else CPU cores up to {MAX_DEFAULT_SLOTS}]",
)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Device of each run; auto takes CUDA if there is any.",
)
threads_option = click.option("--threads", type=AT_A_TIME, help=f"CPU threads of each run.  {THREADS_DEFAULT}")


def slots_and_threads(slots: int | None, threads: int | None, gpu_slots: int) -> tuple[int, int]:
    """Choose how many runs go on at a time and how many threads each has, where the command line does not say."""
    return slots or gpu_slots or default_slots(), threads or default_threads()


@click.group(cls=Group, epilog=EXAMPLES, context_settings=CONTEXT)
@version_option
def command() -> None:
    """Run a suite: a grid of tasks, variants, options and seeds, each run in its own process.

    SUITE is the name of a built-in suite or a YAML file. If a sweep was stopped or killed, give the same `run` command
    again: it continues, and runs that the store already holds are not repeated.
    """


@command.command()
@suite_command
@click.option(
    "--probe",
    is_flag=True,
    help="Also show operations, time and memory, estimated from a few steps of each configuration.",
)
@device_option
@slots_option
@threads_option
@json_option
@one_line_errors
def plan(
    *,
    as_json: bool,
    suite: str,
    store_folder: Path,
    home: Path,
    probe: bool,
    device: str,
    slots: int | None,
    threads: int | None,
) -> None:
    """List the runs of a suite with their state, steps and number of parameters, without running them."""
    from ..sweep.tables import Probe, plan_rows, plan_table

    signals.uninstall()
    runs = _runs(suite, home, prepare=probe)
    slots, threads = slots_and_threads(slots, threads, len(_gpus(device)))
    probed = Probe(slots=slots, threads=threads, device=device) if probe else None
    rows = plan_rows(runs, store_folder, home.resolve(), probed)
    if as_json:
        echo_json(rows)
    else:
        echo(plan_table(rows, probed))


# `--engine` is the former name of `--launcher`; it still works and is not shown.
@command.command(context_settings={"token_normalize_func": lambda name: "launcher" if name == "engine" else name})
@suite_command
@click.option(
    "--launcher",
    type=click.Choice(["local", "ray", "slurm"]),
    default="local",
    show_default=True,
    help="Where runs are started: on this machine, on a Ray cluster or by Slurm.",
)
@slots_option
@threads_option
@click.option("--per-gpu", type=AT_A_TIME, default=1, show_default=True, help="Runs that share a GPU.")
@device_option
@click.option(
    "--timeout",
    type=FiniteRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Stop a run that takes longer, and do not repeat it.  [default: no limit]",
)
@click.option(
    "--time-limit",
    type=FiniteRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Stop the sweep after this time, with the state of the running runs saved.  [default: no limit]",
)
@click.option(
    "--checkpoint-seconds",
    type=FiniteRange(min=0),
    default=60.0,
    show_default=True,
    help="Time between two checkpoints of a run.",
)
@click.option(
    "--tracker",
    "trackers",
    multiple=True,
    metavar="NAME",
    help="Also log each run to tensorboard, wandb (offline) or a plug-in; may be repeated.",
)
@click.option(
    "--ray-address",
    metavar="ADDRESS",
    help="Address of a running Ray cluster.  [default: start one on this machine]",
)
@click.option(
    "--slurm",
    "slurm",
    multiple=True,
    metavar="KEY=VALUE",
    help="A parameter of submitit, such as slurm_partition=gpu; may be repeated.",
)
@deterministic_option
@allow_other_environment_option
@one_line_errors
def run(
    *,
    suite: str,
    store_folder: Path,
    home: Path,
    launcher: str,
    slots: int | None,
    threads: int | None,
    per_gpu: int,
    device: str,
    timeout: float | None,
    time_limit: float | None,
    checkpoint_seconds: float,
    trackers: tuple[str, ...],
    ray_address: str | None,
    slurm: tuple[str, ...],
    deterministic: bool,
    allow_other_environment: bool,
) -> None:
    """Execute the runs of a suite that are not finished yet."""
    from lra.results.records import Store

    from ..sweep.driver import Sweep, SweepSettings
    from ..sweep.progress import SweepView
    from ..sweep.state import state_of, tally
    from ..train.trackers import check_trackers

    for option, given, wanted in (("--slurm", slurm, "slurm"), ("--ray-address", ray_address, "ray")):
        if given and launcher != wanted:
            raise click.UsageError(f"{option} needs --launcher {wanted}, not {launcher}")
    check_trackers(trackers)
    store, home = Store(store_folder.resolve()), home.resolve()
    runs = _runs(suite, home, prepare=True)
    store.check_writable()
    gpus = _gpus(device) if launcher == "local" else []
    slots, threads = slots_and_threads(slots, threads, len(gpus) * per_gpu)
    settings = SweepSettings(
        arguments=(
            *("--store", str(store.root), "--data-dir", str(home), "--device", device, "--threads", str(threads)),
            *("--checkpoint-seconds", str(checkpoint_seconds), "--quiet"),
            *(["--deterministic"] if deterministic else []),
            *(["--allow-other-environment"] if allow_other_environment else []),
            *(argument for name in trackers for argument in ("--tracker", name)),
        ),
        timeout_seconds=timeout and 60 * timeout,
        limit_seconds=time_limit and 60 * time_limit,
    )
    states = [state_of(store, run) for run in runs]
    echo(f"{suite}: {len(runs)} runs: {tally(states)}; {slots} at a time, {threads} threads each", err=True)
    view = SweepView(store, runs, states)
    target = make_launcher(launcher, slots, threads, per_gpu, device, gpus, ray_address, slurm, store.root)
    finished = Sweep(runs, store, target, settings, view, signals.stop_requested).run()
    states = [state_of(store, run) for run in runs]
    echo(f"{suite}: {tally(states)}", err=True)
    if not finished:
        sys.exit(signals.EXIT_PREEMPTED)
    if any(state.word != "ok" for state in states):
        sys.exit(EXIT_FAILED_RUNS)


@command.command()
@suite_command
@json_option
@one_line_errors
def status(*, suite: str, store_folder: Path, home: Path, as_json: bool) -> None:
    """Print the state of each run; also while the sweep runs, and on another host with the same store."""
    from lra.results.records import Store

    from ..sweep.tables import status_rows, status_table

    signals.uninstall()
    store = _existing_store(store_folder) or Store(store_folder)
    rows = status_rows(_runs(suite, home, prepare=False), store)
    for problem in [problem for row in rows for problem in row["unread"]]:
        echo(f"{problem}; passed over", err=True)
    if as_json:
        echo_json(rows)
    else:
        echo(status_table(rows))


@command.command()
@suite_command
@one_line_errors
def retry(*, suite: str, store_folder: Path, home: Path) -> None:
    """Clear failed attempts (failed, oom, timeout), so that `run` tries those runs again."""
    from ..sweep.state import clear_failures

    signals.uninstall()
    runs = _runs(suite, home, prepare=False)
    if store := _existing_store(store_folder):
        cleared = [run.label for run in runs if clear_failures(store, run)]
        echo("\n".join([*cleared, f"{len(cleared)} runs will be tried again"]))


@command.command()
@suite_command
@one_line_errors
def gc(*, suite: str, store_folder: Path, home: Path) -> None:
    """Remove checkpoints, logs and temporary files that finished runs no longer need; the scored weights stay."""
    from lra.errors import StoreError, refusals_as

    from ..sweep.state import collect_garbage

    signals.uninstall()
    runs = _runs(suite, home, prepare=False)
    if store := _existing_store(store_folder):
        with refusals_as(StoreError, f"cannot tidy up {store_folder}"):
            freed = sum(collect_garbage(store, run) for run in runs)
        echo(f"{freed / 2**20:.1f} MiB freed")


def _existing_store(folder: Path) -> Store | None:
    """Open the store, or print that there is none: with a mistyped `--store`, nothing would seem to have been run."""
    from lra.results.records import Store

    if folder.is_dir():
        return Store(folder)
    echo(f"There is no store at {folder} yet.", err=True)
    return None


def _runs(suite: str, home: Path, *, prepare: bool) -> list[SweepRun]:
    """Expand the suite; with `prepare`, also prepare the data of every run."""
    from lra.config.suites import expand, load_suite
    from lra.errors import DataError

    from ..sweep.state import data_folder, sweep_runs
    from ..train.prepare_data import prepare as prepare_data

    configs, home = expand(load_suite(suite)), home.resolve()
    if prepare:
        for config in {data_folder(config, home): config for config in configs}.values():
            prepare_data(config, home, progress=True)
    runs = sweep_runs(configs, home)
    if gone := sorted({run.config.task for run in runs if prepare and run.manifest is None}):
        raise DataError(f"the data of {', '.join(gone)} has been removed or changed since it was prepared; start again")
    for problem in dict.fromkeys(run.problem for run in runs if run.problem):
        echo(f"The store may have runs that are unknown here, since their ids cover their data: {problem}", err=True)
    return runs


def _gpus(device: str) -> list[str]:
    """Return the names of the GPUs to use, as in CUDA_VISIBLE_DEVICES."""
    if device == "cpu":
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: this machine has no CUDA device")
    return names if torch.cuda.is_available() else []


def make_launcher(
    name: str,
    slots: int,
    threads: int,
    per_gpu: int,
    device: str,
    gpus: list[str],
    ray_address: str | None,
    slurm: tuple[str, ...],
    store: Path,
) -> Launcher:
    """Build the launcher of this name."""
    from lra.config.overrides import parse_overrides

    from ..sweep.launchers.local import LocalLauncher, cpu_slots, gpu_slots

    if name == "ray":
        from ..sweep.launchers.ray import RayLauncher

        share = 1 / per_gpu if device == "cuda" else 0.0
        return RayLauncher(slots=slots, threads=threads, gpus=share, address=ray_address)
    if name == "slurm":
        from ..sweep.launchers.slurm import SlurmLauncher

        return SlurmLauncher(
            folder=store / "slurm",
            slots=slots,
            threads=threads,
            gpus=int(device == "cuda"),
            cluster="slurm",
            settings=parse_overrides(slurm, "--slurm", "slurm_partition=gpu"),
        )
    return LocalLauncher(gpu_slots(gpus, per_gpu, slots) if gpus else cpu_slots(slots))


def main() -> None:
    """Run the command line."""
    fresh_python.fix_order_of_sets()
    signals.install()
    command()


if __name__ == "__main__":
    main()
