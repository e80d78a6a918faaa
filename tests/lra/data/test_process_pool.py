"""Worker processes: the order of what they compute, their errors, and their end."""

import itertools
import math
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lra.data.process_pool import in_order
from lra.errors import DataError
from runners import signals

PROGRAM = """
import math
from lra.data.process_pool import in_order
print(sum(in_order(math.factorial, range(6), 2)))
"""
ENDLESS_WORK = """
import os, signal, threading, time
from lra.data.process_pool import in_order
threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
list(in_order(time.sleep, [600, 600], 2))
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_pieces_come_in_order_from_any_number_of_workers(workers):
    pieces = in_order(math.factorial, itertools.count(), workers)
    assert list(itertools.islice(pieces, 7)) == [1, 1, 2, 6, 24, 120, 720]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_in_a_worker_is_raised_here(workers):
    with pytest.raises(ValueError, match="negative"):
        list(in_order(math.factorial, [3, -1], workers))


def test_what_a_function_prints_is_no_answer():
    assert list(in_order(print, [1, 2, 3], 2)) == [None, None, None]


def test_a_worker_that_dies_is_a_data_error():
    with pytest.raises(DataError, match="a worker process died"):
        list(in_order(os._exit, [3, 3], 2))


@pytest.mark.parametrize("place", ["script", pytest.param("standard input", marks=pytest.mark.nightly)])
def test_a_program_without_a_main_guard_can_use_them(place, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(PROGRAM)
    arguments, typed = ([str(script)], None) if place == "script" else (["-"], PROGRAM)
    done = subprocess.run([sys.executable, *arguments], input=typed, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("154\n", "")


def test_a_signal_ends_them_in_the_middle_of_a_piece(monkeypatch):
    """With pieces of ten minutes, this ends only if nobody waits for them."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signals, "_requested", [])
    signal.signal(signal.SIGTERM, signals._note)
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    try:
        with pytest.raises(signals.StoppedError), signals.stop_at_once():
            list(in_order(time.sleep, [600, 600], 2))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_they_do_not_outlive_a_killed_parent():
    """They hold its output open, so that `run` returns only when they have ended too."""
    done = subprocess.run([sys.executable, "-c", ENDLESS_WORK], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL
