"""Training throughput on real ListOps lengths, and what bucketed batches gain over fixed padding.

    python -m benchmarks.training --attn full,contextpool --steps 12 --repeats 3

Each repeat times the configurations one after another, so that drift of the machine hits all of them alike. Reported
are medians over repeats of steps after warm-up, with the optimiser's step and the making of the batch.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.data.batching import POOL_BATCHES, TrainingBatches
from lra.data.dataset import data_home
from lra.models.transformer import build_model
from lra.tasks import get_task

WARM_STEPS = 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attn", default="full,contextpool", help="variants, separated by commas")
    parser.add_argument("--profile", default="nystromformer")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8, help="timed steps per repeat, at most 64")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    profile, task = load_profile(options.profile), get_task("listops")
    cases = [(variant, padding) for variant in options.attn.split(",") for padding in ("bucketed", "fixed")]
    runs = {}
    for variant, padding in cases:
        overrides = {"train.padding": padding, "train.batch_size": options.batch_size}
        config = resolve(task="listops", variant=variant, profile=profile, seed=0, track="open", overrides=overrides)
        data = task.prepare(task.options.model_validate(config.data), data_home(options.data_dir))
        padded = config.model.max_length if padding == "fixed" else None
        batches = TrainingBatches(
            data.split("train"),
            batch_size=options.batch_size,
            seed=0,
            padded_length=padded,
            limit=config.model.max_length,
        )
        model = build_model(config, task.info.vocab_size, task.info.num_classes)
        runs[variant, padding] = (model, torch.optim.AdamW(model.parameters(), fused=True), batches)

    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    tokens: dict[tuple[str, str], int] = {}
    for repeat in range(options.repeats):
        order = cases if repeat % 2 == 0 else cases[::-1]
        for case in order:
            elapsed, tokens[case] = time_steps(*runs[case], steps=options.steps)
            seconds[case].append(elapsed)
    rows = []
    for variant in options.attn.split(","):
        rates = {}
        for padding in ("bucketed", "fixed"):
            median = statistics.median(seconds[variant, padding])
            rates[padding] = options.steps * options.batch_size / median
            spread = (max(seconds[variant, padding]) - min(seconds[variant, padding])) / median
            rows.append(
                (
                    variant,
                    padding,
                    f"{1000 * median / options.steps:.0f}",
                    f"{rates[padding]:.1f}",
                    f"{tokens[variant, padding] / median:,.0f}",
                    f"{100 * spread:.0f} %",
                )
            )
        rows.append((variant, "bucketed / fixed", "", f"{rates['bucketed'] / rates['fixed']:.2f} x", "", ""))
    print(
        f"ListOps, profile {options.profile}, batch {options.batch_size}, {options.threads} thread(s), torch", end=" "
    )
    print(f"{torch.__version__}; median of {options.repeats} interleaved repeats of {options.steps} steps")
    print(tabulate(rows, headers=("variant", "padding", "ms/step", "examples/s", "real tokens/s", "range/median")))


def time_steps(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, batches: TrainingBatches, *, steps: int
) -> tuple[float, int]:
    """Return the seconds of `steps` training steps, the same ones at every call, and their real tokens.

    The steps are spread evenly over the lengths of one pool, so that few of them stand for an epoch.
    """
    device, tokens, start = torch.device("cpu"), 0, 0.0
    by_length = sorted(range(POOL_BATCHES), key=lambda step: int(batches.split.lengths[batches.indices(step)].sum()))
    chosen = [by_length[(2 * i + 1) * POOL_BATCHES // (2 * steps)] for i in range(steps)]
    for number, step in enumerate([*chosen[:WARM_STEPS], *chosen]):
        if number == WARM_STEPS:
            start, tokens = time.perf_counter(), 0
        batch = batches.batch(step, device)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(batch.tokens, batch.mask), batch.labels).backward()
        optimizer.step()
        tokens += batch.num_tokens
    return time.perf_counter() - start, tokens


if __name__ == "__main__":
    main()
