"""Time from a store of many records to a table: `python -m benchmarks.reports [--records 10000]`.

The records are made up: 10 variants on 5 tasks, the rest seeds. Prints the seconds for reading and for each table, and
the peak memory of the process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import NUMERICS_VERSION, VariantChoice, canonical_json
from lra.results.records import Cost, Count, Outcome, RunRecord, Store
from reports.render import FORMATS, render
from reports.result_set import load_stores
from reports.tables import accuracy, cost, ranks, seeds

VARIANTS = 10
TASKS = ("listops", "text", "retrieval", "image", "pathfinder")


def fill(folder: Path, count: int) -> None:
    """Write made-up records, without the protection against power cuts that real ones get."""
    base = resolve(task="listops", variant="full", profile=load_profile("quick"), seed=0, overrides={})
    store = Store(folder)
    for number in range(count):
        variant, task = number % VARIANTS, TASKS[number // VARIANTS % len(TASKS)]
        choice = VariantChoice(name=f"variant_{variant}", options=base.variant.options)
        seed = number // (VARIANTS * len(TASKS))
        config = base.model_copy(update={"task": task, "variant": choice, "seed": seed})
        score = Count(correct=400 + number % 97, total=1000, loss=1.0)
        record = RunRecord(
            run_id=config.run_id("d" * 64),
            status="ok",
            config=config,
            numerics_version=NUMERICS_VERSION,
            task_title=task,
            variant_title=config.variant.name,
            dataset="made up",
            data_digest="d" * 64,
            baselines={"chance": 10.0},
            outcome=Outcome(test=score, validation=score, selected_step=1, weights_digest="e" * 64),
            cost=Cost(
                parameters=1000,
                parameters_full=1000,
                flops=1_000_000,
                train_seconds=1.0,
                examples_per_second=10.0,
                tokens_per_second=1000.0,
                wall_seconds=1.0,
                peak_memory_bytes=1 << 20,
                peak_memory_method="made up",
                resumed=0,
            ),
            backend="reference",
            environment={"device": "cpu"},
            arrays_sha256="0" * 64,
            finished_at="2026-01-01T00:00:00+00:00",
        )
        body = record.model_dump()
        envelope = {"record": body, "sha256": hashlib.sha256(canonical_json(body)).hexdigest()}
        path = store.record_path(record.run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(envelope))


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print the seconds of a block by the clock, and those of the processor, which other work does not change."""
    clock, processor = time.perf_counter(), time.process_time()
    yield
    print(f"{what}: {time.perf_counter() - clock:.2f} s, processor {time.process_time() - processor:.2f} s")


def main() -> None:
    """Make a store and print the times of its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    count = parser.parse_args().records
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), count)
        with timed(f"read {count} records"):
            results = load_stores([Path(folder)])
        assert len(results.records) == count
        for make in (accuracy, seeds, cost, ranks):
            with timed(f"{make.__name__}, in {len(FORMATS)} forms"):
                table = make(results, "quick", "matched")
                for form in FORMATS:
                    render(table, form)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory: {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
