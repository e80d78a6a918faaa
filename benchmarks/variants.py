"""Time and memory of a training step of every variant, relative to full attention, by length.

    python -m benchmarks.variants
    python -m benchmarks.variants --variants local,linear --lengths 512,1024,2048,4096 --repeats 5 --threads 2

One layer of 4 heads of 32 with default options and without dropout, forward and backward, float32, batch times length
constant. The variants take turns with `full` in one process: a ratio is the median, over the rounds, of a variant's
time over that of `full` in the same round. Lengths above 4096 are for variants that claim less than n² (and `full`).
Memory is the peak of what torch's allocator handed out during a step, from the profiler's memory events on CPU and from
the allocator on CUDA; inputs and parameters, which were there before, do not count. The crossover is the length from
which on a variant is faster than `full`, interpolated between the measured ones.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping, Sequence

import torch
from tabulate import tabulate
from torch import Tensor

from attention_zoo import LayerDims, SequenceMixer, VariantSpec, available, get_variant
from runners.bench.crossover import crossover
from runners.bench.memory import allocator_peak, cuda_peak

HEADS, HEAD_DIM = 4, 32
QUADRATIC_LIMIT = 4096
"""Longest length of variants that claim n² somewhere."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default="all", help="names, or all")
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192,16384")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tokens", type=int, default=16384, help="batch times length; at least one sequence")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = available() if arguments.variants == "all" else arguments.variants.split(",")
    specs = [get_variant(name) for name in names if name != "full"]
    lengths = sorted(int(text) for text in arguments.lengths.split(","))
    device = torch.device(arguments.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {arguments.threads} threads"
    print(
        f"{where}; torch {torch.__version__}; {arguments.tokens} tokens a step; {arguments.repeats} rounds", flush=True
    )
    times: dict[str, dict[int, float]] = {spec.name: {} for spec in specs}
    memory: dict[str, dict[int, float]] = {spec.name: {} for spec in specs}
    for length in lengths:
        compared = [spec for spec in specs if length <= QUADRATIC_LIMIT or "n²" not in spec.traits.complexity]
        batch = max(1, arguments.tokens // length)
        seconds, peaks = measure([get_variant("full"), *compared], length, batch, arguments.repeats, device)
        full_seconds, full_peak = seconds["full"], peaks["full"]
        median = statistics.median(full_seconds)
        print(f"length {length}: full {median * 1e3:.0f} ms, {full_peak / 2**20:.0f} MiB", flush=True)
        for spec in compared:
            ratios = [own / full for own, full in zip(seconds[spec.name], full_seconds, strict=True)]
            times[spec.name][length] = statistics.median(ratios)
            memory[spec.name][length] = peaks[spec.name] / full_peak
    print("\nTime relative to full (crossover: faster than full from this length on)\n")
    print(table(times, lengths, with_crossover=True))
    print("\nMemory relative to full\n")
    print(table(memory, lengths, with_crossover=False))


def measure(
    specs: Sequence[VariantSpec], length: int, batch: int, repeats: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Return the seconds of each round and the peak bytes of a step, by variant; the variants take turns."""
    dims = LayerDims(dim=HEADS * HEAD_DIM, num_heads=HEADS, max_length=length)
    torch.manual_seed(0)
    mixers = {spec.name: spec.build(spec.config(), dims).to(device) for spec in specs}
    x = torch.randn(batch, length, dims.dim, device=device, requires_grad=True)
    peaks = {name: peak_bytes(mixer, x) for name, mixer in mixers.items()}  # warms up, too
    seconds: dict[str, list[float]] = {name: [] for name in mixers}
    for _ in range(repeats):
        for name, mixer in mixers.items():
            seconds[name].append(timed_step(mixer, x))
    return seconds, peaks


def step(mixer: SequenceMixer, x: Tensor) -> None:
    """Run forward and backward, and keep no gradient."""
    loss = mixer(x).square().mean()
    torch.autograd.grad(loss, (x, *mixer.parameters()), allow_unused=True)


def timed_step(mixer: SequenceMixer, x: Tensor) -> float:
    """Return the seconds of one step."""
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    step(mixer, x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(mixer: SequenceMixer, x: Tensor) -> int:
    """Return the peak of the memory that a step allocates, over what was there before it."""
    if x.is_cuda:
        return cuda_peak(lambda: step(mixer, x), x.device)[0]
    return allocator_peak(lambda: step(mixer, x))


def table(ratios: Mapping[str, Mapping[int, float]], lengths: Sequence[int], *, with_crossover: bool) -> str:
    """Lay out ratios, variants by lengths, the smallest at the longest common length first."""
    last = max(length for length in lengths if all(length in row for row in ratios.values()))
    rows = []
    for name, row in sorted(ratios.items(), key=lambda item: item[1][last]):
        cells = [f"{row[length]:.2f}" if length in row else "" for length in lengths]
        rows.append([name, *cells, *([str(crossover(row, dict.fromkeys(row, 1.0)))] if with_crossover else [])])
    headers = ["variant", *map(str, lengths), *(["crossover"] if with_crossover else [])]
    return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    main()
