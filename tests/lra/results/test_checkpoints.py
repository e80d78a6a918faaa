"""Checkpoints: whole or refused, the newest first, and the same weights give the same digest."""

import hashlib
import os
import pickle
import random

import pytest
import torch

from lra.errors import StoreError
from lra.results.checkpoints import (
    list_checkpoints,
    newest_checkpoint,
    read_state,
    save_checkpoint,
    weights_digest,
    write_state,
)

RUN = "ab" * 32


def state(step, run_id=RUN):
    return {
        "run_id": run_id,
        "environments": [{"threads": 1}],
        "state": {"step": step},
        "step": step,
        "model": {"w": torch.full((64,), float(step))},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(64)}}, "param_groups": [{"lr": 0.1}]},
        "note": [1.5, None, "text"],
    }


def test_round_trip_keeps_the_two_newest(tmp_path):
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, state(step))
    assert [step for step, _ in list_checkpoints(tmp_path)] == [30, 20]
    found, passed_over = newest_checkpoint(tmp_path, RUN)
    assert passed_over == []
    assert found["step"] == 30
    assert found["note"] == [1.5, None, "text"]
    assert torch.equal(found["model"]["w"], torch.full((64,), 30.0))
    assert {path.name for path in tmp_path.iterdir()} == {"step-000000020.pt", "step-000000030.pt"}


def test_checkpoints_of_later_steps_that_were_put_there_do_not_cost_the_own_ones(tmp_path):
    save_checkpoint(tmp_path, 10, state(10))
    for step in (39, 40):
        write_state(tmp_path / f"step-{step:09d}.pt", state(step, run_id="cd" * 32))
    for step in (20, 30):
        save_checkpoint(tmp_path, step, state(step))
    assert [step for step, _ in list_checkpoints(tmp_path)] == [40, 39, 30, 20]
    assert newest_checkpoint(tmp_path, RUN)[0]["step"] == 30


@pytest.mark.parametrize("trials", [300, pytest.param(1000, marks=pytest.mark.nightly)])
def test_every_flip_and_truncation_is_detected_and_the_older_one_used(tmp_path, trials):
    older = save_checkpoint(tmp_path, 1, state(1))
    newer = save_checkpoint(tmp_path, 2, state(2))
    whole, rng = newer.read_bytes(), random.Random(0)
    for trial in range(trials):
        damaged = bytearray(whole)
        if trial % 2:
            damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        else:
            del damaged[rng.randrange(len(whole)) :]
        newer.write_bytes(damaged)
        found, passed_over = newest_checkpoint(tmp_path, RUN)
        assert found is not None
        assert found["step"] == 1
        assert len(passed_over) == 1
    newer.write_bytes(whole)
    older.write_bytes(b"")
    assert newest_checkpoint(tmp_path, RUN)[0]["step"] == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (state(2, run_id="cd" * 32), "is of another run, cdcdcdcdcdcd"),
        (state(1), "is of step 1"),
        ({"step": 2}, "another file than expected: 'run_id'"),
        ({"run_id": RUN, "state": 3}, "another file than expected"),
        ([RUN], "another file than expected"),
        (state(2) | {"environments": []}, "does not say in which environment it was saved"),
        ({"run_id": RUN, "state": {"step": 2}}, "does not say in which environment it was saved"),
    ],
)
def test_a_whole_checkpoint_of_another_run_or_step_is_passed_over(tmp_path, wrong, message):
    save_checkpoint(tmp_path, 1, state(1))
    write_state(tmp_path / "step-000000002.pt", wrong)
    found, passed_over = newest_checkpoint(tmp_path, RUN)
    assert found["step"] == 1
    assert len(passed_over) == 1
    assert message in passed_over[0]


def without(values, place):
    """Return nested values without one part."""
    name, *rest = place
    if rest:
        inner = without(values[name], rest)
        return [inner] if isinstance(values, list) else {**values, name: inner}
    return {key: value for key, value in values.items() if key != name}


@pytest.mark.parametrize(
    ("place", "named"),
    [
        (["model"], "no model"),
        (["optimizer"], "no optimizer"),
        (["note"], "no note (3)"),
        (["model", "w"], "no model/w (64,)"),
        (["optimizer", "state", 0], "no optimizer/state/0"),
        (["optimizer", "state", 0, "exp_avg"], "no optimizer/state/0/exp_avg (64,)"),
        (["optimizer", "param_groups", 0, "lr"], "no optimizer/param_groups/0/lr"),
    ],
)
def test_a_checkpoint_that_lacks_a_part_is_passed_over(tmp_path, place, named):
    save_checkpoint(tmp_path, 1, state(1))
    newer = save_checkpoint(tmp_path, 2, state(2))
    write_state(newer, without(read_state(newer), place))
    found, [line] = newest_checkpoint(tmp_path, RUN)
    assert found["step"] == 1
    assert line == f"{newer} is not whole: it has {named}"


