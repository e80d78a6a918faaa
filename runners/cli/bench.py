# SPDX-License-Identifier: Apache-2.0
"""`lra-bench`: speed, memory and FLOPs of a training step by length, relative to full attention."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from lra.cli import CONTEXT, Command, echo_json, one_line_errors, version_option
from lra.errors import UsageError
from lra.names import parse_natural
from lra.terminal import echo

from .options import AT_A_TIME, FiniteRange, store_option, write_file

ARENA_ROWS = "full,local,linformer,reformer,sinkhorn,synthesizer,bigbird,linear,performer,contextpool"
"""The rows of table 2 of Long Range Arena (Tay et al. 2021, arXiv:2011.04006), and ContextPool."""
QUICK_ROWS = "full,local,linear,contextpool"
EXAMPLES = """
\b
Examples:
  lra-bench --preset lra --quick
  lra-bench --attn local,contextpool --lengths 1024,4096 --batch 8
  lra-bench --attn all --tokens 16384 --lengths 1024,2048,4096,8192,16384
  lra-bench --attn contextpool --set variant.placement=stream --profile official
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """Values of the options that were not given."""

    attn: str
    profile: str
    lengths: str
    batch: int
    steps: int
    seconds: float


def defaults(*, preset: str | None, quick: bool, cuda: bool) -> Defaults:
    """Choose defaults that suit the preset and the device."""
    if quick:
        return Defaults(attn=QUICK_ROWS, profile="quick", lengths="512,1024,2048", batch=2, steps=12, seconds=1.0)
    profile = "official" if preset == "lra" else "nystromformer" if cuda else "quick"
    return Defaults(attn=ARENA_ROWS, profile=profile, lengths="1024,2048,3072,4096", batch=32, steps=20, seconds=10.0)


