"""Stores of made-up records, for tests of what is made of records."""

import numpy as np
import pytest

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import NUMERICS_VERSION, VariantChoice
from lra.results.bench_records import (
    MIB,
    BenchRecord,
    MemoryMeasurement,
    Timing,
    save_bench_record,
    settings_id,
)
from lra.results.records import AttemptedRun, ConflictError, Cost, Count, Outcome, Pretrained, RunRecord, Store
from reports.result_set import load_stores

TITLES = {"listops": "ListOps", "text": "Text", "retrieval": "Retrieval", "image": "Image", "pathfinder": "Pathfinder"}
TOTAL = 1000
BASE = resolve(task="listops", variant="full", profile=load_profile("quick"), seed=0, overrides={})
HOSTILE = (
    "<script>alert(1)</script>",
    r"\input{/etc/passwd} $x_1$ & 50% #1 ~^ {}",
    "\x1b[31mred\x1b[0m\u202egnp",
    "=cmd|' /C calc'!A0",
    "-2+3+cmd|' /C calc'!A0",
    "a|b](http://x.test)`*_",
    '" onload="x',
    "[* bracket first",
)


def cell_config(task="listops", variant="full", seed=0, profile="quick", track="matched", options=None, layers=2):
    choice = VariantChoice(name=variant, options=BASE.variant.options | (options or {}))
    model = BASE.model.model_copy(update={"num_layers": layers})
    changes = {"task": task, "variant": choice, "seed": seed, "profile": profile, "track": track, "model": model}
    return BASE.model_copy(update=changes)


