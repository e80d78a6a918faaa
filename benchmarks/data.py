"""Measure the ListOps generator: `python benchmarks/data.py --examples 20000 --repeats 3`.

Times cover everything that `lra-data prepare listops` does for the official parameters: drawing, both evaluations,
removal of duplicates, digests and writing. CPU seconds include worker processes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lra.tasks import get_task


def cpu_seconds() -> float:
    """Return user and system time of this process and its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(examples: int, workers: int, seed: int) -> tuple[float, float, int]:
    """Prepare one corpus in a temporary folder; return wall seconds, CPU seconds and tokens."""
    task = get_task("listops")
    held_out = max(1, examples // 50)
    options = task.options.model_validate(
        {"seed": seed, "train": examples - 2 * held_out, "validation": held_out, "test": held_out}
    )
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), cpu_seconds()
        data = task.prepare(options, Path(folder), workers=workers, progress=False)
        wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
        return wall, cpu, sum(record.tokens for record in data.manifest.splits.values())


def main() -> None:
    """Print the median of the repeats."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    runs = [measure(arguments.examples, arguments.workers, seed) for seed in range(arguments.repeats)]
    wall = statistics.median(run[0] for run in runs)
    cpu = statistics.median(run[1] for run in runs)
    tokens = statistics.median(run[2] for run in runs)
    print(f"listops: {arguments.examples:,} examples, {arguments.workers} workers, median of {arguments.repeats}")
    print(f"  wall {wall:.2f} s, CPU {cpu:.2f} s, range of wall {min(runs)[0]:.2f} to {max(runs)[0]:.2f} s")
    print(f"  {arguments.examples / wall:,.0f} examples/s, {tokens / wall / 1e6:.1f} M tokens/s")


if __name__ == "__main__":
    main()
