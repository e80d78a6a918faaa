"""All that is measured on a GPU, in one command that takes less than nine minutes.

    python -m benchmarks.gpu
    python -m benchmarks.gpu --minutes 4 --attn full,contextpool --output gpu.json

The parts, in this order: the tests that need a GPU; for each variant a training step in float32 (Text, profile
nystromformer, 4,096 random tokens, batch 32), which is compared with the sum of its kernels and with the plainest loop
in torch; ContextPool's operator at 1,024 to 16,384 tokens with each of its backends; and the steps again in bfloat16.
Memory is the peak that torch allocated beyond what was there before.

The file has a record of the device, its driver, torch and cuDNN, and is written after every part. If the command is cut
off, the same command goes on. A part begins only if the time that is left will do, and the parts left out are named.
The tables at the end are those of docs/measuring.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch.autograd import DeviceType
from torch.profiler import profile

from attention_zoo import available
from benchmarks.contextpool import measure_pooling
from benchmarks.plain_loop import PlainModel
from lra.atomic_io import atomic_write
from lra.config.profiles import load_profile
from lra.config.schema import RunConfig
from lra.errors import LraError
from lra.measure.environment import describe_environment
from lra.tasks import get_task
from runners.arithmetic import set_arithmetic
from runners.bench.memory import cuda_peak
from runners.bench.workload import Workload, workload_config

ROOT = Path(__file__).resolve().parents[1]
TESTS = [
    "-n4",
    "tests/contextpool/backends/test_all_backends.py",
    "tests/contextpool/backends/test_triton_kernels.py",
    "tests/contextpool/test_on_gpu.py",
    "tests/runners/train/test_on_gpu.py",
]
"""The files that have tests with the mark `gpu`: to collect all others takes a minute."""
LONGEST_TESTS = 200.0
"""Seconds that the tests may take; at the end of them they are stopped, and what was seen counts."""
WARM_STEPS, STEPS, PROFILED_STEPS = 4, 12, 3
POOLING_REPEATS, WIDTHS = 3, ("paper", "mixed", "tiny")
BACKENDS = {"dense": (False, True), "pyramid": (False,), "tree": (True,), "triton": (False, True)}
"""Backends of ContextPool -> the forms that each has: whether causal."""
PLAIN = "plain loop"
SAME = ("device", "driver", "cuda", "cudnn", "torch", "lra_harness")
"""What must be as in the file for its parts to stay."""
Figures = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """One measurement."""

    name: str
    seconds: float
    """How long it may take; it does not begin if less is left."""
    run: Callable[[], Figures]


def main(arguments: list[str] | None = None) -> None:
    """Measure, write the record after every part, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="the command ends within that time [default: 9]")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="the record [default: gpu.json]")
    parser.add_argument("--attn", default="all", help="variants, separated by commas [default: all]")
    parser.add_argument("--length", type=int, default=4096, help="tokens of a training step [default: 4096]")
    parser.add_argument("--batch", type=int, default=32, help="sequences of a training step [default: 32]")
    parser.add_argument("--precisions", default="float32,bfloat16", help="[default: float32,bfloat16]")
    parser.add_argument("--pool-lengths", default="1024,2048,4096,8192,16384", help="[default: 1024 to 16384]")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: no CUDA device on this machine; `lra-bench` measures on the CPU")
    if "contextpool" not in available():
        sys.exit(
            "benchmarks.gpu: the project is not installed, so ContextPool is not found; run `pip install -e .` first"
        )
    set_arithmetic()
    device = torch.device("cuda")
    record = open_record(options.output, describe_environment(device))
    try:
        todo = [part for part in parts(options, device) if "figures" not in record["parts"].get(part.name, {})]
    except LraError as error:
        sys.exit(f"benchmarks.gpu: {error}")
    left_out = []
    for number, part in enumerate(todo, 1):
        if time.monotonic() - start + part.seconds > 60 * options.minutes:
            left_out.append(part.name)
            continue
        print(f"[{number}/{len(todo)}, {time.monotonic() - start:.0f} s] {part.name}", file=sys.stderr, flush=True)
        begin = time.monotonic()
        try:
            outcome: Figures = {"figures": part.run()}
        except Exception as error:  # noqa: BLE001 - one part that fails does not cost the others
            outcome = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        record["parts"][part.name] = outcome | {"seconds": round(time.monotonic() - begin, 1)}
        save(options.output, record)
        gc.collect()
        torch.cuda.empty_cache()
    print(tables(record))
    if left_out:
        print(f"\nLeft out for lack of time ({len(left_out)}; the same command goes on): {', '.join(left_out)}")