def add_run(
    folder,
    correct,
    *,
    dataset="made up",
    digest="d" * 64,
    baselines=None,
    speed=1000.0,
    memory=64,
    title=None,
    bits=None,
    finished_at="2026-01-01T00:00:00+00:00",
    config=None,
    flops=2_000_000,
    variant_title=None,
    environment=None,
    numerics_version=NUMERICS_VERSION,
    total=TOTAL,
    **of,
):
    """Publish one run that has `correct` of `total` right; None is a run that diverged."""
    config = config or cell_config(**of)
    before = config.pretrain_steps
    steps = before + np.arange(1, 6) * 10.0
    right = np.floor(np.linspace(10, 100 * (correct or 100) // total, 5))
    arrays = {"curve.step": steps, "curve.validation_correct": right}
    outcome = pretrained = None
    if before:
        arrays |= {"pretrain.step": np.array([float(before)]), "pretrain.validation_loss": np.array([2.0])}
        score = Count(correct=5, total=10, loss=2.0)
        pretrained = Pretrained(steps=before, selected_step=before, validation=score, weights_digest="f" * 64)
    if correct is not None:
        test = Count(correct=correct, total=total, loss=1.5)
        best = int(right.argmax())
        validation = Count(correct=int(right[best]), total=100, loss=1.5)
        outcome = Outcome(test=test, validation=validation, selected_step=int(steps[best]), weights_digest="e" * 64)
        arrays["test_correct"] = np.arange(total) < correct if bits is None else bits
        assert int(arrays["test_correct"].sum()) == correct
    cost = Cost(
        parameters=1000, parameters_full=1000, flops=flops, train_seconds=2.0, examples_per_second=speed and speed / 10,
        tokens_per_second=speed, wall_seconds=3.0, peak_memory_bytes=memory and memory * 2**20,
        peak_memory_method="made up", resumed=0,
    )  # fmt: skip
    record = RunRecord(
        run_id=config.run_id(digest, numerics_version), status="ok" if outcome else "diverged", config=config,
        numerics_version=numerics_version,
        task_title=title or TITLES[config.task], variant_title=variant_title or config.variant.name, dataset=dataset,
        data_digest=digest,
        baselines={"chance": 10.0, "majority": 11.0} if baselines is None else baselines, outcome=outcome, cost=cost,
        pretrained=pretrained,
        backend="reference", environment=environment or {"device": "cpu", "torch": "2"}, arrays_sha256="",
        finished_at=finished_at,
    )  # fmt: skip
    return Store(folder).publish(record, arrays)


def add_attempt(folder, status, digest="d" * 64, numerics_version=NUMERICS_VERSION, config=None, **of):
    config = config or cell_config(**of)
    cell = AttemptedRun(
        run_id=config.run_id(digest, numerics_version), status=status, config=config,
        numerics_version=numerics_version, task_title=TITLES.get(config.task, config.task.capitalize()),
        variant_title=config.variant.name, dataset="made up", data_digest=digest,
    )  # fmt: skip
    Store(folder).log_attempt(cell.run_id, status, "why", {"device": "cpu"}, cell)


def add_measurement(
    folder, variant, length, *, seconds, mib, batch=4, status="ok", threads=2, noisy=False, options=None, limit=None,
    torch="2", measured_at="2026-01-01T00:00:00+00:00", environment=None, settings=None, **changes
):  # fmt: skip
    """Leave what `lra-bench` would: `seconds` a step, `mib` at its peak besides 10 MiB of state.

    `settings` are of the model and the training, by path; `environment` adds to that of the measurement.
    """
    base = resolve(task="text", variant="full", profile=load_profile("quick"), seed=0, track="open", overrides={})
    sections = {"model": {"max_length": length}, "train": {"batch_size": batch}}
    for path, value in (settings or {}).items():
        section, _, name = path.partition(".")
        sections[section][name] = value
    parts = {name: getattr(base, name).model_copy(update=values) for name, values in sections.items()}
    choice = VariantChoice(name=variant, options=BASE.variant.options | (options or {}))
    config = base.model_copy(update={"variant": choice, **parts, **changes})
    identity = settings_id(config, device="Model <7>", threads=threads, memory_limit=limit)
    fine = status == "ok"
    steps = [seconds, seconds, seconds * (2 if noisy else 1)]
    memory = MemoryMeasurement(
        counter="made up", step_bytes=[mib * MIB], check_counter="other", check_bytes=[mib * MIB],
        self_test_bytes=48 * MIB, self_test_check_bytes=48 * MIB, state_bytes=10 * MIB,
    )  # fmt: skip
    measurement = BenchRecord(
        settings_id=identity, variant_title=variant, status=status,
        detail="" if fine else "no memory", config=config, device_type="cpu",
        threads=threads, memory_limit=limit,
        parameters=1, backend="reference", speed_ratio=0.5 / seconds if fine else None, flops=None,
        timing=Timing(seconds=steps, warmup_steps=1) if fine else None, memory=memory if fine else None,
        environment={"device": "cpu", "cpu": "Model <7>", "torch": torch, "load_average": 0.5} | (environment or {}),
        measured_at=measured_at,
    )  # fmt: skip
    return save_bench_record(folder, measurement)


def five_tasks(folder, variants=("full", "contextpool"), seeds=3, tasks=tuple(TITLES), **of):
    """Fill a store with the five tasks; variant v, task t and seed s get 400 + 50 v + 10 t + s right answers."""
    for v, variant in enumerate(variants):
        for t, task in enumerate(tasks):
            for seed in range(seeds):
                speed, memory = 1000.0 * (v + 1), 64 * (v + 1)
                right = 400 + 50 * v + 10 * t + seed
                add_run(folder, right, variant=variant, task=task, seed=seed, speed=speed, memory=memory, **of)


def made(function, folder, *names, profile="quick", track="matched"):
    """Make a table of a store."""
    return function(load_stores([folder]), profile, track, *names)


def notes_of(table):
    return " ".join(table.notes)


def add_other_outcome(store, run_id):
    """Leave another outcome of a run beside its record, as a repetition does; return the file."""
    record = store.find(run_id)
    other = {"status": "diverged", "detail": "loss is nan at step 3", "outcome": None, "trained": None}
    with pytest.raises(ConflictError) as conflict:
        store.publish(record.model_copy(update=other), {})
    return store.record_path(run_id).with_suffix(f".conflict-{conflict.value.number}.json")
