"""Time and memory of the pooling operator, forward and backward, beside the attention that it feeds.

    python -m benchmarks.contextpool                       # all tables
    python -m benchmarks.contextpool --lengths 1024,4096 --threads 1 --kinds paper

Batch 1, dim 256, float32, against `scaled_dot_product_attention` with 4 heads of 32. The two run in turns in one
process, and the figures are medians of CPU time at one thread and of wall-clock time at more. Widths: `paper` is sigma
uniform in 0.005 ... 0.095 of the length, `mixed` is log-uniform from half a token to a tenth of the length, `tiny` is
0.5 ... 4 tokens. Memory is the growth of the resident set's high-water mark in a fresh process, after the inputs are
made and the libraries warmed up; the gradients of the inputs are part of it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from contextpool.pool import context_pool, resolve_backend

DIM = 256


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="1024,4096,16384,65536")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--kinds", default="paper,mixed,tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--attention-up-to", type=int, default=16384, help="longest sequence for which attention runs")
    parser.add_argument("--memory-of", help="internal: `subject,length`; print the memory of one run, in MiB")
    options = parser.parse_args()
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
        for length in lengths:
            print_times(length, options, time.process_time if threads == 1 else time.perf_counter)
    print("\n| length | pooling MiB | attention MiB |\n| ---: | ---: | ---: |")
    for length in lengths:
        pooling, attention = (memory_in_fresh_process(subject, length, options) for subject in ("paper", "attention"))
        print(f"| {length} | {pooling} | {attention} |")


def print_times(length: int, options: argparse.Namespace, clock: Callable[[], float]) -> None:
    """Measure one length and print a row for each kind of widths."""
    kinds = options.kinds.split(",")
    subjects = {kind: pooling(kind, length, options.backend, causal=options.causal) for kind in kinds}
    if length <= options.attention_up_to:
        subjects["attention"] = attention(length, causal=options.causal)
    times: dict[str, list[float]] = {name: [] for name in subjects}
    for repeat in range(options.repeats + 1):
        for name, step in subjects.items():
            start = clock()
            step()
            if repeat:
                times[name].append(1e3 * (clock() - start))
    medians = {name: statistics.median(values) for name, values in times.items()}
    backend = resolve_backend(length, torch.device("cpu"), causal=options.causal, backend=options.backend)
    reference = medians.get("attention", math.nan)
    for kind in kinds:
        time_ms = medians[kind]
        row = f"| {length} | {backend} | {reference:.1f} | {kind} | {time_ms:.1f} | {time_ms / reference:.3f} |"
        print(f"{row} {1e3 * time_ms / length:.2f} |", flush=True)


def pooling(kind: str, length: int, backend: str, *, causal: bool) -> Callable[[], None]:
    """Return one forward and backward of the operator."""
    uniform = torch.rand(1, length)
    if kind == "paper":
        sigma = 0.1 * length * (0.05 + 0.9 * uniform)
    elif kind == "mixed":
        sigma = 0.5 * torch.exp(uniform * math.log(0.2 * length))
    else:
        sigma = 0.5 + 3.5 * uniform
    leaves = [torch.randn(1, length, DIM), torch.randn(1, length), sigma]
    return _step(lambda x, weight, width: context_pool(x, weight, width, causal=causal, backend=backend), leaves)


def attention(length: int, *, causal: bool) -> Callable[[], None]:
    """Return one forward and backward of the attention that is fed, without its projections."""
    leaves = [torch.randn(1, 4, length, 32) for _ in range(3)]
    return _step(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal), leaves)


def _step(function: Callable[..., Tensor], leaves: list[Tensor]) -> Callable[[], None]:
    for leaf in leaves:
        leaf.requires_grad_()
    upstream = torch.randn_like(leaves[0])

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        function(*leaves).backward(upstream)

    return step


def memory_in_fresh_process(subject: str, length: int, options: argparse.Namespace) -> str:
    """Measure one subject where nothing else has raised the high-water mark."""
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
