import hashlib
import io
import json
import os
import tracemalloc
import zipfile

import numpy as np
import pytest

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import NUMERICS_VERSION, RunConfig, VariantChoice
from lra.errors import DamagedFileError, StoreError
from lra.results import records
from lra.results.arrays import pack_arrays, unpack_arrays
from lra.results.envelope import pack_envelope, read_envelope
from lra.results.records import (
    AttemptedRun,
    Cost,
    Count,
    Outcome,
    RunRecord,
    Store,
    check_arrays,
    read_attempt,
    read_note,
    read_record,
)


def config(**changes) -> RunConfig:
    base = resolve(task="listops", variant="full", profile=load_profile("quick"), seed=0, overrides={})
    return base.model_copy(update=changes)


CELL = config().run_id("d" * 64)


def record(**changes) -> RunRecord:
    score = Count(correct=3, total=4, loss=0.5)
    values = {
        "run_id": CELL, "status": "ok", "config": config(), "numerics_version": NUMERICS_VERSION,
        "task_title": "ListOps",
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


ARRAYS = {"test_correct": np.array([True, False, True, True]), "curve.step": np.array([5.0, 6.0])}
ARRAYS |= {"curve.validation_correct": np.array([3.0, 2.0]), "curve.validation_loss": np.array([0.5, 0.6])}


def test_round_trip(tmp_path):
    store = Store(tmp_path)
    published = store.publish(record(), ARRAYS)
    assert store.find(CELL) == published
    assert list(store.records()) == [published]
    arrays = store.arrays(CELL)
    assert arrays["test_correct"].tolist() == [True, False, True, True]
    assert store.find("0" * 64) is None


def test_trained_means_above_what_a_model_can_be_asked_to_beat():
    """Of 4 answers 3 are right, whose interval begins at 30 %."""
    known = {"chance": 10.0, "oracle": 92.0, "oracle of scales": 80.0}
    assert record(baselines=known, trained=True).unbeaten() == {}
    assert record(baselines=known | {"fixed width": 63.0}, trained=False).unbeaten() == {"fixed width": 63.0}
    with pytest.raises(ValueError, match="do not say"):
        record(baselines=known, trained=False)


def test_the_same_outcome_again_keeps_the_first_record(tmp_path):
    store = Store(tmp_path)
    first = store.publish(record(), ARRAYS)
    again = store.publish(record(finished_at="2027-01-01T00:00:00"), ARRAYS)
    assert again == first
    assert len(list(tmp_path.glob("results/*/*"))) == 1


@pytest.mark.parametrize("diverged", [False, True])
def test_another_curve_is_another_outcome(tmp_path, diverged):
    """Also that of a run which diverged elsewhere, if nothing else says where."""
    store, arrays = (
        Store(tmp_path),
        {name: value for name, value in ARRAYS.items() if name != "test_correct" or not diverged},
    )
    ours = record(**{"status": "diverged", "outcome": None, "detail": "not finite"} if diverged else {})
    first = store.publish(ours, arrays | {"curve.train_loss": np.array([0.7, np.nan])})
    assert store.publish(ours, arrays | {"curve.train_loss": np.array([0.7, np.nan])}) == first
    assert store.publish(ours, arrays) == first  # of a version that does not write this column
    shorter = {name: value[:1] if name.startswith("curve.") else value for name, value in arrays.items()}
    none = {name: value for name, value in arrays.items() if not name.startswith("curve.")}
    others = (arrays | {"curve.train_loss": np.array([0.7, 0.6])}, *([shorter, none] if diverged else []))
    for number, other in enumerate(others, start=1):
        with pytest.raises(StoreError, match=f"conflict-{number}"):
            store.publish(ours, other)
    assert len(store.other_outcomes(CELL)) == len(others)
    assert list(store.records()) == [first]


def test_another_outcome_is_an_alarm_and_changes_nothing(tmp_path):
    store = Store(tmp_path)
    first = store.publish(record(), ARRAYS)
    outcome = record().outcome.model_copy(update={"weights_digest": "f" * 64})
    for number in (1, 2):
        with pytest.raises(StoreError, match=f"conflict-{number}"):
            store.publish(record(outcome=outcome), ARRAYS)
    assert list(store.records()) == [first]
    assert read_record(store.record_path(CELL).with_suffix(".conflict-1.json")).outcome == outcome


def test_a_run_that_diverged_elsewhere_has_another_outcome(tmp_path):
    store, arrays = Store(tmp_path), {name: value for name, value in ARRAYS.items() if name != "test_correct"}
    diverged = {"status": "diverged", "outcome": None, "detail": "the loss is not finite at step 9"}
    first = store.publish(record(**diverged), arrays)
    assert store.publish(record(**diverged), arrays) == first
    with pytest.raises(StoreError, match="conflict-1"):
        store.publish(record(**diverged | {"detail": "the loss is not finite at step 5"}), arrays)
    assert list(store.records()) == [first]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"correct": 3', '"correct": 4'), "checksum"),
        (lambda text: text[: len(text) // 2], "another file than expected"),
        (lambda text: "[]", "another file than expected"),
        (lambda text: "{}", "another file than expected"),
        (lambda text: "", "another file than expected"),
    ],
)
def test_damaged_records_are_named_not_believed(tmp_path, change, message):
    store = Store(tmp_path)
    store.publish(record(), ARRAYS)
    path = store.record_path(CELL)
    path.write_text(change(path.read_text()))
    with pytest.raises(StoreError, match=message):
        store.find(CELL)
    assert [type(entry) for entry in store.records()] == [DamagedFileError]


def test_a_file_whose_keys_stand_in_another_order_reads_as_it_was_written(tmp_path):
    """Else rows of tables and axes of figures go by the order of the keys."""
    store = Store(tmp_path)
    kept = store.publish(record(baselines={"majority": 17.0, "chance": 10.0}), ARRAYS)
    path = store.record_path(kept.run_id)
    path.write_text(json.dumps(turned(json.loads(path.read_text()))))
    assert path.read_text().index("majority") < path.read_text().index("chance")
    (found,) = store.records()
    assert list(found.baselines) == ["chance", "majority"]


def turned(value):
    return {key: turned(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


def test_a_newer_schema_is_refused(tmp_path):
    store = Store(tmp_path)
    store.publish(record(schema_version=3), ARRAYS)
    with pytest.raises(StoreError, match="newer version"):
        store.find(CELL)


OLD_NAMES = (("run_id", "cell_id"), ("dataset", "data_edition"), ("baselines", "rails"))


def as_schema_1(store, old_names=OLD_NAMES, origin="lra-harness 0.1.0", **changes):
    """Write the record of a store as schema 1 had it: other names, own version in the origin, no title and no seal.

    Returns its id, which is its name.
    """
    body = read_envelope(store.record_path(CELL), "record", 2)
    body["config"]["variant"]["origin"] = origin
    run_id = body["run_id"] = RunConfig.model_validate(body["config"]).run_id("d" * 64)
    content = pack_arrays(ARRAYS)
    body["arrays_sha256"] = hashlib.sha256(content).hexdigest()
    for new, old in old_names:
        body[old] = body.pop(new)
    del body["variant_title"]
    store.record_path(CELL).unlink()
    for path, data in (
        (store.arrays_path(run_id), content),
        (store.record_path(run_id), pack_envelope("record", body | {"schema_version": 1} | changes)),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return run_id


def test_a_record_of_schema_1_is_read(tmp_path):
    store = Store(tmp_path)
    published = store.publish(record(), ARRAYS)
    old_id = as_schema_1(store)
    before = store.record_path(old_id).read_bytes()
    read = store.find(old_id)
    changed = {"variant_title": "Full", "run_id": old_id, "arrays_sha256": read.arrays_sha256}
    assert read == published.model_copy(update=changed)  # the title is only known by the variant
    assert read.config.run_id(read.data_digest) == published.config.run_id(published.data_digest)
    assert store.record_path(old_id).read_bytes() == before


def test_the_origin_of_anothers_plug_in_is_kept(tmp_path):
    store = Store(tmp_path)
    store.publish(record(), ARRAYS)
    assert store.find(as_schema_1(store, origin="their-package 1.0")).config.variant.origin == "their-package 1.0"


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
    run_id = as_schema_1(store, old_names, **changes)
    with pytest.raises(StoreError, match="another file than expected"):
        store.find(run_id)
    assert [type(entry) for entry in store.records()] == [DamagedFileError]


def attempted() -> AttemptedRun:
    return AttemptedRun(
        run_id=CELL, status="oom", config=config(), task_title="ListOps", variant_title="Full", dataset="short",
        data_digest="d" * 64,
    )  # fmt: skip


def test_an_attempt_says_what_it_tried_in_either_schema(tmp_path):
    Store(tmp_path).log_attempt(CELL, "oom", "why", {}, attempted())
    (path,) = (tmp_path / "attempts" / CELL).iterdir()
    assert read_attempt(path) == attempted()
    note = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("sha256", "number")}
    tried = note.pop("run")
    old = {"cell_id": tried.pop("run_id"), "data_edition": tried.pop("dataset")} | tried
    del old["variant_title"]
    path.write_text(json.dumps(note | {"schema_version": 1, "cell": old}))
    assert read_attempt(path) == attempted()
    path.parent.rename(tmp_path / "attempts" / ("a" * 64))
    with pytest.raises(StoreError, match="of its folder"):
        read_attempt(tmp_path / "attempts" / ("a" * 64) / path.name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "another file than expected"),
        ("", "another file than expected"),
        ('{"status": "oom", "schema_version": 2}', "does not say what it tried"),
        ('{"status": "oom", "schema_version": 1, "cell": {"run_id": "x"}}', "another file than expected"),
        ('{"status": "oom", "schema_version": 2, "run": {"run_id": "x"}}', "another file than expected"),
    ],
)
def test_a_damaged_note_of_an_attempt_is_named(tmp_path, text, message):
    (tmp_path / "1-host-1.json").write_text(text)
    with pytest.raises(StoreError, match=message):
        read_attempt(tmp_path / "1-host-1.json")


def moved(path, name):
    return path.rename(path.parent / name)


def changed_note(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: moved(path, "3-host-1.json"), "written as attempt 1-"),
        (lambda path: moved(path, f"1-{path.name}"), "written as attempt 1-"),
        (lambda path: moved(path, path.name.replace("1-", "1-other", 1)), "written as attempt 1-"),
        (lambda path: moved(path, path.stem + ".copy.json"), "written as attempt 1-"),
        (lambda path: moved(path, f"../{'a' * 64}/{path.name}"), "at run "),
        (lambda path: changed_note(path, detail="another"), "checksum"),
        (lambda path: changed_note(path, run=None), "checksum"),
        (lambda path: changed_note(path, sha256=None), "checksum"),
    ],
)
def test_a_note_counts_in_its_own_place_and_as_it_was_written(tmp_path, damage, message):
    """A renamed one would change which attempt was the last, and so the status in a table."""
    Store(tmp_path).log_attempt(CELL, "oom", "why", {}, attempted())
    (path,) = (tmp_path / "attempts" / CELL).iterdir()
    (tmp_path / "attempts" / ("a" * 64)).mkdir()
    assert read_note(path)["status"] == "oom"
    damaged = damage(path)
    for read in (read_note, read_attempt):
        with pytest.raises(DamagedFileError, match=message):
            read(damaged)


