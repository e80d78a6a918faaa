"""Leases: one holder at a time, takeover from dead holders, and no trust in anything but signs of life."""

import json
import multiprocessing
import os
import shutil
import signal
import threading
import time

import pytest

from lra.results import lease

CELL = "ab" * 32


@pytest.fixture
def quick_beats(monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lease, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.01)


def change(root, **values):
    path = root / "leases" / CELL
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def leftovers(root):
    return [path.name for path in (root / "leases").iterdir() if path.name != ".takeover"]


def test_one_owner_at_a_time(tmp_path):
    with lease.acquire(tmp_path, CELL) as first:
        assert first
        assert lease.holder(tmp_path, CELL)["pid"] == os.getpid()
        with lease.acquire(tmp_path, CELL) as second:
            assert not second
        assert lease.holder(tmp_path, CELL)  # the loser leaves the owner's claim where it is
    assert lease.holder(tmp_path, CELL) is None
    assert leftovers(tmp_path) == []


def hold_until_killed(root, ready):
    with lease.acquire(root, CELL) as ours:
        ready.put(ours)
        time.sleep(600)


def test_a_killed_owner_on_this_host_is_replaced_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.SimpleQueue()
    process = context.Process(target=hold_until_killed, args=(tmp_path, ready))
    process.start()
    assert ready.get()
    assert lease.holder(tmp_path, CELL)["pid"] == process.pid
    with lease.acquire(tmp_path, CELL) as ours:
        assert not ours
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert lease.holder(tmp_path, CELL) is None
    with lease.acquire(tmp_path, CELL) as ours:
        assert ours
    assert leftovers(tmp_path) == []


def test_a_pid_that_was_used_again_is_not_the_owner(tmp_path):
    with lease.acquire(tmp_path, CELL) as ours:
        assert ours
        change(tmp_path, start="1")
        assert lease.holder(tmp_path, CELL) is None
        with lease.acquire(tmp_path, CELL) as taken:
            assert taken


def test_an_owner_whose_process_the_system_hides_is_alive_while_its_counter_moves(tmp_path, quick_beats, monkeypatch):
    with lease.acquire(tmp_path, CELL):
        change(tmp_path, pid=2**22 + 1, token="theirs")
        assert lease.holder(tmp_path, CELL) is None
        monkeypatch.setattr(os, "kill", lambda pid, number: (_ for _ in ()).throw(PermissionError))
        assert lease.holder(tmp_path, CELL)
        content, stop = json.loads((tmp_path / "leases" / CELL).read_text()), threading.Event()
        arguments = (tmp_path / "leases" / CELL, content, lease.Progress(3, 9), stop)
        beat = threading.Thread(target=lease._heartbeat, args=arguments)
        beat.start()
        with lease.acquire(tmp_path, CELL) as ours:
            assert not ours
        stop.set()
        beat.join()
        with lease.acquire(tmp_path, CELL) as ours:
            assert ours


def test_a_copy_of_a_lease_is_held_by_nobody(tmp_path):
    first, second, other = tmp_path / "first", tmp_path / "second", "cd" * 32
    (tmp_path / "link").symlink_to(first)
    with lease.acquire(first, CELL):
        shutil.copytree(first, second)
        shutil.copy(first / "leases" / CELL, first / "leases" / other)
        assert lease.holder(tmp_path / "link", CELL)["pid"] == os.getpid()
        for root, run in ((second, CELL), (first, other)):
            assert lease.holder(root, run) is None
            with lease.acquire(root, run) as ours:
                assert ours
        assert lease.holder(first, CELL)["pid"] == os.getpid()
        change(first, mounts="mnt:[1]", store=str(second))  # as in a container, whose paths are others
        assert lease.holder(first, CELL)
        with lease.acquire(first, CELL) as ours:
            assert not ours
        path = first / "leases" / CELL
        path.write_text(
            json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "store"})
        )
        assert lease.holder(first, CELL)  # it says less than today's


