"""Cost of a training step on ListOps at its official lengths, beside the plainest loop in torch, and of fixed padding.

    python -m benchmarks.training --attn full,contextpool,linear,local --steps 6 --repeats 5

Each repeat measures all cases one after another, in turns forwards and backwards, so that drift of the machine hits all
of them alike. Measured is the CPU time of the process, which other processes change less than the time on the clock.
Reported are medians over repeats of steps after warm-up, with the optimiser's step and the making of the batch. The
ratio is the median over repeats of the ratio to `benchmarks.plain_loop` in the same repeat.

`full` is measured twice: with the attention dropout of the profile, and without, as the plain loop is.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import nn

from benchmarks.plain_loop import PlainModel
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.data.batching import POOL_BATCHES, TrainingBatches
from lra.data.dataset import data_home
from lra.models.transformer import build_model
from lra.tasks import get_task

WARM_STEPS = 2
PLAIN = "plain loop"
UNDROPPED = "full, no attention dropout"
FEW_EXAMPLES = {"data.train": 1024, "data.validation": 16, "data.test": 16}
"""Enough for a pool of batches; the real dataset takes minutes to generate."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attn", default="full,contextpool,linear,local", help="variants, separated by commas")
    parser.add_argument("--profile", default="nystromformer")
    parser.add_argument("--padding", default="bucketed", help="bucketed, fixed or both, separated by a comma")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6, help="timed steps per repeat, at most 64")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data-dir", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    names = [PLAIN]
    for name in options.attn.split(","):
        names += [name, UNDROPPED] if name == "full" else [name]
    cases = [(name, padding) for padding in options.padding.split(",") for name in names]
    runs = {case: prepare(*case, options) for case in cases}
    seconds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    tokens: dict[tuple[str, str], int] = {}
    for repeat in range(options.repeats):
        for case in cases if repeat % 2 == 0 else cases[::-1]:
            elapsed, tokens[case] = time_steps(*runs[case], steps=options.steps)
            seconds[case].append(elapsed)
    rows = []
    for name, padding in cases:
        own, plain = seconds[name, padding], seconds[PLAIN, padding]
        ratios = [one / other for one, other in zip(own, plain, strict=True)]
        median = statistics.median(own)
        rows.append(
            (
                name,
                padding,
                f"{1000 * median / options.steps:.0f}",
                f"{1e6 * median / tokens[name, padding]:.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} .. {max(ratios):.2f}",
            )
        )
    print(
        f"ListOps, profile {options.profile}, batch {options.batch_size}, {options.threads} thread(s), torch "
        f"{torch.__version__}; CPU time, median of {options.repeats} interleaved repeats of {options.steps} steps"
    )
    headers = ("variant", "padding", "ms/step", "us/real token", "x plain loop", "range")
    print(tabulate(rows, headers=headers, disable_numparse=True))


def prepare(
    name: str, padding: str, options: argparse.Namespace
) -> tuple[nn.Module, torch.optim.Optimizer, TrainingBatches]:
    """Build a model, its optimiser and its batches."""
    task = get_task("listops")
    overrides = {"train.padding": padding, "train.batch_size": options.batch_size, **FEW_EXAMPLES}
    if name == UNDROPPED:
        overrides["model.attention_dropout"] = 0.0
    config = resolve(
        task="listops",
        variant="full" if name in (PLAIN, UNDROPPED) else name,
        profile=load_profile(options.profile),
        seed=0,
        track="open",
        overrides=overrides,
    )
    data = task.prepare(task.options.model_validate(config.data), data_home(options.data_dir))
    batches = TrainingBatches(
        data.split("train"),
        batch_size=options.batch_size,
        seed=0,
        padded_length=config.model.max_length if padding == "fixed" else None,
        limit=config.model.max_length,
    )
    sizes = task.info.vocab_size, task.info.num_classes
    model: nn.Module = PlainModel(config.model, *sizes) if name == PLAIN else build_model(config, *sizes)
    return model, torch.optim.AdamW(model.parameters(), fused=True), batches


def time_steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: TrainingBatches, *, steps: int
) -> tuple[float, int]:
    """Return the CPU seconds of `steps` training steps, the same ones at every call, and their real tokens.

    The steps are spread evenly over the lengths of one pool, so that few of them stand for an epoch.
    """
    device, tokens, start = torch.device("cpu"), 0, 0.0
    by_length = sorted(range(POOL_BATCHES), key=lambda step: int(batches.split.lengths[batches.indices(step)].sum()))
    chosen = [by_length[(2 * i + 1) * POOL_BATCHES // (2 * steps)] for i in range(steps)]
    for number, step in enumerate([*chosen[:WARM_STEPS], *chosen]):
        if number == WARM_STEPS:
            start, tokens = time.process_time(), 0
        model.train()
        batch = batches.batch(step, device)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(batch.tokens, batch.mask), batch.labels).backward()
        optimizer.step()
        tokens += batch.num_tokens
    return time.process_time() - start, tokens


if __name__ == "__main__":
    main()
