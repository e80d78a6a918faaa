"""The migration of a store to schema 2 changes names and ids, and nothing that a run found."""

import hashlib

import numpy as np
import pytest

from benchmarks import migrate_store
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import NUMERICS_VERSION, RunConfig
from lra.results import bench_records
from lra.results.arrays import pack_arrays
from lra.results.bench_records import MIB, BenchRecord, MemoryMeasurement, Timing, read_bench_record, settings_id
from lra.results.envelope import pack_envelope, read_envelope
from lra.results.records import Cost, Count, Outcome, RunRecord, Store

OLD_NAMES = {"run_id": "cell_id", "dataset": "data_edition", "baselines": "rails"}
OLD_COUNTERS = {new: old for old, new in bench_records.RENAMED_IN_SCHEMA_2.items()}
BITS = np.array([True, False, True, True])
CPU = "a processor"


def choice(variant: str) -> RunConfig:
    return resolve(task="listops", variant=variant, profile=load_profile("quick"), seed=0, overrides={})


def versioned(config: RunConfig) -> RunConfig:
    """Return a configuration as schema 1 hashed it, with this project's version in the origin of its own variants."""
    origin = "lra-harness 0.1.0" if config.variant.name.startswith("contextpool") else ""
    return config.model_copy(update={"variant": config.variant.model_copy(update={"origin": origin})})


def add_run(store: Store, variant: str) -> str:
    """Put one record of schema 1 into a store; return its id."""
    config = versioned(choice(variant))
    score = Count(correct=3, total=4, loss=0.5)
    record = RunRecord(
        run_id=config.run_id("d" * 64), status="ok", config=config, numerics_version=NUMERICS_VERSION,
        task_title="ListOps",
        variant_title="", dataset="short", data_digest="d" * 64, baselines={"chance": 10.0},
        outcome=Outcome(test=score, validation=score, selected_step=5, weights_digest="e" * 64),
        cost=Cost(
            parameters=10, parameters_full=10, flops=1, train_seconds=1.5, examples_per_second=None,
            tokens_per_second=3.25, wall_seconds=2.0, peak_memory_bytes=1, peak_memory_method="none", resumed=0,
        ),
        backend="fused", environment={"torch": "2"}, arrays_sha256="", finished_at="2026-01-01T00:00:00",
    )  # fmt: skip
    curve = {"curve.step": np.array([5.0]), "curve.validation_correct": np.array([3.0])}
    body = store.publish(record, {"test_correct": BITS} | curve).model_dump()
    content = pack_arrays({"test_correct": BITS} | curve)  # there was no seal then
    store.arrays_path(record.run_id).write_bytes(content)
    body["arrays_sha256"] = hashlib.sha256(content).hexdigest()
    body = {OLD_NAMES.get(name, name): value for name, value in body.items()} | {"schema_version": 1}
    del body["variant_title"]
    store.record_path(record.run_id).write_bytes(pack_envelope("record", body))
    return record.run_id


def add_measurement(store: Store) -> str:
    config = versioned(choice("contextpool"))
    memory = MemoryMeasurement(
        counter="a", step_bytes=[5], check_counter="b", check_bytes=[5], self_test_bytes=48 * MIB,
        self_test_check_bytes=48 * MIB, state_bytes=3,
    )  # fmt: skip
    record = BenchRecord(
        settings_id=settings_id(config, device=CPU, threads=2, memory_limit=None), status="ok", detail="",
        variant_title="", config=config, device_type="cpu", threads=2, parameters=10, backend="pyramid",
        timing=Timing(seconds=[1.0], warmup_steps=1),
        speed_ratio=1.5, memory=memory, flops=None,
        environment={"cpu": CPU, "device": "cpu", "torch": "2", "load_average": 0.5},
        measured_at="2026-01-01T00:00:00",
    )  # fmt: skip
    body = record.model_dump(exclude={"memory_limit"}) | {"schema_version": 1}
    del body["variant_title"]
    body["memory"] = {OLD_COUNTERS.get(name, name): value for name, value in body["memory"].items()}
    path = store.root / "bench" / f"{record.settings_id}.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(pack_envelope("bench", body))
    return record.settings_id


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def migrate(store, monkeypatch, capsys) -> str:
    monkeypatch.setattr("sys.argv", ["migrate_store", str(store.root)])
    migrate_store.main()
    return capsys.readouterr().out


def contents(store) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in store.root.rglob("*") if path.is_file()}