def test_an_owner_elsewhere_is_alive_while_its_counter_moves(tmp_path, quick_beats):
    with lease.acquire(tmp_path, CELL):
        content = json.loads((tmp_path / "leases" / CELL).read_text()) | {"host": "elsewhere", "token": "theirs"}
        stop = threading.Event()
        beat = threading.Thread(
            target=lease._heartbeat, args=(tmp_path / "leases" / CELL, content, lease.Progress(3, 9), stop)
        )
        change(tmp_path, host="elsewhere", token="theirs")
        beat.start()
        with lease.acquire(tmp_path, CELL) as ours:
            assert not ours
        stop.set()
        beat.join()
        owner = lease.holder(tmp_path, CELL)
        assert (owner["host"], owner["step"], owner["steps"]) == ("elsewhere", 3, 9)


def test_an_owner_elsewhere_whose_counter_stands_still_is_replaced(tmp_path, quick_beats, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)  # the wall clock may say what it likes
    with lease.acquire(tmp_path, CELL):
        pass
    (tmp_path / "leases" / CELL).write_text(json.dumps({"host": "elsewhere", "token": "theirs", "beat": 7}))
    with lease.acquire(tmp_path, CELL, give_up=lambda: True) as ours:
        assert not ours
    with lease.acquire(tmp_path, CELL) as ours:
        assert ours
    assert leftovers(tmp_path) == []


def test_a_damaged_claim_is_replaced_once_it_has_stood_still(tmp_path, quick_beats):
    (tmp_path / "leases").mkdir()
    (tmp_path / "leases" / CELL).write_bytes(b"\x00garbage")
    with lease.acquire(tmp_path, CELL) as ours:
        assert ours


def test_a_claim_that_cannot_be_read_is_held_and_the_reason_told(tmp_path, quick_beats, closed_to_us):
    with lease.acquire(tmp_path, CELL):
        path = tmp_path / "leases" / CELL
        closed_to_us(path)
        assert lease.holder(tmp_path, CELL) == {"unread": f"its lease cannot be read: {path}: Permission denied"}
        assert not lease._dead(path, lease._read(path), lambda: False)  # though it stands still
        with lease.acquire(tmp_path, CELL) as ours:
            assert not ours
        assert path.is_file()


def test_a_claim_that_cannot_be_read_is_not_removed_in_place_of_a_damaged_one(tmp_path, closed_to_us):
    """As where another user was faster to take it over."""
    with lease.acquire(tmp_path, CELL):
        path = tmp_path / "leases" / CELL
        closed_to_us(path)
        lease._break_stale(path, None)
        assert path.is_file()


@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_a_claim_is_not_waited_for(tmp_path):
    path = tmp_path / "leases" / CELL
    path.parent.mkdir()
    os.mkfifo(path)
    assert lease.holder(tmp_path, CELL) == {"unread": f"its lease cannot be read: {path}: a pipe, not a file"}
    with lease.acquire(tmp_path, CELL) as ours:
        assert not ours


def test_an_owner_that_was_replaced_leaves_the_new_claim_alone(tmp_path, quick_beats):
    with lease.acquire(tmp_path, CELL) as ours:
        assert ours
        change(tmp_path, token="theirs", beat=1)
        time.sleep(0.1)
    assert json.loads((tmp_path / "leases" / CELL).read_text())["beat"] == 1


def race(root, rounds, barrier, wins):
    for number in range(rounds):
        barrier.wait()
        with lease.acquire(root, f"{number:064x}") as ours:
            if ours:
                with wins.get_lock():
                    wins[number] += 1
            barrier.wait()


@pytest.mark.parametrize("rounds", [40, pytest.param(200, marks=pytest.mark.nightly)])
def test_eight_processes_many_rounds_one_owner_each(tmp_path, rounds):
    context = multiprocessing.get_context("fork")
    barrier, wins = context.Barrier(8), context.Array("i", rounds)
    for number in range(0, rounds, 4):  # every fourth is left by a process that is dead
        with lease.acquire(tmp_path, f"{number:064x}"):
            path = tmp_path / "leases" / f"{number:064x}"
            content = json.loads(path.read_text()) | {"pid": 2**22 + 1}
        path.write_text(json.dumps(content))
    racers = [context.Process(target=race, args=(tmp_path, rounds, barrier, wins)) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * 8
    assert list(wins) == [1] * rounds
    assert leftovers(tmp_path) == []
