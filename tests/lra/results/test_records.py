import json

import numpy as np
import pytest

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import RunConfig, VariantChoice
from lra.errors import StoreError
from lra.results.envelope import pack_envelope, read_envelope
from lra.results.records import AttemptedRun, Cost, Count, Outcome, RunRecord, Store, read_attempt, read_record

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


OLD_NAMES = (("run_id", "cell_id"), ("dataset", "data_edition"), ("baselines", "rails"))


def as_schema_1(path, old_names=OLD_NAMES, **changes):
    """Write the record of a file as schema 1 had it: other names, own version in the origin, no title."""
    body = read_envelope(path, "record", 2)
    for new, old in old_names:
        body[old] = body.pop(new)
    del body["variant_title"]
    body["config"]["variant"]["origin"] = "lra-harness 0.1.0"
    path.write_bytes(pack_envelope("record", body | {"schema_version": 1} | changes))


def test_a_record_of_schema_1_is_read(tmp_path):
    store = Store(tmp_path)
    published = store.publish(record(), ARRAYS)
    as_schema_1(store.record_path(CELL))
    before = store.record_path(CELL).read_bytes()
    read = store.find(CELL)
    assert read == published.model_copy(update={"variant_title": "Full"})  # the title is only known by the variant
    assert read.config.run_id(read.data_digest) == published.config.run_id(published.data_digest)
    assert store.record_path(CELL).read_bytes() == before


def test_the_origin_of_anothers_plug_in_is_kept(tmp_path):
    store = Store(tmp_path)
    store.publish(record(), ARRAYS)
    variant = VariantChoice(name="theirs", options={}, origin="their-package 1.0")
    as_schema_1(store.record_path(CELL), config=config(variant=variant).model_dump())
    assert store.find(CELL).config.variant.origin == "their-package 1.0"


@pytest.mark.parametrize(
    ("old_names", "changes"),
    [
        (OLD_NAMES[:2], {}),
        (OLD_NAMES[1:], {}),
        (OLD_NAMES, {"run_id": CELL}),
        (OLD_NAMES, {"config": {}}),
        (OLD_NAMES, {"config": None}),
        (OLD_NAMES, {"rails": {"chance": "ten"}}),
    ],
)
def test_a_half_renamed_or_damaged_record_of_schema_1_is_refused(tmp_path, old_names, changes):
    store = Store(tmp_path)
    store.publish(record(), ARRAYS)
    as_schema_1(store.record_path(CELL), old_names, **changes)
    with pytest.raises(StoreError, match="is not the record of a run"):
        store.find(CELL)
    assert [type(entry) for entry in store.records()] == [StoreError]


def attempted() -> AttemptedRun:
    return AttemptedRun(
        run_id=CELL, status="oom", config=config(), task_title="ListOps", variant_title="Full", dataset="short",
        data_digest="d" * 64,
    )  # fmt: skip


def test_an_attempt_says_what_it_tried_in_either_schema(tmp_path):
    Store(tmp_path).log_attempt(CELL, "oom", "why", {}, attempted())
    (path,) = (tmp_path / "attempts" / CELL).iterdir()
    assert read_attempt(path) == attempted()
    note = json.loads(path.read_text())
    tried = note.pop("run")
    old = {"cell_id": tried.pop("run_id"), "data_edition": tried.pop("dataset")} | tried
    del old["variant_title"]
    path.write_text(json.dumps(note | {"schema_version": 1, "cell": old}))
    assert read_attempt(path) == attempted()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a note of an attempt"),
        ("", "not a note of an attempt"),
        ('{"status": "oom", "schema_version": 2}', "does not say what it tried"),
        ('{"status": "oom", "schema_version": 1, "cell": {"run_id": "x"}}', "not a note of an attempt"),
        ('{"status": "oom", "schema_version": 2, "run": {"run_id": "x"}}', "not a note of an attempt"),
    ],
)
def test_a_damaged_note_of_an_attempt_is_named(tmp_path, text, message):
    (tmp_path / "1-host-1.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        read_attempt(tmp_path / "1-host-1.json")


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