def open_record(path: Path, environment: Figures) -> Figures:
    """Return the record in a file, or a new one.

    Exits with one line if the file is damaged, or measured on another device or with other versions.
    """
    if not path.exists():
        return {"environment": environment, "parts": {}}
    try:
        record: Figures = json.loads(path.read_text(encoding="utf-8"))
        before = record["environment"]
        record["parts"].values()
    except (ValueError, KeyError, TypeError, AttributeError):
        sys.exit(f"benchmarks.gpu: {path} is no record of this command; name another file with --output")
    other = [name for name in SAME if before.get(name) != environment.get(name)]
    if other:
        told = ", ".join(f"{name} {before.get(name)} there, {environment.get(name)} here" for name in other)
        sys.exit(f"benchmarks.gpu: {path} was measured elsewhere ({told}); name another file with --output")
    return record


def save(path: Path, record: Figures) -> None:
    """Write the record, whole or not at all."""
    atomic_write(path, json.dumps(record, indent=1).encode() + b"\n")


def parts(options: argparse.Namespace, device: torch.device) -> Iterator[Part]:
    """List the measurements, the most important ones first.

    The seconds are generous guesses, to be replaced by those of the first record.
    """
    yield Part("tests", LONGEST_TESTS, run_tests)
    variants = sorted(available()) if options.attn == "all" else options.attn.split(",")
    first, *others = options.precisions.split(",")
    yield from step_parts(options, variants, first, device)
    for length in map(int, options.pool_lengths.split(",")):
        for backend, forms in BACKENDS.items():
            for causal in forms:
                form = "causal" if causal else "two-sided"
                sizes = {"batch": options.batch, "repeats": POOLING_REPEATS, "kinds": WIDTHS}
                run = partial(measure_pooling, length, backend, causal=causal, **sizes)
                yield Part(f"pooling {length} {form} {backend}", 5 + length / 1024, run)
    for precision in others:
        yield from step_parts(options, variants, precision, device)


def step_parts(
    options: argparse.Namespace, variants: list[str], precision: str, device: torch.device
) -> Iterator[Part]:
    """List the training steps in one precision."""
    for name in [PLAIN, *variants]:
        config = workload_config(
            task="text",
            variant="full" if name == PLAIN else name,
            profile=load_profile("nystromformer"),
            length=options.length,
            batch_size=options.batch,
            overrides={"train.precision": precision},
        )
        yield Part(f"step {precision} {name}", 10, partial(measure_step, config, device, plain=name == PLAIN))


def run_tests() -> Figures:
    """Run the tests that need a GPU, in processes of their own, and count their outcomes.

    The plugins that the tests use are named, and no other is loaded: one that warns would end pytest before any test.
    """
    command = [sys.executable, "-m", "pytest", "-m", "gpu and not nightly", "-vv", "-rfE", "-p", "no:cacheprovider"]
    command += ["-p", "xdist", "-p", "timeout", *TESTS]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "500"}  # reasons stand in one line
    seconds = LONGEST_TESTS - 10
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=seconds
        )
        output, ended = done.stdout + done.stderr, done.returncode in (0, 1)
    except subprocess.TimeoutExpired as stopped:
        output, ended = (stopped.stdout or b"").decode(errors="replace"), False
    # Lines of pytest-xdist: [gw0] [ 12%] PASSED tests/...
    found = re.findall(r"^\[gw\d+\] \[ *\d+%\] (PASSED|FAILED|ERROR|SKIPPED) (tests/.*?)\s*$", output, re.MULTILINE)
    outcomes = {test: outcome for outcome, test in found}  # an error at the end of a test replaces what it was before
    reasons = dict(re.findall(r"^(?:FAILED|ERROR) (tests/.*?) - (.*)$", output, re.MULTILINE))
    return {
        "ended": ended,
        **{word.lower(): sum(outcome == word for outcome in outcomes.values()) for word in ("PASSED", "SKIPPED")},
        "failed": sorted(
            f"{test}: {reasons.get(test, 'no reason was printed')}"
            for test, outcome in outcomes.items()
            if outcome in ("FAILED", "ERROR")
        ),
    }


def measure_step(config: RunConfig, device: torch.device, *, plain: bool) -> Figures:
    """Measure a training step: time, the time and number of its kernels, and memory.

    Returns:
        `seconds` of a step in a row of them, as in training; `kernel_seconds`, the sum over the kernels of a step, and
        `launches`, their number, both None where the profiler saw none; `bytes`, the peak beyond model and optimiser.
    """
    work = Workload(config, device)
    step = plain_step(config, work) if plain else work.step

    def several(count: int) -> None:
        for _ in range(count):
            step()
        torch.cuda.synchronize(device)

    several(WARM_STEPS)
    start = time.perf_counter()
    several(STEPS)
    seconds = (time.perf_counter() - start) / STEPS
    with profile() as profiler:
        several(PROFILED_STEPS)
    kernels = [
        event for event in profiler.events() if event.device_type == DeviceType.CUDA and not event.is_user_annotation
    ]
    work.clear()
    peak, _ = cuda_peak(step, device)
    return {
        "seconds": seconds,
        "kernel_seconds": 1e-6 * sum(event.time_range.elapsed_us() for event in kernels) / PROFILED_STEPS
        if kernels
        else None,
        "launches": round(len(kernels) / PROFILED_STEPS) if kernels else None,
        "bytes": peak,
    }