@click.command(cls=Command, epilog=EXAMPLES, context_settings=CONTEXT)
@version_option
@click.option(
    "--attn",
    metavar="NAME[,NAME...]",
    help="Attention variants, or `all`; `full` is always added.  [default: contextpool and the paper's table 2]",
)
@click.option("--task", metavar="NAME", default="text", show_default=True, help="Task that the model is built for.")
@click.option(
    "--profile",
    metavar="NAME",
    help="Profile that sets the sizes of the model.  [default: nystromformer on CUDA, else quick]",
)
@click.option("--lengths", metavar="LIST", help="Lengths of the sequences, in tokens.  [default: 1024,2048,3072,4096]")
@click.option("--batch", type=click.IntRange(min=1), help="Sequences in a step.  [default: 32]")
@click.option("--tokens", type=click.IntRange(min=1), help="Tokens in a step at every length, instead of --batch.")
@click.option(
    "--preset",
    type=click.Choice(["lra"]),
    help="lra: measure the official profile and print it like table 2 of the paper of Long Range Arena.",
)
@click.option("--quick", is_flag=True, help="Measure four variants on a small model, in two minutes.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting: variant.x, variants.NAME.x, model.x, train.x or data.x; may be repeated.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Timed steps of each variant at each length.  [default: 20]")
@click.option(
    "--seconds",
    type=FiniteRange(min=0.0),
    help="End the timing of a length after this time per variant.  [default: 10]",
)
@click.option("--device", metavar="NAME", default="auto", show_default=True, help="Device: auto, cpu, cuda or cuda:N.")
@click.option("--threads", type=AT_A_TIME, help="CPU threads.  [default: torch's choice]")
@click.option(
    "--memory-limit",
    type=FiniteRange(min=0.0, min_open=True),
    metavar="GIB",
    help="Memory that a step may allocate on CPU.  [default: what is available]",
)
@store_option
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    is_flag=False,
    flag_value="-",
    metavar="[FILE]",
    help="Print the measurements as JSON instead of tables, or write them to FILE beside the tables.",
)
@click.option("--quiet", is_flag=True, help="Print only the tables, no progress.")
@one_line_errors
def command(
    *,
    attn: str | None,
    task: str,
    profile: str | None,
    lengths: str | None,
    batch: int | None,
    tokens: int | None,
    preset: str | None,
    quick: bool,
    overrides: tuple[str, ...],
    steps: int | None,
    seconds: float | None,
    device: str,
    threads: int | None,
    memory_limit: float | None,
    store_folder: Path,
    json_file: Path | None,
    quiet: bool,
) -> None:
    """Measure the time and memory of one training step of attention variants, by sequence length.

    A step is forward, backward and optimiser on random tokens; no data is needed. A variant that runs out of memory is
    listed as such.
    """
    if batch is not None and tokens is not None:
        raise click.UsageError("--batch and --tokens exclude each other")
    import torch

    from attention_zoo import available
    from attention_zoo.registry import normalise
    from lra.config.overrides import parse_overrides
    from lra.config.profiles import load_profile
    from lra.config.resolve import check_variant_names
    from lra.results.bench_format import REFERENCE
    from lra.results.bench_records import save_bench_record
    from lra.results.records import Store
    from lra.tasks import task_name

    from ..bench.measure import BenchPlan, measure_length
    from ..bench.tables import arena_report, full_report
    from ..bench.timing import TimingPlan
    from .run import pick_device

    torch_device = pick_device(device)
    chosen = defaults(preset=preset, quick=quick, cuda=torch_device.type == "cuda")
    attn_or_default = chosen.attn if attn is None else attn
    names = available() if attn == "all" else [normalise(name) for name in attn_or_default.split(",")]
    plan = BenchPlan(
        variants=list(dict.fromkeys([REFERENCE, *names])),
        lengths=parse_lengths(chosen.lengths if lengths is None else lengths),
        task=task_name(task),
        profile=load_profile(profile or chosen.profile),
        device=torch_device,
        threads=threads or torch.get_num_threads(),
        batch=batch or chosen.batch,
        tokens=tokens,
        overrides=parse_overrides(overrides),
        timing=TimingPlan(steps=steps or chosen.steps, seconds=chosen.seconds if seconds is None else seconds),
        memory_limit=None if memory_limit is None else int(memory_limit * 2**30),
    )
    check_variant_names(plan.overrides, plan.variants)
    configs = plan.configs()
    Store(store_folder).check_writable()
    to_stdout = json_file == Path("-")
    if json_file is not None and not to_stdout:
        write_file(json_file, "[]")  # fails now, not after the measurements, if the file cannot be written

    def say(text: str) -> None:
        if not quiet:
            echo(text, err=True)

    records = []
    for length in plan.lengths:
        for record in measure_length(plan, configs[length], say):
            save_bench_record(store_folder, record)
            records.append(record)
    if quick and not to_stdout:
        echo("Quick: a small model, a small batch and few variants, not the sizes of the paper.\n")
    order = {config.variant.name: position for position, config in enumerate(configs[plan.lengths[0]])}
    records.sort(key=lambda record: (order[record.config.variant.name], record.length))
    if to_stdout:
        echo_json([record.model_dump() for record in records])
    else:
        echo(arena_report(records) if preset == "lra" else full_report(records))
    if json_file is not None and not to_stdout:
        write_file(json_file, json.dumps([record.model_dump() for record in records], indent=1, allow_nan=False))
    if any(record.status == "failed" for record in records):
        sys.exit(4)


def parse_lengths(text: str) -> list[int]:
    """Parse a list of lengths such as `1024,2048`; return it in increasing order.

    Raises:
        UsageError: An item is not a positive number.
    """
    pieces = [piece.strip() for piece in text.split(",")]
    lengths = [parse_natural(piece) for piece in pieces]
    wrong = [piece for piece, length in zip(pieces, lengths, strict=True) if not length]
    if wrong:
        raise UsageError(f"--lengths {text[:80]}: {wrong[0][:80]!r} is not a length; write 1024,2048,4096")
    return sorted({length for length in lengths if length})


def main() -> None:
    """Run the command line."""
    command()


if __name__ == "__main__":
    main()
