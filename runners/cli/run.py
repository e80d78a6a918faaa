# SPDX-License-Identifier: Apache-2.0
"""`lra-run`: trains, evaluates and records one run or a small grid. Torch is imported after the signal handlers."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lra.cli import CONTEXT, Command, echo_json, json_option, one_line_errors, version_option
from lra.config.builtin import profile_names
from lra.names import parse_seeds
from lra.terminal import echo

from .. import fresh_python, signals
from ..threads import default_threads
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
    import torch

    from lra.config.schema import RunConfig
    from lra.results.records import RunRecord
    from lra.trained import TrainedRun

EXAMPLES = """
\b
Examples:
  lra-run --attn contextpool --task listops
  lra-run --attn full,contextpool --task listops --seeds 0-4
  lra-run --attn contextpool --task listops --set variant.placement=stream
  lra-run --attn full --task listops --profile official --dry-run
  lra-run --attn full --task listops --set pretrain.share=0.4
  lra-run --model my_model.py:build --task listops
  lra-run --task image --set model.family=convnet --set model.pool=contextpool
  lra-run --config lra-results/results/ab/ab12....json --store elsewhere
  lra-run --evaluate ab12
"""


@click.command(cls=Command, epilog=EXAMPLES, context_settings=CONTEXT)
@version_option
@click.option(
    "--attn",
    metavar="NAME[,NAME...]",
    help="Attention variants; `all` runs every one.  [default with model.family=convnet: conv]",
)
@click.option(
    "--model",
    metavar="REFERENCE[,...]",
    help="Whole models of your own, beside or without --attn: my_model.py:build, package.module:build, or "
    "hf:CONFIG.json for an encoder of transformers. On the open track.",
)
@click.option("--task", metavar="NAME[,NAME...]", help="Tasks, such as listops; `all` runs the benchmark's six.")
@click.option(
    "--profile",
    metavar="NAME",
    help=f"Recipe: a built-in one ({', '.join(profile_names())}) or a YAML file.  "
    "[default: nystromformer with a CUDA device, else quick]",
)
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Train with torch.compile, on either track. The numbers are others, so this is another run, and rows name it.",
)
@click.option("--seeds", metavar="LIST", help="Seeds, such as 3, 0-4 or 0,2,5.  [default: 0]")
@click.option(
    "--track",
    type=click.Choice(["matched", "open"]),
    help="matched: only the variant's own options and pretrain.share may be set; open: everything, and tables say so.  "
    "[default: matched; open with --model, --from or model.family=convnet]",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a setting: variant.x, variants.NAME.x, pretrain.share, and on the open track model.x, train.x, "
    "data.x, pretrain.x.",
)
@click.option(
    "--from",
    "start_run",
    metavar="RUN",
    help="Start from the chosen weights of a finished run, with new classifier layers: the file of its record, or the "
    "beginning of its id. On the open track.",
)
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help="Run exactly this configuration: one that --dry-run printed, or a record; - reads standard input.",
)
@click.option(
    "--evaluate",
    "evaluated",
    metavar="RUN",
    help="Score the chosen weights of a finished run again: the file of its record, or the beginning of its id. "
    "The exit code is 4 if another number of answers is right than is recorded.",
)
@click.option("--device", "device_name", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=AT_A_TIME, help=f"CPU threads.  {THREADS_DEFAULT}")
@deterministic_option
@store_option
@data_dir_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Run nothing. Print the configuration, the parameters and the run id of one run, or a table of several.",
)
@click.option(
    "--limit-steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Train N steps at most, to try things out; on the open track, and tables say so.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Run again although the record exists, and compare outcome and curves of the two. "
    "Given again after a stop, the command goes on with what it has not repeated yet.",
)
@click.option(
    "--tracker",
    "trackers",
    multiple=True,
    metavar="NAME",
    help="Also send the numbers to tensorboard, wandb (offline) or a plug-in; an event file is always written.",
)
@click.option("--quiet", is_flag=True, help="Show no progress, only the final table.")
@click.option(
    "--checkpoint-seconds",
    type=FiniteRange(min=0.0),
    default=60.0,
    show_default=True,
    help="Time between two checkpoints, which is the most work that a crash loses.",
)
@allow_other_environment_option
@json_option
@one_line_errors
def command(
    *,
    attn: str | None,
    model: str | None,
    task: str | None,
    profile: str | None,
    compiled: bool,
    seeds: str | None,
    track: str | None,
    overrides: tuple[str, ...],
    start_run: str | None,
    config_file: str | None,
    evaluated: str | None,
    device_name: str,
    threads: int | None,
    deterministic: bool,
    store_folder: Path,
    home: Path,
    dry_run: bool,
    limit_steps: int | None,
    force: bool,
    trackers: tuple[str, ...],
    quiet: bool,
    checkpoint_seconds: float,
    allow_other_environment: bool,
    as_json: bool,
) -> None:
    """Train, evaluate and record attention variants on tasks of the Long Range Arena.

    Give the same command again to continue a run that was interrupted. A run that has its record is not repeated.
    Under torchrun, the processes share the batches of one run.
    """
    grid = (attn, model, task, profile, seeds, track, overrides, limit_steps, start_run, compiled)
    if config_file is not None and any(grid):
        raise click.UsageError("--config is a whole run: it goes without --attn, --model, --task, --profile, --set ...")
    if evaluated is not None and any((*grid, config_file, force, dry_run, trackers)):
        raise click.UsageError(
            "--evaluate takes a run as it is; only --store, --data-dir, --device, --threads, --deterministic and "
            "--quiet go with it"
        )
    if config_file is None and evaluated is None and not (task and (attn or model or overrides or compiled)):
        raise click.UsageError(missing(attn, task))
    seed_list = parse_seeds(seeds or "0")
    import torch

    from lra.config.labels import row_name
    from lra.config.overrides import parse_overrides
    from lra.config.profiles import load_profile
    from lra.errors import DamagedFileError, DataError, UsageError
    from lra.measure.environment import decisive, describe_environment
    from lra.results.records import ConflictError, Store

    from ..arithmetic import set_arithmetic
    from ..bench.workload import minutes_on_cpu
    from ..progress import words
    from ..train.distributed import destroy, init, local_device, rank_info
    from ..train.evaluate_again import evaluate_again
    from ..train.loop import PreemptedRunError
    from ..train.plan import (
        check_models,
        check_shareable,
        describe,
        family_defaults,
        plan,
        plan_table,
        read_config,
        shortened,
    )
    from ..train.prepare_data import check_repeats, prepare_all
    from ..train.repetitions import Repetitions
    from ..train.run import LeasedRunError, OtherEnvironmentError, RunError, RunOptions, run
    from ..train.summary import summaries, summary_rows
    from ..train.trackers import check_trackers

    # Plan.
    torch.set_num_threads(threads or default_threads())
    set_arithmetic(deterministic=deterministic)
    ranks = rank_info()
    device = local_device(pick_device(device_name), ranks)
    if evaluated is not None:
        options = RunOptions(device=device, progress=not quiet)
        with signals.stop_at_once():
            echo("\n".join(evaluate_again(_named_run(evaluated, store_folder), options, home)))
        return
    store, start, repeated = Store(store_folder), None, None
    if config_file is not None:
        config, repeated = read_config(config_file)
        configs = [config]
    else:
        recipe = load_profile(profile or ("nystromformer" if device.type == "cuda" else "quick"))
        values = parse_overrides(overrides)
        if compiled and values.setdefault("train.compile", True) is not True:
            raise UsageError("--compile: --set train.compile says otherwise; leave one out")
        attn, track, filled_in = family_defaults(attn, track, values, recipe)
        if not attn and not model:
            raise click.UsageError(missing(attn, task))
        if filled_in and ranks.is_main:
            echo(filled_in, err=True)
        if profile is None and ranks.is_main:
            echo(f"Profile {recipe.name} (the default on {device.type}); --profile picks another.", err=True)
        start = _named_run(start_run, store_folder) if start_run is not None else None
        configs = plan(
            attn=attn or "",
            model=model or "",
            task=task or "",
            profile=recipe,
            seeds=seed_list,
            track=track or ("open" if model or start else "matched"),
            overrides=values,
            start=None if start is None else start.start(),
        )
        configs = [shortened(config, limit_steps, recipe) for config in configs] if limit_steps else configs
    check_models(configs, device)
    if dry_run:
        if ranks.is_main:
            echo(
                describe(configs[0], home) if len(configs) == 1 else plan_table(configs, home, minutes_on_cpu), nl=False
            )
        return
    check_shareable(configs, ranks.size)
    store.check_writable()
    check_trackers(trackers)

    # Run.
    options = RunOptions(
        device=device,
        force=force,
        allow_other_environment=allow_other_environment,
        progress=not quiet,
        checkpoint_seconds=checkpoint_seconds,
        trackers=trackers,
        start=start,
        ranks=ranks,
    )
    init(ranks, device)
    prepared = prepare_all(configs, ranks, home, progress=not quiet)
    tables: dict[tuple[str, str], list[tuple[RunConfig, RunRecord | str]]] = {}
    exit_code, stopped = 0, ""  # the code of the first run that ended without a number
    started, ran = time.monotonic(), 0
    run_ids = [config.run_id(prepared[config.task].digest) for config in configs]
    environment = decisive(describe_environment(device) | {"processes": ranks.size})
    repetitions = Repetitions(store, run_ids, environment)
    again = [force and not repetitions.ended(run_id) for run_id in run_ids]
    new = [anew or not store.record_path(run_id).exists() for run_id, anew in zip(run_ids, again, strict=True)]
    if repeated is not None:
        check_repeats(repeated, prepared[repeated.config.task])
    for task_name in {config.task for config, trains in zip(configs, new, strict=True) if not trains}:
        prepared[task_name].verified()  # a record that is there is printed for this data; a run that trains verifies it
    for number, config in enumerate(configs):
        if signals.stop_requested():
            sys.exit(signals.EXIT_PREEMPTED)
        name, seed, run_id = row_name(config), config.seed, run_ids[number]
        options = replace(options, force=again[number])
        if len(configs) > 1:
            options = replace(options, title_prefix=f"[{number + 1}/{len(configs)}] ")
            if ran and new[number] and not quiet and ranks.is_main:
                seconds = (time.monotonic() - started) / ran * sum(new[number:])
                echo(f"Run {number + 1} of {len(configs)}; about {words(seconds)} left for all.", err=True)
        try:
            record = run(config, prepared[config.task], store, options, signals.stop_requested)
            if record.status != "ok":
                exit_code = exit_code or RunError.exit_code
            if record.status != "ok" and ranks.is_main:
                echo(f"{name}, seed {seed}: {record.status}: {record.detail}", err=True)
            if force and not again[number]:
                if ranks.is_main:
                    echo(f"{name}, seed {seed}: ended before this command was stopped", err=True)
                if store.other_outcomes(run_id):  # the summary names it
                    exit_code = exit_code or ConflictError.exit_code
            outcome: RunRecord | str = record
        except (RunError, LeasedRunError, OtherEnvironmentError, DamagedFileError, ConflictError, DataError) as error:
            if ranks.size > 1 and not isinstance(error, RunError | LeasedRunError):
                raise  # the other processes have not been told, and end with this one
            exit_code = exit_code or error.exit_code
            echo(f"Error: {name}, seed {seed}: {error}", err=True)
            named = {LeasedRunError: "leased", OtherEnvironmentError: "refused", ConflictError: "conflict"}
            outcome = error.status if isinstance(error, RunError) else named.get(type(error), "damaged")
        except PreemptedRunError as error:
            stopped = str(error)
            break
        ran += new[number]
        if again[number] and ranks.is_main and (outcome == "conflict" or not isinstance(outcome, str)):
            repetitions.add(run_id)
        tables.setdefault((config.task, config.profile), []).append((config, outcome))
    destroy(ranks)  # outside of any `except`, so that no traceback holds the model
    if stopped and ranks.is_main:
        raise PreemptedRunError(stopped)
    if stopped:
        sys.exit(signals.EXIT_PREEMPTED)

    # Summarise.
    if ranks.is_main:
        if force:
            repetitions.finish()
        if as_json:
            echo_json([row for rows in tables.values() for row in summary_rows(rows, store)])
        else:
            echo(summaries(list(tables.values()), store))
    if exit_code:
        sys.exit(exit_code)


def _named_run(run: str, store_folder: Path) -> TrainedRun:
    """Find a run that the user names, and say if the store holds other outcomes of it."""
    from lra.trained import load_run

    found = load_run(run, store_folder)
    for path, words in found.store.other_outcomes(found.record.run_id).items():
        echo(f"{path}: {words}", err=True)
    return found


def missing(attn: str | None, task: str | None) -> str:
    """Return what to write where a command says too little."""
    if task:
        return (
            f"--attn is missing: lra-run --attn full,contextpool --task {task}; lra-zoo list names the variants, and "
            "--attn my_attention.py:MyAttention takes one of your own"
        )
    return (
        f"--task is missing: lra-run --attn {attn or 'contextpool'} --task listops; other tasks are text, retrieval, "
        "image, pathfinder, pathx, and all. lra-doctor tests the installation, lra-run --help lists every option"
    )


def pick_device(name: str) -> torch.device:
    """Return the device of this name. `auto` is CUDA if there is a device, else the CPU.

    Raises:
        UsageError: There is no such device.
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
    fresh_python.fix_order_of_sets()
    signals.install()
    command()


if __name__ == "__main__":
    main()
