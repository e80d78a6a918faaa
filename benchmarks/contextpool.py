"""Time and memory of the pooling operator, forward and backward, next to the attention that it feeds.

    python -m benchmarks.contextpool                       # all tables
    python -m benchmarks.contextpool --lengths 1024,4096 --threads 1 --kinds paper
    python -m benchmarks.contextpool --device cuda         # batch 32, bfloat16, 1,024 ... 16,384 tokens

Batch 1, dim 256, float32, against `scaled_dot_product_attention` with 4 heads of 32. The two run in turns in one
process, and the figures are medians of CPU time at one thread and of wall-clock time at more. Widths: `paper` is sigma
uniform in 0.005 ... 0.095 of the length, `mixed` is log-uniform from half a token to a tenth of the length, `tiny` is
0.5 ... 4 tokens. Memory is the growth of the resident set's high-water mark in a fresh process, after the inputs are
made and the libraries warmed up; the gradients of the inputs are part of it.

With `--device cuda` batch and dtype are 32 and bfloat16, times are wall-clock times of the finished work, memory is the
peak that PyTorch allocated beyond what was there before, and every backend of `--backend`, a list, has its rows.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from contextpool.functional import context_pool, resolve_backend

DIM = 256
BATCH = 32
"""Sequences at a time on a GPU."""
GPU_LENGTHS = "1024,2048,4096,8192,16384"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--lengths", help="[default: 1024,4096,16384,65536 on the CPU, up to 16384 on a GPU]")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--kinds", default="paper,mixed,tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backend", default="auto", help="on a GPU also several, such as auto,triton")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--attention-up-to", type=int, default=16384, help="longest sequence for which attention runs")
    parser.add_argument("--memory-of", help="internal: `subject,length`; print the memory of one run, in MiB")
    options = parser.parse_args()
    if options.device == "cuda":
        print_gpu_tables(options)
        return
    options.lengths = options.lengths or "1024,4096,16384,65536"
    if options.memory_of:
        subject, length = options.memory_of.split(",")
        print(measure_memory(subject, int(length), options.backend, causal=options.causal))
        return
    lengths = [int(length) for length in options.lengths.split(",")]
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        clock = "CPU" if threads == 1 else "wall-clock"
        form = ", causal" if options.causal else ""
        print(f"\n{threads} thread(s), {clock} time, torch {torch.__version__}{form}\n")
        print("| length | backend | attention ms | widths | pooling ms | ratio | us per token |")
        print("| ---: | --- | ---: | --- | ---: | ---: | ---: |")
        per_token: dict[str, list[float]] = {kind: [] for kind in options.kinds.split(",")}
        for length in lengths:
            medians = print_times(length, options, time.process_time if threads == 1 else time.perf_counter)
            for kind, values in per_token.items():
                values.append(medians[kind] / length)
        print(f"\nTime per token, {lengths[0]} to {lengths[-1]} tokens, largest over smallest (goal: 2):", end=" ")
        print(", ".join(f"{kind} {max(values) / min(values):.2f}" for kind, values in per_token.items()))
    print("\n| length | pooling MiB | attention MiB |\n| ---: | ---: | ---: |")
    for length in lengths:
        pooling, attention = (memory_in_fresh_process(subject, length, options) for subject in ("paper", "attention"))
        print(f"| {length} | {pooling} | {attention} |")


def print_gpu_tables(options: argparse.Namespace) -> None:
    """Print time and memory on a GPU for each backend and for attention, measured in turns."""
    if not torch.cuda.is_available():
        sys.exit("--device cuda: no CUDA device on this machine")
    device = torch.device("cuda")
    form = ", causal" if options.causal else ""
    print(f"\n{torch.cuda.get_device_name(device)}, torch {torch.__version__}, batch {BATCH}, bfloat16{form}\n")
    print("| length | backend | attention ms | MiB | widths | pooling ms | ratio | MiB |")
    print("| ---: | --- | ---: | ---: | --- | ---: | ---: | ---: |")
    for length in map(int, (options.lengths or GPU_LENGTHS).split(",")):
        for backend in options.backend.split(","):
            print_gpu_rows(length, backend, options, device)


def print_gpu_rows(length: int, backend: str, options: argparse.Namespace, device: torch.device) -> None:
    """Measure one length and backend and print a row for each kind of widths."""
    kinds = tuple(options.kinds.split(","))
    rows = measure_pooling(length, backend, causal=options.causal, repeats=options.repeats, kinds=kinds)
    chosen = resolve_backend(length, device, causal=options.causal, backend=backend)
    for kind, row in rows.items():
        attention = f"{row['attention_ms']:.2f} | {row['attention_MiB']:.0f}"
        print(f"| {length} | {chosen} | {attention} | {kind} |", end=" ")
        print(f"{row['ms']:.2f} | {row['ratio']:.3f} | {row['MiB']:.0f} |", flush=True)


def measure_pooling(
    length: int,
    backend: str,
    *,
    causal: bool = False,
    batch: int = BATCH,
    repeats: int = 5,
    kinds: tuple[str, ...] = ("paper", "mixed", "tiny"),
) -> dict[str, dict[str, float]]:
    """Measure time and memory of the operator and of attention on a GPU, in turns.

    Returns:
        For each kind of widths: `ms`, `MiB`, `attention_ms`, `attention_MiB`, and `ratio`, that of the two times.
    """
    device = torch.device("cuda")

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    tokens = TokenBatch(device.type, torch.bfloat16, size=batch)
    subjects = {kind: pooling(kind, length, backend, causal=causal, batch=tokens) for kind in kinds}
    subjects["attention"] = attention(length, causal=causal, batch=tokens)
    medians = interleaved_medians(subjects, repeats, clock)
    memory = {}
    for name, step in subjects.items():
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        memory[name] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    return {
        kind: {
            "ms": medians[kind],
            "MiB": memory[kind],
            "attention_ms": medians["attention"],
            "attention_MiB": memory["attention"],
            "ratio": medians[kind] / medians["attention"],
        }
        for kind in kinds
    }


def interleaved_medians(
    subjects: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Run all subjects in turns, once to warm up, and return their median times in milliseconds."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for repeat in range(repeats + 1):
        for name, step in subjects.items():
            start = clock()
            step()
            if repeat:
                times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def print_times(length: int, options: argparse.Namespace, clock: Callable[[], float]) -> dict[str, float]:
    """Measure one length, print a row for each kind of widths, and return the times in milliseconds."""
    kinds = options.kinds.split(",")
    subjects = {kind: pooling(kind, length, options.backend, causal=options.causal) for kind in kinds}
    if length <= options.attention_up_to:
        subjects["attention"] = attention(length, causal=options.causal)
    medians = interleaved_medians(subjects, options.repeats, clock)
    backend = resolve_backend(length, torch.device("cpu"), causal=options.causal, backend=options.backend)
    reference = medians.get("attention", math.nan)
    for kind in kinds:
        time_ms = medians[kind]
        shown = ("-", "-") if math.isnan(reference) else (f"{reference:.1f}", f"{time_ms / reference:.3f}")
        row = f"| {length} | {backend} | {shown[0]} | {kind} | {time_ms:.1f} | {shown[1]} |"
        print(f"{row} {1e3 * time_ms / length:.2f} |", flush=True)
    return medians


@dataclass(frozen=True)
class TokenBatch:
    """Device, dtype and number of the sequences that are measured."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    size: int = 1


