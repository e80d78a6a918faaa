"""Seeded random damage to what a run leaves behind and to what it reads: it is named, or nothing has changed.

Six inputs each by default, `NIGHTLY` in the nightly tests. Each copies a small store or prepared folder, damages one
thing in it, and reads it again.
"""

import contextlib
import hashlib
import json
import random
import shutil

import numpy as np
import pytest

from lra.data.dataset import open_prepared
from lra.data.split import SPLITS
from lra.errors import DataError, StoreError, UsageError
from lra.results import records as records_module
from lra.results.arrays import SEAL, pack_arrays, seal
from lra.results.checkpoints import list_checkpoints, newest_checkpoint, weights_digest
from lra.results.envelope import pack_envelope
from lra.results.records import RunRecord, Store
from reports.cli import make_tables
from reports.result_set import load_stores
from runners.sweep.state import attempts, state_of
from runners.train.run import PreemptedRunError
from tests.reports.synthetic import add_measurement
from tests.runners.tiny_runs import execute, sweep_run, tiny, tiny_data

ATTACKS, NIGHTLY = 40, 250
COUNTS = [6, pytest.param(NIGHTLY, marks=pytest.mark.nightly)]
ODD = [None, True, 0, 1, -1, 3, 2**70, 0.5, -0.0, 1e308, "", "x", "0" * 64, "\ud800", [], {}, [[[]]], {"a": {"b": [1]}}]
PRESETS = ("accuracy", "seeds", "cost", "efficiency", "ranks", "depth")
NEVER_CHECKED = {"cost", "environment", "task_title", "variant_title", "backend", "finished_at", "detail"}
"""Fields of a record that say nothing of its number, and are only required to be well formed."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """Two finished runs, two that were stopped, a failed attempt and a measurement."""
    folder = tmp_path_factory.mktemp("attack")
    data, store = tiny_data(folder / "data"), Store(folder / "store")
    for seed in (0, 1):
        execute(tiny(seed=seed), data, store)
    for seed in (2, 3):
        looks = iter([False] * 5 + [True])
        with pytest.raises(PreemptedRunError):
            execute(tiny(seed=seed), data, store, lambda looks=looks: next(looks), checkpoint_seconds=0.0)
    add_measurement(store.root, "full", 64, seconds=0.5, mib=9)
    return folder, data


def one_line(error):
    assert "\n" not in str(error)


def mangle(path, rng):
    """Damage the bytes of a file."""
    content = bytearray(path.read_bytes())
    kind = rng.randrange(5)
    if kind <= 1:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == 2:
        del content[rng.randrange(len(content)) :]
    elif kind == 3:
        content = bytearray(rng.randbytes(rng.randrange(300)))
    else:
        start = rng.randrange(len(content))
        content[start : start + 8] = rng.randbytes(8)
    path.write_bytes(content)


def edit(body, rng):
    """Give one field, at any depth, another value; return its path."""
    path, here = [], body
    while True:
        key = rng.choice(sorted(here) if isinstance(here, dict) else range(len(here)))
        path.append(key)
        if isinstance(here[key], dict | list) and here[key] and rng.random() < 0.9:
            here = here[key]
            continue
        near = here[key] + rng.choice((-1, 1, 7)) if type(here[key]) in (int, float) else None
        here[key] = rng.choice([*ODD, *([near] * 12 if near is not None else [])])
        return path


def edit_with_checksum(path, kind, rng):
    """Edit a field of a record or measurement as a person might, and make its checksum fit."""
    body = json.loads(path.read_bytes())[kind]
    edit(body, rng)
    try:
        path.write_bytes(pack_envelope(kind, body))
    except (ValueError, UnicodeError):
        path.write_text(json.dumps({kind: body, "sha256": "?"}))


def forge_arrays(store, path, rng):
    """Edit a record, and write its arrays anew so that checksum and seal fit."""
    body = json.loads(path.read_bytes())["record"]
    name = rng.choice(["correct", "total"])
    body["outcome"]["test"][name] += rng.choice((-1, 1))
    file = store.arrays_path(body["run_id"])
    with np.load(file) as archive:
        arrays = {key: archive[key] for key in archive.files} | {SEAL: seal(body)}
    content = pack_arrays(arrays)
    file.write_bytes(content)
    body["arrays_sha256"] = hashlib.sha256(content).hexdigest()
    path.write_bytes(pack_envelope("record", body))


def swap(paths, rng):
    """Put the content of one file in place of another's."""
    first, second = rng.sample(paths, 2)
    first.write_bytes(second.read_bytes())


def damage_store(store, rng):
    results, arrays = sorted(store.root.glob("results/*/*.json")), sorted(store.root.glob("arrays/*/*.npz"))
    others = sorted([*store.root.glob("bench/*.json"), *store.root.glob("attempts/*/*.json")])
    kind = rng.randrange(8)
    if kind <= 1:
        mangle(rng.choice([*results, *arrays, *others]), rng)
    elif kind <= 4:
        edit_with_checksum(rng.choice(results), "record", rng)
    elif kind == 5:
        edit_with_checksum(next(store.root.glob("bench/*.json")), "bench", rng)
    elif kind == 6:
        swap(rng.choice([results, arrays, others]), rng)
    else:
        forge_arrays(store, rng.choice(results), rng)


def said(record):
    """Return what a record says of its number."""
    return {name: value for name, value in record.model_dump().items() if name not in NEVER_CHECKED}