def test_an_older_note_is_read_and_may_not_say_two_things(tmp_path):
    Store(tmp_path).log_attempt(CELL, "oom", "why", {}, attempted())
    (path,) = (tmp_path / "attempts" / CELL).iterdir()
    note = {name: value for name, value in json.loads(path.read_text()).items() if name not in ("sha256", "number")}
    path.write_text(json.dumps(note))
    assert read_attempt(path) == attempted()
    path.write_text(json.dumps(note | {"status": "failed"}))
    with pytest.raises(DamagedFileError, match="says failed of the attempt, and oom of its run"):
        read_attempt(path)


def test_arrays_of_a_record_that_was_read_are_its_own_or_none(tmp_path):
    """A report reads records first and bits later; in between, another outcome may take the place of the first."""
    store, other = Store(tmp_path / "store"), Store(tmp_path / "other")
    read = store.publish(record(), ARRAYS)
    assert store.arrays_of(read).keys() == ARRAYS.keys()
    bits = {"test_correct": np.array([False, True, True, True])}
    other.publish(record(), ARRAYS | bits)
    for place in (Store.record_path, Store.arrays_path):
        place(store, CELL).write_bytes(place(other, CELL).read_bytes())
    assert store.arrays(CELL)["test_correct"].tolist() == [False, True, True, True]
    with pytest.raises(DamagedFileError, match="not what its record says"):
        store.arrays_of(read)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("step", [5.0, 5.0]), ("step", [5.0, 4.0]), ("step", [5.0, np.nan]), ("step", [5.0, np.inf]),
        ("step", [5.0, 1e6]), ("step", [-1.0, 5.0]), ("validation_correct", [3.0, -1.0]),
        ("validation_correct", [3.0, np.nan]),
    ],
)  # fmt: skip
def test_a_curve_that_no_run_has_is_refused(column, values):
    check_arrays(record(), ARRAYS)
    with pytest.raises(ValueError, match="its learning curve has"):
        check_arrays(record(), ARRAYS | {f"curve.{column}": np.array(values)})


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


