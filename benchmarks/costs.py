# SPDX-License-Identifier: Apache-2.0
"""What a run of each task costs under each profile: the table of docs/first-steps.md.

    python -m benchmarks.costs --attn full --profile official --profile nystromformer

Operations and kept memory are counted on one example of the longest length, on this machine's CPU in float32, and
multiplied; sequences of the data are shorter, so a run costs less. No training takes place.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from lra.config.profiles import load_profile
from lra.config.schema import RunConfig
from lra.measure.flops import count_flops
from lra.models.transformer import build_model, count_parameters
from lra.tasks import BENCHMARK, get_task
from runners.train.plan import plan

ADAM_COPIES = 4
"""Of each parameter in float32: itself, its gradient, and the two moments of the optimiser."""
COLUMNS = ("task", "steps", "batch", "length", "million tokens", "parameters", "PFLOPs", "GiB")


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attn", default="full", help="one variant")
    parser.add_argument("--profile", action="append", required=True, help="may be given several times")
    arguments = parser.parse_args()
    for name in arguments.profile:
        configs = plan(
            attn=arguments.attn, task="all", profile=load_profile(name), seeds=[0], track="matched", overrides={}
        )
        print(f"\nProfile `{name}`, {arguments.attn}:\n")
        rows = [row(config) for config in configs if config.task in BENCHMARK]
        print(tabulate(rows, headers=COLUMNS, tablefmt="github", disable_numparse=True), flush=True)


def row(config: RunConfig) -> tuple[str, ...]:
    """Return the row of a run."""
    train, info = config.train, get_task(config.task).info
    documents = 2 if info.paired else 1
    shape = (1, 2, config.model.max_length) if info.paired else (1, config.model.max_length)
    model = build_model(config, info.vocab_size, info.num_classes)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def step() -> None:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = F.cross_entropy(model(torch.ones(shape, dtype=torch.int16)), torch.zeros(1, dtype=torch.int64))
        loss.backward()

    flops = count_flops(step).total
    parameters = count_parameters(model)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    activations = sum(size for place, size in kept.items() if place not in weights)
    examples = train.steps * train.batch_size
    memory = activations * train.batch_size / train.accumulation + ADAM_COPIES * 4 * parameters
    return (
        info.title,
        f"{train.steps:,}",
        str(train.batch_size),
        f"{config.model.max_length:,}",
        f"{examples * documents * config.model.max_length / 1e6:,.0f}",
        f"{parameters:,}",
        f"{flops * examples / 1e15:,.1f}",
        f"{memory / 2**30:,.1f}",
    )


if __name__ == "__main__":
    main()