def check_store(store, truth, runs, preset):
    """Every record that is believed says what was found, and all errors are meant for the user."""
    results = load_stores([store.root])
    for run_id, record in results.records.items():
        assert said(record) == truth[run_id]
    with contextlib.suppress(UsageError):  # there are no records of runs left
        make_tables(preset, (), results)
    for run in runs:
        state_of(store, run)
        attempts(store, run.run_id)
        try:
            found = store.find(run.run_id)
            assert found is None or said(found) == truth[run.run_id]
        except StoreError as error:
            one_line(error)


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_store_says_nothing_false(template, tmp_path, count):
    folder, data = template
    original = Store(folder / "store")
    truth = {record.run_id: said(record) for record in original.records()}
    assert len(truth) == 2
    runs, rng = [sweep_run(tiny(seed=seed), data) for seed in range(4)], random.Random(count)
    for number in range(count):
        store = Store(tmp_path / str(number))
        for part in ("results", "arrays", "bench", "attempts"):
            shutil.copytree(original.root / part, store.root / part)
        damage_store(store, rng)
        check_store(store, truth, runs, rng.choice(PRESETS))
        shutil.rmtree(store.root)


def test_a_reader_that_trusts_what_it_reads_is_told_apart(template, tmp_path, monkeypatch):
    """The broken twin: without the checks of what a record says twice, the attack finds something false."""
    monkeypatch.setattr(records_module, "check_arrays", lambda *_: None)
    monkeypatch.setattr(records_module, "SEAL", "no array has this name")
    with pytest.raises(AssertionError):
        test_a_damaged_store_says_nothing_false(template, tmp_path, ATTACKS)


@pytest.mark.parametrize("count", COUNTS)
def test_a_damaged_checkpoint_is_never_continued(template, tmp_path, count):
    folder, data = template
    original, rng = Store(folder / "store"), random.Random(count)
    ids = [tiny(seed=seed).run_id(data.digest) for seed in (2, 3)]
    truth = {}
    for run_id in ids:
        source = original.checkpoint_folder(run_id)
        for step, _ in list_checkpoints(source):
            only = tmp_path / "only"
            shutil.copytree(source, only)
            for other, path in list_checkpoints(only):
                if other != step:
                    path.unlink()
            truth[run_id, step] = weights_digest(newest_checkpoint(only, run_id)[0]["model"])
            shutil.rmtree(only)
    assert len(truth) == 4
    for number in range(count):
        store = Store(tmp_path / str(number))
        shutil.copytree(original.root / "checkpoints", store.root / "checkpoints")
        paths = [path for run_id in ids for _, path in list_checkpoints(store.checkpoint_folder(run_id))]
        if rng.random() < 0.6:
            mangle(rng.choice(paths), rng)
        else:
            swap(paths, rng)
        for run_id in ids:
            state, passed_over = newest_checkpoint(store.checkpoint_folder(run_id), run_id)
            assert all("\n" not in line for line in passed_over)
            if state is not None:
                assert state["run_id"] == run_id
                assert weights_digest(state["model"]) == truth[run_id, state["state"]["step"]]
        shutil.rmtree(store.root)


def damage_data(folder, rng):
    paths = sorted(folder.iterdir())
    kind = rng.randrange(5)
    if kind <= 1:
        mangle(rng.choice(paths), rng)
    elif kind == 2:
        swap(rng.choice([[p for p in paths if part in p.name] for part in ("labels", "tokens", "offsets")]), rng)
    elif kind == 3:
        manifest = json.loads((folder / "manifest.json").read_text())
        edit(manifest, rng)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    else:
        with rng.choice(paths).open("r+b") as file:
            file.truncate(rng.randrange(400))


@pytest.mark.parametrize("count", COUNTS)
def test_damaged_data_is_named_or_is_what_it_was(template, tmp_path, count):
    _, data = template
    rng, before = random.Random(count), data.verified()
    for number in range(count):
        folder = tmp_path / str(number)
        shutil.copytree(data.path, folder)
        damage_data(folder, rng)
        try:
            found = open_prepared(folder, verify=False).verified()
        except DataError as error:
            one_line(error)
        else:
            assert found.manifest == data.manifest
            for name in SPLITS:
                assert np.array_equal(found.split(name).labels, before.split(name).labels)
                for index in range(len(before.split(name))):
                    assert np.array_equal(found.split(name).tokens_of(index), before.split(name).tokens_of(index))
        shutil.rmtree(folder)


@pytest.mark.parametrize("count", COUNTS)
def test_damage_during_a_run_never_reaches_what_it_reads(template, tmp_path, count):
    """The data is damaged between verification and reading: each document is what was hashed, or an error."""
    _, data = template
    rng, before = random.Random(count), data.verified()
    for number in range(count):
        folder = tmp_path / str(number)
        shutil.copytree(data.path, folder)
        given = open_prepared(folder, verify=False).verified()
        damage_data(folder, rng)
        for name in SPLITS:
            split = given.split(name)
            assert np.array_equal(split.labels, before.split(name).labels)
            for index in range(len(split)):
                try:
                    read = split.tokens_of(index)
                except DataError as error:
                    one_line(error)
                else:
                    assert np.array_equal(read, before.split(name).tokens_of(index))
        shutil.rmtree(folder)


def test_the_records_of_the_template_are_sound(template):
    folder, _ = template
    assert [type(entry) for entry in Store(folder / "store").records()] == [RunRecord, RunRecord]