def edited(store, path, value, seal=True):
    """Edit one field of the record as a person might, with a fresh checksum; without the seal as before it existed."""
    if not seal:
        content = pack_arrays(ARRAYS)
        store.arrays_path(CELL).write_bytes(content)
        edited(store, "arrays_sha256", hashlib.sha256(content).hexdigest())
    file = store.record_path(CELL)
    body = json.loads(file.read_bytes())["record"]
    *parents, name = path.split(".")
    place = body
    for key in parents:
        place = place[key]
    place[name] = value
    file.write_bytes(pack_envelope("record", body))


EDITS = {
    "run_id": "f" * 64, "status": "diverged", "config.seed": 7, "config.train.lr": 0.5, "config.variant.name": "linear",
    "numerics_version": 3, "data_digest": "a" * 64, "outcome.test.correct": 4, "outcome.test.total": 5,
    "outcome.validation.correct": 4, "outcome.selected_step": 6, "outcome.validation.loss": 1e308,
    "outcome.test.loss": -1.0, "outcome.weights_digest": "none", "outcome": None, "cost.parameters": 0,
    "cost.wall_seconds": -2.0, "cost.tokens_per_second": 0.0, "cost.peak_memory_bytes": -1, "baselines.chance": 101.0,
    "arrays_sha256": "a" * 64, "finished_at": "yesterday", "schema_version": 0,
}  # fmt: skip
ONLY_THE_SEAL_SEES = {
    "outcome.test.loss": 0.25, "outcome.validation.total": 3, "outcome.weights_digest": "f" * 64,
    "baselines.chance": 11.0, "dataset": "long",
}  # fmt: skip