def pooling(
    kind: str, length: int, backend: str, *, causal: bool, batch: TokenBatch = TokenBatch()
) -> Callable[[], None]:
    """Make a function that runs the operator forward and backward once, with widths of a kind."""
    uniform = torch.rand(batch.size, length)
    if kind == "paper":
        sigma = 0.1 * length * (0.05 + 0.9 * uniform)
    elif kind == "mixed":
        sigma = 0.5 * torch.exp(uniform * math.log(0.2 * length))
    else:
        sigma = 0.5 + 3.5 * uniform
    tokens = torch.randn(batch.size, length, DIM).to(batch.dtype)
    leaves = [value.to(batch.device) for value in (tokens, torch.randn(batch.size, length), sigma)]
    return _step(lambda x, weight, width: context_pool(x, weight, width, causal=causal, backend=backend), leaves)


def attention(length: int, *, causal: bool, batch: TokenBatch = TokenBatch()) -> Callable[[], None]:
    """Make a function that runs attention forward and backward once, without its projections."""
    leaves = [torch.randn(batch.size, 4, length, 32).to(batch.device, batch.dtype) for _ in range(3)]
    return _step(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal), leaves)


def _step(function: Callable[..., Tensor], leaves: list[Tensor]) -> Callable[[], None]:
    for leaf in leaves:
        leaf.requires_grad_()
    upstream = torch.randn_like(leaves[0])

    def forget_gradients() -> None:
        for leaf in leaves:
            leaf.grad = None

    def step() -> None:
        forget_gradients()
        function(*leaves).backward(upstream)
        if upstream.is_cuda:  # where memory is measured from here on; on a CPU the next step would pay in page faults
            forget_gradients()

    return step


def memory_in_fresh_process(subject: str, length: int, options: argparse.Namespace) -> str:
    """Measure one subject in a process of its own, where nothing else has raised the high-water mark."""
    if subject == "attention" and length > options.attention_up_to:
        return "-"
    command = [sys.executable, "-m", "benchmarks.contextpool", "--memory-of", f"{subject},{length}"]
    command += ["--backend", options.backend, *(["--causal"] if options.causal else [])]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def measure_memory(subject: str, length: int, backend: str, *, causal: bool) -> str:
    """Return by how many MiB a forward and backward raises the process's high-water mark."""
    torch.set_num_threads(1)

    def make(length: int) -> Callable[[], None]:
        if subject == "attention":
            return attention(length, causal=causal)
        return pooling(subject, length, backend, causal=causal)

    for warm_up in (64, 640):
        make(warm_up)()
    step = make(length)
    before = high_water_mark()
    step()
    return f"{high_water_mark() - before:.0f}"


def high_water_mark() -> float:
    """Return the most memory that this process has had resident, in MiB.

    From Linux's process table: unlike `resource.ru_maxrss`, it does not begin at the mark of the parent process.
    """
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


if __name__ == "__main__":
    main()