def plain_step(config: RunConfig, work: Workload) -> Callable[[], None]:
    """Make a function that trains the plainest model for one step on the tokens of a workload."""
    info, half = get_task(config.task).info, config.train.precision == "bfloat16"
    model = PlainModel(config.model, info.vocab_size, info.num_classes).to(work.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(work.device.type, dtype=torch.bfloat16, enabled=half):
            logits = model(work.tokens, None)
        F.cross_entropy(logits.float(), work.labels).backward()
        optimizer.step()

    return step


def tables(record: Figures) -> str:
    """Lay out a record in Markdown.

    Where the profiler has seen no kernel at all, as on the pretended device of the tests, no figure is shown.
    """
    environment, found = record["environment"], record["parts"]
    steps: dict[str, dict[str, Figures]] = {}
    for name, outcome in found.items():
        if name.startswith("step "):
            _, precision, subject = name.split(" ", 2)
            steps.setdefault(precision, {})[subject] = outcome
    pretended = not any(
        outcome.get("figures", {}).get("kernel_seconds") for each in steps.values() for outcome in each.values()
    )
    versions = ", ".join(f"{name} {environment.get(name)}" for name in ("driver", "torch", "cuda", "cudnn"))
    blocks = [f"{environment['device']}, {versions}"]
    if pretended:
        blocks.append("No kernel was seen to run: this is no GPU, or steps are missing. No figure is shown.")

    def shown(value: float | None, layout: str) -> str:
        return "-" if pretended or value is None else f"{value:{layout}}"

    def laid_out(rows: list[list[str]], *headers: str) -> str:
        align = ("left", *["right"] * (len(headers) - 1))
        return tabulate(rows, headers=headers, tablefmt="pipe", disable_numparse=True, colalign=align)

    if "figures" in found.get("tests", {}):
        seen = found["tests"]["figures"]
        cut = "" if seen["ended"] else ", cut off"
        counts = f"{seen['passed']} passed, {len(seen['failed'])} failed, {seen['skipped']} skipped{cut}"
        blocks.append("\n".join([f"Tests on the device: {counts}.", *(f"- failed: {test}" for test in seen["failed"])]))
    for precision, outcomes in steps.items():
        plain = outcomes.get(PLAIN, {}).get("figures", {}).get("seconds")
        rows = []
        for subject, outcome in outcomes.items():
            figures = outcome.get("figures")
            if figures is None:
                rows.append([subject, "failed", *["-"] * 5])
                continue
            seconds, kernels = figures["seconds"], figures["kernel_seconds"]
            rows.append(
                [
                    subject,
                    shown(1e3 * seconds, ".2f"),
                    shown(1e3 * kernels if kernels else None, ".2f"),
                    shown(seconds / kernels if kernels else None, ".2f"),
                    shown(figures["launches"], ","),
                    shown(seconds / plain if plain else None, ".2f"),
                    shown(figures["bytes"] / 2**20, ",.0f"),
                ]
            )
        headers = ("variant", "ms/step", "kernels ms", "step / kernels", "launches", "x plain loop", "MiB")
        blocks.append(f"A training step in {precision}:\n\n{laid_out(rows, *headers)}")
    rows = []
    for name, outcome in found.items():
        if not name.startswith("pooling "):
            continue
        _, length, form, backend = name.split()
        if "figures" not in outcome:
            rows.append([length, form, backend, "failed", *["-"] * (2 * len(WIDTHS))])
            continue
        of_kinds = [outcome["figures"].get(kind, {}) for kind in WIDTHS]
        times = [shown(each.get("ms"), ".2f") for each in of_kinds]
        ratios = [shown(each.get("ratio"), ".2f") for each in of_kinds]
        most = max(each["MiB"] for each in outcome["figures"].values())
        rows.append([length, form, backend, *times, *ratios, shown(most, ",.0f")])
    if rows:
        times, ratios = ([f"{what}: {kind}" for kind in WIDTHS] for what in ("ms", "x attention"))
        headers = ("length", "form", "backend", *times, *ratios, "MiB")
        blocks.append(f"ContextPool's operator, forward and backward, in bfloat16:\n\n{laid_out(rows, *headers)}")
    errors = [f"- {name}: {outcome['error']}" for name, outcome in found.items() if "error" in outcome]
    if errors:
        blocks.append("\n".join(["Failed:", *errors]))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    main()