def test_configuration_counts_and_bits_stay_and_ids_are_new(store, monkeypatch, capsys):
    ours, theirs, measured = add_run(store, "contextpool"), add_run(store, "full"), add_measurement(store)
    old = {run_id: read_envelope(store.record_path(run_id), "record", 2) for run_id in (ours, theirs)}
    assert "2 of 2 records and 1 of 1 measurements migrated" in migrate(store, monkeypatch, capsys)

    records = {record.config.variant.name: record for record in store.records()}
    assert {name: record.variant_title for name, record in records.items()} == {
        "contextpool": "ContextPool", "full": "Full attention"
    }  # fmt: skip
    for name, before in (("contextpool", old[ours]), ("full", old[theirs])):
        record = records[name]
        assert record.config == choice(name)
        assert record.run_id == record.config.run_id(record.data_digest, record.numerics_version)
        assert record.schema_version == 2
        assert record.outcome.model_dump() == before["outcome"]
        assert record.cost.model_dump() == before["cost"]
        assert store.arrays(record.run_id)["test_correct"].tolist() == BITS.tolist()
    assert records["contextpool"].run_id != ours
    assert not store.record_path(ours).exists()
    assert not store.arrays_path(ours).exists()
    assert records["full"].run_id == theirs  # a built-in variant never had a version in its id

    (path,) = (store.root / "bench").iterdir()
    measurement = read_bench_record(path)
    assert path.stem == measurement.settings_id != measured
    assert measurement.settings_id == settings_id(choice("contextpool"), device=CPU, threads=2, memory_limit=None)
    assert (measurement.speed_ratio, measurement.memory.step_bytes, measurement.memory.counter) == (1.5, [5], "a")


def test_a_second_migration_does_nothing(store, monkeypatch, capsys):
    add_run(store, "contextpool")
    add_measurement(store)
    migrate(store, monkeypatch, capsys)
    before = contents(store)
    assert "0 of 1 records and 0 of 1 measurements migrated" in migrate(store, monkeypatch, capsys)
    assert contents(store) == before


def test_an_upgrade_that_changes_a_count_is_stopped_and_the_old_record_stays(store, monkeypatch, capsys):
    run_id = add_run(store, "contextpool")
    before = store.record_path(run_id).read_bytes()
    real = migrate_store.read_record

    def wrong(path):
        record = real(path)
        score = record.outcome.test.model_copy(update={"correct": 4})
        return record.model_copy(update={"outcome": record.outcome.model_copy(update={"test": score})})

    monkeypatch.setattr(migrate_store, "read_record", wrong)
    with pytest.raises(SystemExit, match="outcome would not be the same afterwards"):
        migrate(store, monkeypatch, capsys)
    assert [*store.root.glob("results/*/*")] == [store.record_path(run_id)]
    assert store.record_path(run_id).read_bytes() == before
    assert store.arrays(run_id)["test_correct"].tolist() == BITS.tolist()


def test_an_upgrade_that_changes_a_measurement_is_stopped(store, monkeypatch, capsys):
    add_measurement(store)
    before = contents(store)
    real = migrate_store.read_bench_record
    wrong = {"speed_ratio": 2.0}
    monkeypatch.setattr(migrate_store, "read_bench_record", lambda path: real(path).model_copy(update=wrong))
    with pytest.raises(SystemExit, match="speed_ratio would not be the same afterwards"):
        migrate(store, monkeypatch, capsys)
    assert contents(store) == before


def test_a_run_that_was_made_again_since_keeps_its_record(store, monkeypatch, capsys):
    """Both outcomes stay, and reports go on to say that there are two."""
    ours, measured = add_run(store, "contextpool"), add_measurement(store)
    copies = {path: path.read_bytes() for path in (store.record_path(ours), store.root / "bench" / f"{measured}.json")}
    migrate(store, monkeypatch, capsys)
    (new,) = [record.run_id for record in store.records()]
    (bench,) = (store.root / "bench").iterdir()
    changed = {}
    for path, kind, field in ((store.record_path(new), "record", "finished_at"), (bench, "bench", "measured_at")):
        body = read_envelope(path, kind, 3) | {field: "2026-02-02T00:00:00"}
        path.write_bytes(pack_envelope(kind, body))
        changed[path] = path.read_bytes()
    for path, content in copies.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    out = migrate(store, monkeypatch, capsys)
    assert "is the same run, made again" in out
    assert "has the same settings, measured again" in out
    assert {path: path.read_bytes() for path in (*copies, *changed)} == copies | changed


def test_a_migration_that_was_killed_goes_on(store, monkeypatch, capsys):
    """Killed between the new file and the removal of the old one."""
    ours = add_run(store, "contextpool")
    record, arrays = store.record_path(ours), store.arrays_path(ours)
    copies = {path: path.read_bytes() for path in (record, arrays)}
    migrate(store, monkeypatch, capsys)
    for path, content in copies.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert "1 of 2 records" in migrate(store, monkeypatch, capsys)
    assert not record.exists()
