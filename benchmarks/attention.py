"""Full attention with dropout on CPU: fused without dropout, block by block, and torch's fused call with dropout.

    python benchmarks/attention.py [--length 2048] [--repeats 7]

Prints the time of a training step (forward, backward) of the two attention layers of a ListOps model (width 64, two
heads, batch 4): medians of interleaved repeats, per token and relative to fused attention without dropout. Then the
peak of resident memory over what the process held before, of each in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.kernels.softmax import attend

BATCH, HEADS, HEAD_DIM, LAYERS, DROPOUT = 4, 2, 32, 2, 0.1

FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "fused, no dropout": lambda q, k, v, mask: attend(q, k, v, mask, backend="fused"),
    "blockwise, no dropout": lambda q, k, v, mask: attend(q, k, v, mask, backend="blockwise"),
    "blockwise, dropout": lambda q, k, v, mask: attend(
        q, k, v, mask, dropout=DROPOUT, training=True, backend="blockwise"
    ),
    "torch, dropout": lambda q, k, v, mask: F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask[:, None, None, :], dropout_p=DROPOUT
    ),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    times = measure_times(arguments.length, arguments.repeats)
    peaks = {name: measure_peak(name, arguments.length) for name in FORMS}
    tokens = BATCH * arguments.length
    baseline = times["fused, no dropout"]
    print(f"length {arguments.length}, batch {BATCH}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'form':<24}{'us per token':>14}{'relative':>10}{'peak MiB':>10}")
    for name, seconds in times.items():
        print(f"{name:<24}{seconds / tokens * 1e6:>14.1f}{seconds / baseline:>10.2f}{peaks[name] / 2**20:>10.0f}")


def measure_times(length: int, repeats: int) -> dict[str, float]:
    """Return median seconds of a step by form; the forms take turns, so that a slow moment hits all of them."""
    inputs = make_inputs(length)
    seconds: dict[str, list[float]] = {name: [] for name in FORMS}
    for repeat in range(repeats + 1):
        for name in FORMS:
            start = time.perf_counter()
            step(name, *inputs)
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def measure_peak(name: str, length: int) -> int:
    """Return the bytes by which a step raises resident memory at its peak, measured in a fresh process (Linux)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_a_step, (name, length))


def _peak_of_a_step(name: str, length: int) -> int:
    step(name, *make_inputs(64))
    inputs = make_inputs(length)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from what is resident now
    before = _peak_bytes()
    step(name, *inputs)
    return _peak_bytes() - before


def _peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def make_inputs(length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw q, k, v (batch, num_heads, length, head_dim) and a mask with some padding."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(BATCH, HEADS, length, HEAD_DIM, generator=generator, requires_grad=True) for _ in range(3))
    mask = torch.arange(length) < torch.tensor([length, length, length * 3 // 4, length // 2])[:, None]
    return q, k, v, mask


def step(name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> None:
    """Run forward and backward of one model's attention layers."""
    heads = q
    for _ in range(LAYERS):
        heads = FORMS[name](heads, k, v, mask)
    torch.autograd.grad(heads.sum(), (q, k, v))


if __name__ == "__main__":
    main()
