import json

import numpy as np
import pytest

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import RunConfig, VariantChoice
from lra.errors import StoreError
from lra.results.records import Cost, Count, Outcome, RunRecord, Store, read_record

CELL = "ab" + "0" * 62


def config(**changes) -> RunConfig:
    base = resolve(task="listops", variant="full", profile=load_profile("quick"), seed=0, overrides={})
    return base.model_copy(update=changes)


def record(**changes) -> RunRecord:
    score = Count(correct=3, total=4, loss=0.5)
    values = {
        "run_id": CELL, "status": "ok", "config": config(), "numerics_version": 1, "task_title": "ListOps",
        "variant_title": "Full attention",
        "dataset": "short", "data_digest": "d" * 64, "baselines": {"chance": 10.0},
        "outcome": Outcome(test=score, validation=score, selected_step=5, weights_digest="e" * 64),
        "cost": Cost(
            parameters=10, parameters_full=10, flops=1_000_000, train_seconds=1.5, examples_per_second=None,
            tokens_per_second=3.25, wall_seconds=2.0, peak_memory_bytes=1 << 20, peak_memory_method="none", resumed=0,
        ),
        "backend": "fused", "environment": {"torch": "2"}, "arrays_sha256": "", "finished_at": "2026-01-01T00:00:00",
    }  # fmt: skip
    return RunRecord(**values | changes)


ARRAYS = {"test_correct": np.array([True, False, True, True]), "curve.step": np.array([5.0])}


def test_round_trip(tmp_path):
    store = Store(tmp_path)
    published = store.publish(record(), ARRAYS)
    assert store.find(CELL) == published
    assert list(store.records()) == [published]
    arrays = store.arrays(CELL)
    assert arrays["test_correct"].tolist() == [True, False, True, True]
    assert store.find("cd" + "0" * 62) is None


def test_the_same_outcome_again_keeps_the_first_record(tmp_path):
    store = Store(tmp_path)
    first = store.publish(record(), ARRAYS)
    again = store.publish(record(finished_at="2027-01-01T00:00:00"), ARRAYS)
    assert again == first
    assert len(list(tmp_path.glob("results/*/*"))) == 1


def test_another_outcome_is_an_alarm_and_changes_nothing(tmp_path):
    store = Store(tmp_path)
    first = store.publish(record(), ARRAYS)
    outcome = record().outcome.model_copy(update={"selected_step": 6})
    for number in (1, 2):
        with pytest.raises(StoreError, match=f"conflict-{number}"):
            store.publish(record(outcome=outcome), ARRAYS)
    assert list(store.records()) == [first]
    assert read_record(tmp_path / "results" / "ab" / f"{CELL}.conflict-1.json").outcome.selected_step == 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"correct": 3', '"correct": 4'), "checksum"),
        (lambda text: text[: len(text) // 2], "not a record"),
        (lambda text: "[]", "not a record"),
        (lambda text: "{}", "not a record"),
        (lambda text: "", "not a record"),
    ],
)
def test_damaged_records_are_named_not_believed(tmp_path, change, message):
    store = Store(tmp_path)
    store.publish(record(), ARRAYS)
    path = store.record_path(CELL)
    path.write_text(change(path.read_text()))
    with pytest.raises(StoreError, match=message):
        store.find(CELL)
    assert [type(entry) for entry in store.records()] == [StoreError]


def test_a_newer_schema_is_refused(tmp_path):
    store = Store(tmp_path)
    store.publish(record(schema_version=3), ARRAYS)
    with pytest.raises(StoreError, match="newer version"):
        store.find(CELL)


def test_arrays_that_are_not_the_records_are_refused(tmp_path):
    store = Store(tmp_path)
    store.publish(record(), ARRAYS)
    content = bytearray(store.arrays_path(CELL).read_bytes())
    content[-5] ^= 1
    store.arrays_path(CELL).write_bytes(content)
    with pytest.raises(StoreError, match="not what its record says"):
        store.arrays(CELL)


def test_attempts_are_numbered_and_kept(tmp_path):
    store = Store(tmp_path)
    for status in ("oom", "preempted", "ok"):
        store.log_attempt(CELL, status, "why", {})
    notes = sorted((tmp_path / "attempts" / CELL).iterdir())
    assert [json.loads(note.read_text())["status"] for note in notes] == ["oom", "preempted", "ok"]


def test_an_unwritable_store_is_found_out_early(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write to the store"):
        Store(tmp_path / "file" / "store").check_writable()


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # the changed values have other types, on purpose
def test_every_setting_is_in_the_cell_id():
    """Changing any field of the configuration, at any depth, gives another cell; so does other data."""
    base = config()
    ids = {base.run_id("d"), base.run_id("e")}
    variant = base.variant
    changed = [
        config(task="x"), config(profile="x"), config(track="open"), config(seed=1), config(data={"x": 1}),
        config(variant=VariantChoice(name="x", options=variant.options)),
        config(variant=VariantChoice(name=variant.name, options={"x": 1})),
        config(variant=VariantChoice(name=variant.name, options=variant.options, origin="x 1")),
    ]  # fmt: skip
    for section in ("model", "train"):
        values = getattr(base, section)
        changed += [config(**{section: values.model_copy(update={n: "changed"})}) for n in type(values).model_fields]
    ids |= {other.run_id("d") for other in changed}
    assert len(changed) > 35
    assert len(ids) == len(changed) + 2