def test_a_checkpoint_from_before_parts_were_listed_is_used(tmp_path):
    write_state(tmp_path / "step-000000002.pt", state(2))
    assert newest_checkpoint(tmp_path, RUN)[0]["step"] == 2


def closed(path, patch, close):
    close(path)
    return "Permission denied"


def behind_a_link(path, patch, close):
    path.unlink()
    path.symlink_to(path.parent / "unmounted")
    return "a link to what is not there"


def larger_than_memory(path, patch, close):
    def refuse(*arguments, **options):
        raise MemoryError

    patch.setattr(torch, "load", refuse)
    return "reading it takes more memory than there is"


def larger_than_memory_for_torch(path, patch, close):
    def refuse(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. Error code 12")

    patch.setattr(torch, "load", refuse)
    return "reading it takes more memory than there is"


@pytest.mark.parametrize("refuse", [closed, behind_a_link, larger_than_memory, larger_than_memory_for_torch])
def test_a_checkpoint_that_cannot_be_read_ends_the_run_and_keeps_its_name(tmp_path, monkeypatch, closed_to_us, refuse):
    save_checkpoint(tmp_path, 1, state(1))
    newer = save_checkpoint(tmp_path, 2, state(2))
    words = refuse(newer, monkeypatch, closed_to_us)
    with pytest.raises(StoreError) as caught:
        newest_checkpoint(tmp_path, RUN)
    assert str(caught.value) == f"{newer}: {words}"
    assert list_checkpoints(tmp_path)[0] == (2, newer)


def test_what_was_passed_over_does_not_count_as_newer(tmp_path):
    """Three damaged files of later steps would otherwise have the next one that is saved removed at once."""
    for step in (7, 8, 9):
        (tmp_path / f"step-{step:09d}.pt").write_bytes(b"")
    assert newest_checkpoint(tmp_path, RUN)[0] is None
    save_checkpoint(tmp_path, 1, state(1))
    assert newest_checkpoint(tmp_path, RUN)[0]["step"] == 1
    assert len(list(tmp_path.glob("*.refused"))) == 3


def test_plain_torch_load_would_not_notice(tmp_path):
    """The broken twin of the trailer: without it, a flipped weight loads as if nothing had happened."""
    path = tmp_path / "plain.pt"
    torch.save({"w": torch.zeros(4096)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert torch.load(path, weights_only=True)["w"].abs().sum() > 0


def test_hostile_pickle_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (os.system, ("touch pwned",))

    body = pickle.dumps(Hostile(), protocol=2)
    (tmp_path / "step-000000001.pt").write_bytes(body + b"LRA-SHA256\x00" + hashlib.sha256(body).digest())
    with pytest.raises(StoreError, match="more than tensors"):
        read_state(tmp_path / "step-000000001.pt")


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1))

    def no_space(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(StoreError, match="No space left"):
        save_checkpoint(tmp_path, 2, state(2))
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path, RUN)[0]["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.pt"]


def test_digest_sees_values_names_shapes_and_types():
    base = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
    digests = {
        weights_digest(weights)
        for weights in (
            base,
            {**base, "a": torch.arange(4.0).flip(0)},
            {**base, "b": torch.ones(4)},
            {**base, "b": torch.ones(2, 2, dtype=torch.float64)},
            {"c": base["a"], "b": base["b"]},
        )
    }
    assert len(digests) == 5
    assert weights_digest(dict(reversed(base.items()))) == weights_digest(base)


@pytest.mark.parametrize("body", [b"", b"PK\x03\x04", b"no archive at all", b"\x80\x02}.", b"PK\x05\x06" + bytes(18)])
def test_a_right_checksum_over_a_body_that_nothing_reads_is_damage(tmp_path, body):
    save_checkpoint(tmp_path, 1, state(1))
    newer = save_checkpoint(tmp_path, 2, state(2))
    newer.write_bytes(body + b"LRA-SHA256\x00" + hashlib.sha256(body).digest())
    found, passed_over = newest_checkpoint(tmp_path, RUN)
    assert found["step"] == 1
    assert len(passed_over) == 1
    assert str(newer) in passed_over[0]
    assert "\n" not in passed_over[0]
