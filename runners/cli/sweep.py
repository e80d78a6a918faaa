"""`lra-sweep`: plan, run, watch and tidy up a suite of cells. Torch comes after the signal handlers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lra.cli import one_line_errors, version_option

from .. import signals
from .options import data_dir_option, store_option

if TYPE_CHECKING:
    from ..sweep.launchers.base import Launcher
    from ..sweep.state import SweepCell

FINISHED_WITH_FAILURES = 5
MOST_SLOTS = 4
"""Slots without --slots on a machine without GPUs; more are seldom faster and need memory each."""
EXAMPLES = """
\b
Examples:
  lra-sweep plan quick
  lra-sweep run quick --slots 2
  lra-sweep status quick              (from another terminal, while it runs)
  lra-sweep run my-suite.yaml --launcher ray --per-gpu 4
"""

suite_argument = click.argument("suite")


@click.group(epilog=EXAMPLES, context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]})
@version_option
def command() -> None:
    """Run suites: grids of tasks, variants, options and seeds, each cell in a process of its own.

    SUITE is the name of a built-in suite or a YAML file. A sweep that was stopped or killed goes on when `run` is given
    again; what is in the store is not repeated.
    """


@command.command()
@suite_argument
@store_option
@data_dir_option
@click.option("--probe", is_flag=True, help="Run a few steps of each configuration to estimate time and memory.")
@one_line_errors
def plan(*, suite: str, store_folder: Path, data_dir: Path | None, probe: bool) -> None:
    """Print the cells of a suite, those already done, and their parameters; run nothing."""
    from ..sweep.tables import plan_table

    signals.uninstall()
    cells = _cells(suite, data_dir, prepare=probe)
    click.echo(plan_table(cells, store_folder, _home(data_dir), probe=probe))


@command.command()
@suite_argument
@store_option
@data_dir_option
@click.option("--launcher", type=click.Choice(["local", "ray", "slurm"]), default="local", show_default=True)
@click.option("--slots", type=click.IntRange(min=1), help="Cells at a time.  [default: by GPUs, or CPU cores up to 4]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of a cell.  [default: cores / slots]")
@click.option("--per-gpu", type=click.IntRange(min=1), default=1, show_default=True, help="Cells that share a GPU.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--timeout", type=click.FloatRange(min=0, min_open=True), metavar="MINUTES", help="Longest time of a cell."
)
@click.option(
    "--time-limit",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="After this, start no cell, and stop the running ones with their state saved.",
)
@click.option("--checkpoint-seconds", type=click.FloatRange(min=0), default=60.0, show_default=True)
@click.option("--tracker", "trackers", multiple=True, metavar="NAME", help="As for lra-run.")
@click.option("--ray-address", metavar="ADDRESS", help="Of a running Ray cluster.  [default: one on this machine]")
@click.option("--slurm", "slurm", multiple=True, metavar="KEY=VALUE", help="For submitit, such as slurm_partition=gpu.")
@one_line_errors
def run(
    *,
    suite: str,
    store_folder: Path,
    data_dir: Path | None,
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
) -> None:
    """Run the cells of a suite that have no end yet.

    Exit code 0: every cell has its number; 5: some ended without one; 75: stopped before the end, go on with the same
    command.
    """
    from lra.results.records import Store

    from ..sweep.driver import Sweep, SweepSettings, tally
    from ..sweep.progress import SweepView
    from ..sweep.state import NO_NUMBER, state_of
    from ..train.trackers import check_trackers

    for option, given, wanted in (("--slurm", slurm, "slurm"), ("--ray-address", ray_address, "ray")):
        if given and launcher != wanted:
            raise click.UsageError(f"{option} goes with --launcher {wanted}, not with {launcher}")
    check_trackers(trackers)
    store, home = Store(store_folder.resolve()), _home(data_dir)
    cells = _cells(suite, data_dir, prepare=True)
    store.check_writable()
    gpus = _gpus(device) if launcher == "local" else []
    cores = os.cpu_count() or 1
    slots = slots or (len(gpus) * per_gpu or min(cores, MOST_SLOTS))
    threads = threads or max(1, cores // slots)
    settings = SweepSettings(
        arguments=(
            *("--store", str(store.root), "--data-dir", str(home), "--device", device, "--threads", str(threads)),
            *("--checkpoint-seconds", str(checkpoint_seconds), "--quiet"),
            *(argument for name in trackers for argument in ("--tracker", name)),
        ),
        timeout_seconds=timeout and 60 * timeout,
        limit_seconds=time_limit and 60 * time_limit,
    )
    if signals.stop_requested():
        sys.exit(signals.EXIT_PREEMPTED)
    states = [state_of(store, cell) for cell in cells]
    click.echo(f"{suite}: {len(cells)} cells: {tally(states)}; {slots} at a time, {threads} threads each", err=True)
    view = SweepView(store, total=len(cells), done=sum(state.final for state in states))
    where = _launcher(launcher, slots, threads, per_gpu, device, gpus, ray_address, slurm, store.root)
    finished = Sweep(cells, store, where, settings, view, signals.stop_requested).run()
    states = [state_of(store, cell) for cell in cells]
    click.echo(f"{suite}: {tally(states)}", err=True)
    if not finished:
        sys.exit(signals.EXIT_PREEMPTED)
    if any(state.word in NO_NUMBER for state in states):
        sys.exit(FINISHED_WITH_FAILURES)


@command.command()
@suite_argument
@store_option
@data_dir_option
@one_line_errors
def status(*, suite: str, store_folder: Path, data_dir: Path | None) -> None:
    """Print where each cell stands; works while the sweep runs, also on another host with the same store."""
    from lra.results.records import Store

    from ..sweep.tables import status_table

    signals.uninstall()
    _missing(store_folder)
    click.echo(status_table(_cells(suite, data_dir, prepare=False), Store(store_folder)))


@command.command()
@suite_argument
@store_option
@data_dir_option
@one_line_errors
def retry(*, suite: str, store_folder: Path, data_dir: Path | None) -> None:
    """Forget failed attempts (failed, oom, timeout), so that the next `run` tries those cells again."""
    from lra.results.records import Store

    from ..sweep.state import clear_failures

    signals.uninstall()
    cells = _cells(suite, data_dir, prepare=False)
    if _missing(store_folder):
        return
    store = Store(store_folder)
    cleared = [cell.label for cell in cells if clear_failures(store, cell)]
    click.echo("\n".join([*cleared, f"{len(cleared)} cells will be tried again"]))


@command.command()
@suite_argument
@store_option
@data_dir_option
@one_line_errors
def gc(*, suite: str, store_folder: Path, data_dir: Path | None) -> None:
    """Remove checkpoints and logs of finished cells and files left by dead processes; scored weights stay."""
    from lra.errors import StoreError
    from lra.results.records import Store

    from ..sweep.state import collect_garbage

    signals.uninstall()
    cells = _cells(suite, data_dir, prepare=False)
    if _missing(store_folder):
        return
    store = Store(store_folder)
    try:
        freed = sum(collect_garbage(store, cell) for cell in cells)
    except OSError as error:
        raise StoreError(f"cannot tidy up {store_folder}: {error.strerror or error}") from error
    click.echo(f"{freed / 2**20:.1f} MiB freed")


def _missing(store: Path) -> bool:
    """Say so if the store is not there: a mistyped `--store` would look like a suite of which nothing was run."""
    missing = not store.is_dir()
    if missing:
        click.echo(f"There is no store at {store} yet.", err=True)
    return missing


def _home(data_dir: Path | None) -> Path:
    from lra.data.dataset import data_home

    return data_home(data_dir).resolve()


def _cells(suite: str, data_dir: Path | None, *, prepare: bool) -> list[SweepCell]:
    from lra.config.suites import expand, load_suite

    from ..sweep.state import data_folder, sweep_runs
    from ..train.prepare_data import prepare as prepare_data

    configs, home = expand(load_suite(suite)), _home(data_dir)
    if prepare:
        for config in {data_folder(config, home): config for config in configs}.values():
            prepare_data(config, home, progress=True)
    return sweep_runs(configs, home)


def _gpus(device: str) -> list[str]:
    if device == "cpu":
        return []
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else list(map(str, range(torch.cuda.device_count())))
    if device == "cuda" and not torch.cuda.is_available():
        raise click.UsageError("--device cuda: this machine has no CUDA device")
    return names if torch.cuda.is_available() else []


def _launcher(
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
    from lra.config.resolve import parse_override

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
            settings=dict(parse_override(text, "--slurm", "slurm_partition=gpu") for text in slurm),
        )
    return LocalLauncher(gpu_slots(gpus, per_gpu, slots) if gpus else cpu_slots(slots))


def main() -> None:
    """Run the command line."""
    signals.install()
    command()


if __name__ == "__main__":
    main()