@pytest.mark.parametrize(("path", "value"), [*EDITS.items(), *ONLY_THE_SEAL_SEES.items()])
def test_an_edited_record_with_a_fresh_checksum_is_named_not_believed(tmp_path, path, value):
    store = Store(tmp_path)
    store.publish(record(), ARRAYS)
    for seal in (True, False):
        edited(store, path, value, seal=seal)
        if seal or EDITS.get(path) == value:
            with pytest.raises(StoreError, match=CELL):
                store.find(CELL)
            assert [type(entry) for entry in store.records()] == [DamagedFileError]


def test_a_record_under_the_name_of_another_seed_is_not_that_seeds(tmp_path):
    store, others = Store(tmp_path), []
    for seed in (0, 1):
        of = config(seed=seed)
        others.append(store.publish(record(config=of, run_id=of.run_id("d" * 64)), ARRAYS))
    first, second = (store.record_path(other.run_id) for other in others)
    first.write_bytes(second.read_bytes())
    with pytest.raises(StoreError, match="holds the record of another run"):
        store.find(others[0].run_id)
    found = list(store.records())
    assert [entry for entry in found if isinstance(entry, RunRecord)] == [others[1]]
    assert len(found) == 2


@pytest.mark.parametrize("check", ["check_arrays", "_own_id"])
def test_without_its_checks_a_forged_record_is_believed(tmp_path, monkeypatch, check):
    """The broken twins: a reader that trusts the name, or the bits."""
    store = Store(tmp_path)
    store.publish(record(), ARRAYS)
    if check == "check_arrays":
        edited(store, "outcome.test.correct", 4, seal=False)
        monkeypatch.setattr(records, "check_arrays", lambda *_: None)
        assert store.find(CELL).outcome.test.correct == 4
    else:
        edited(store, "config.seed", 7)
        monkeypatch.setattr(records, "_own_id", lambda *_: CELL)
        assert store.find(CELL).config.seed == 7


