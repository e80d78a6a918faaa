"""`lra-run`: train, evaluate and record one cell or a small grid. Torch comes after the signal handlers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lra.cli import one_line_errors, version_option
from lra.config.builtin import profile_names

from .. import signals
from .options import data_dir_option, parse_seeds, store_option

if TYPE_CHECKING:
    import torch

    from lra.config.schema import RunConfig
    from lra.results.records import Store

    from ..train.distributed import Place
    from ..train.run import RunOptions

EXAMPLES = """
\b
Examples:
  lra-run --attn contextpool --task listops
  lra-run --attn full,contextpool --task listops --seeds 0-4
  lra-run --attn contextpool --task listops --set variant.placement=stream
  lra-run --attn full --task listops --profile official --dry-run
  lra-run --task image --set model.family=convnet --set model.pool=contextpool
  lra-run --config lra-results/results/ab/ab12....json --store elsewhere
"""


@click.command(epilog=EXAMPLES, context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]})
@version_option
@click.option(
    "--attn",
    metavar="NAME[,NAME...]",
    help="Attention variants; `all` runs every one.  [default with model.family=convnet: conv]",
)
@click.option("--task", metavar="NAME[,NAME...]", help="Tasks of the benchmark, such as listops.")
@click.option(
    "--profile",
    metavar="NAME",
    help=f"Recipe: a built-in one ({', '.join(profile_names())}) or a YAML file.  "
    "[default: nystromformer with a CUDA device, else quick]",
)
@click.option("--seeds", metavar="LIST", help="Seeds, such as 3, 0-4 or 0,2,5.  [default: 0]")
@click.option(
    "--track",
    type=click.Choice(["matched", "open"]),
    help="matched: only the variant's own options may be set; open: everything, and tables say so.  "
    "[default: matched; open with model.family=convnet]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting: variant.x, variants.NAME.x, and on the open track model.x, train.x, data.x.",
)
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="Run exactly this cell: a configuration as --dry-run prints it, or a record; - reads standard input.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads.  [default: torch's choice]")
@store_option
@data_dir_option
@click.option("--dry-run", is_flag=True, help="Print the configuration, the parameters and the cell id; run nothing.")
@click.option("--force", is_flag=True, help="Run again although the record exists; the outcomes are compared.")
@click.option(
    "--tracker",
    "trackers",
    multiple=True,
    metavar="NAME",
    help="Also send the numbers to tensorboard, wandb (offline) or a plug-in; an event file is always written.",
)
@click.option("--quiet", is_flag=True, help="No progress, only the final table.")
@click.option(
    "--checkpoint-seconds",
    type=click.FloatRange(min=0.0),
    default=60.0,
    show_default=True,
    help="Most work that a crash may cost.",
)
@one_line_errors
def command(
    *,
    attn: str | None,
    task: str | None,
    profile: str | None,
    seeds: str | None,
    track: str | None,
    overrides: tuple[str, ...],
    config_file: str | None,
    device: str,
    threads: int | None,
    store_folder: Path,
    data_dir: Path | None,
    dry_run: bool,
    force: bool,
    trackers: tuple[str, ...],
    quiet: bool,
    checkpoint_seconds: float,
) -> None:
    """Train, evaluate and record attention variants on tasks of the Long Range Arena.

    A run that was interrupted continues where it stopped when the same command is given again; a run that has its
    record is not repeated. Under torchrun, the processes share the batches of one cell.
    """
    if config_file is not None and any((attn, task, profile, seeds, track, overrides)):
        raise click.UsageError(
            "--config is a whole cell: --attn, --task, --profile, --seeds, --track, --set go without"
        )
    if config_file is None and not (task and (attn or overrides)):
        raise click.UsageError("--attn and --task are needed, or --config")
    seed_list = parse_seeds(seeds or "0")
    from dataclasses import replace

    import torch

    from lra.data.dataset import data_home
    from lra.results.records import Store

    from ..train.distributed import join, leave, own_device, place
    from ..train.plan import convnet_defaults, describe, plan, read_config
    from ..train.prepare_data import prepare_all
    from ..train.run import LeasedRunError, PreemptedRunError, RunError, RunOptions, execute_run
    from ..train.summary import summary
    from ..train.trackers import check_trackers

    if threads is not None:
        torch.set_num_threads(threads)
    here = place()
    the_device = own_device(pick_device(device), here)
    if config_file is not None:
        cells = [read_config(config_file)]
    else:
        recipe = profile or ("nystromformer" if the_device.type == "cuda" else "quick")
        attn, track, settings, line = convnet_defaults(attn, track, overrides, recipe)
        if not attn:
            raise click.UsageError("--attn and --task are needed, or --config")
        if line and here.rank == 0:
            click.echo(line, err=True)
        if profile is None and here.rank == 0:
            click.echo(f"Profile {recipe} (the default on {the_device.type}); --profile picks another.", err=True)
        cells = plan(
            attn=attn,
            task=task or "",
            profile=recipe,
            seeds=seed_list,
            track=track or "matched",
            overrides=settings,
        )
    home, store = data_home(data_dir), Store(store_folder)
    if dry_run:
        for number, config in enumerate(cells if here.rank == 0 else []):
            click.echo(("---\n" if number else "") + describe(config, home), nl=False)
        return
    if here.size > 1:
        check_team(cells, here.size)
    store.check_writable()
    check_trackers(trackers)
    execution = RunOptions(
        device=the_device,
        force=force,
        progress=not quiet,
        checkpoint_seconds=checkpoint_seconds,
        trackers=trackers,
    )
    if here.size > 1:
        execution = replace(execution, team=join(here, the_device))
        if here.rank > 0:
            sys.exit(follow(cells[0], home, store, execution, here))
    prepared = prepare_all(cells, execution.team, here, home, progress=not quiet)
    tables: dict[tuple[str, str], list[Any]] = {}
    ended_without_number = False
    for config in cells:
        if signals.stop_requested():
            sys.exit(signals.EXIT_PREEMPTED)
        rows = tables.setdefault((config.task, config.profile), [])
        try:
            record = execute_run(config, prepared[config.task], store, execution, signals.stop_requested)
            rows.append((config.variant.name, config.seed, record))
            ended_without_number |= record.status != "ok"
            if record.status != "ok":
                click.echo(f"{config.variant.name}, seed {config.seed}: {record.status}: {record.detail}", err=True)
        except (RunError, LeasedRunError) as error:
            click.echo(f"Error: {config.variant.name}, seed {config.seed}: {error}", err=True)
            status = error.status if isinstance(error, RunError) else "claimed"
            rows.append((config.variant.name, config.seed, status))
            ended_without_number = True
        except PreemptedRunError:
            leave(execution.team)
            raise
    leave(execution.team)
    click.echo("\n\n".join(summary(rows, store) for rows in tables.values()))
    if ended_without_number:
        sys.exit(RunError.exit_code)


def check_team(cells: list[RunConfig], size: int) -> None:
    """Check that `size` processes can share what is to be run.

    Raises:
        UsageError: It is more than one cell, or its batch has not an example for each process.
    """
    from lra.errors import UsageError

    if len(cells) > 1:
        raise UsageError(
            f"torchrun shares one cell among {size} processes, these are {len(cells)} cells: "
            "name one, or run them side by side with lra-sweep run SUITE --slots N"
        )
    batch_size = cells[0].train.batch_size
    if batch_size < size:
        raise UsageError(f"a batch of {batch_size} cannot be shared by {size} processes; --nproc-per-node {batch_size}")


def follow(config: RunConfig, home: Path, store: Store, execution: RunOptions, here: Place) -> int:
    """Take part in the run of another process and return the exit code; that process prints and writes."""
    from ..train.distributed import leave
    from ..train.prepare_data import prepare_for
    from ..train.run import PreemptedRunError, RunError, run_worker_rank

    data = prepare_for(execution.team, here, config, home, progress=False)
    try:
        status = run_worker_rank(config, data, store, execution, signals.stop_requested)
        code = 0 if status == "ok" else RunError.exit_code
    except PreemptedRunError:
        code = signals.EXIT_PREEMPTED
    leave(execution.team)
    return code


def pick_device(name: str) -> torch.device:
    """Resolve `auto` and check that the device is there.

    Raises:
        UsageError: It is not.
    """
    import torch

    from lra.errors import UsageError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: not a device; write auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def main() -> None:
    """Run the command line."""
    signals.install()
    command()


if __name__ == "__main__":
    main()