@pytest.mark.parametrize(
    "wrong",
    [
        {"test_correct": np.ones(4, bool)},
        {"test_correct": np.ones(3, bool)},
        {"test_correct": np.array([1, 0, 1, 1])},
        {"test_correct": None},
        {"curve.validation_correct": np.array([3.0, 4.0])},
        {"curve.validation_correct": np.array([3.0])},
        {"curve.step": np.array([4.0, 6.0])},
        {"curve.validation_loss": np.array([0.7, 0.5])},
        {"curve.step": None},
        {"foreign": np.zeros(2)},
        {"curve.foreign": np.zeros((2, 1))},
    ],
)
def test_arrays_that_contradict_their_record_are_refused(tmp_path, monkeypatch, wrong):
    store = Store(tmp_path)
    arrays = {name: array for name, array in (ARRAYS | wrong).items() if array is not None}
    with pytest.raises((ValueError, KeyError)):
        store.publish(record(), arrays)
    assert not list(tmp_path.rglob("*.npz"))
    with monkeypatch.context() as unchecked:
        unchecked.setattr(records, "check_arrays", lambda *_: None)
        store.publish(record(), arrays)
    with pytest.raises(StoreError, match=f"{CELL}.npz: damaged, or another file than expected"):
        store.find(CELL)


def test_what_no_reader_survives_is_one_line(tmp_path):
    store = Store(tmp_path)
    store.publish(record(), ARRAYS)
    path = store.record_path(CELL)
    deep = "[" * 100_000 + "]" * 100_000
    nested = json.loads('{"a": ' * 50 + "1" + "}" * 50)
    body = json.loads(path.read_bytes())["record"]
    hostile = [deep, '{"record": ' + deep + "}", "9" * 10_000, "NaN", '{"record": {}, "sha256": 1}', '"\\ud800"']
    hostile.append(pack_envelope("record", body | {"environment": nested}).decode())
    for text in hostile:
        path.write_text(text)
        with pytest.raises(StoreError, match=CELL) as caught:
            store.find(CELL)
        assert "\n" not in str(caught.value)
    path.unlink()
    os.mkfifo(path)  # must not be waited for
    with pytest.raises(StoreError, match="a pipe, not a file"):
        store.find(CELL)


def test_hidden_files_beside_records_are_passed_over(tmp_path):
    store = Store(tmp_path)
    published = store.publish(record(), ARRAYS)
    path = store.record_path(CELL)
    path.with_name(f"._{path.name}").write_bytes(b"Mac OS X")
    assert list(store.records()) == [published]


def test_arrays_are_packed_under_their_names_alone():
    """NumPy 2.0 would take an argument of later versions for one more array."""
    with np.load(io.BytesIO(pack_arrays(ARRAYS))) as packed:
        assert set(packed.files) == set(ARRAYS)


def test_arrays_that_unpack_to_gigabytes_are_refused_in_little_memory():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("test_correct.npy", "w") as file:
        for _ in range(100):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    with pytest.raises(ValueError, match="unpacks to more than"):
        unpack_arrays(buffer.getvalue())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(buffer.getvalue()) < 1 << 20
    assert peak < 8 << 20
    packed = pack_arrays(ARRAYS)
    assert all((unpack_arrays(packed)[name] == array).all() for name, array in ARRAYS.items())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY", b"no archive", b"PK\x05\x06" + bytes(18)])
def test_arrays_that_are_none_are_named(tmp_path, content):
    store = Store(tmp_path)
    published = store.publish(record(), ARRAYS)
    store.arrays_path(CELL).write_bytes(content)
    changed = published.model_copy(update={"arrays_sha256": hashlib.sha256(content).hexdigest()})
    store.record_path(CELL).write_bytes(pack_envelope("record", changed.model_dump()))
    with pytest.raises(DamagedFileError) as caught:
        store.arrays(CELL)
    assert str(store.arrays_path(CELL)) in str(caught.value)
    assert "\n" not in str(caught.value)
