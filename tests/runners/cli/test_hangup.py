"""A terminal that is closed: its programs get SIGHUP, and every write to it fails from then on."""

import errno
import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time

import pytest
import yaml

from lra.data.process_pool import in_order
from lra.results.records import Store
from runners.progress import ProgressLine
from runners.sweep.progress import SweepView
from tests.runners.cli.test_run import ROOT
from tests.runners.tiny_runs import TINY

LONG = TINY | {"train.steps": 10**6, "train.eval_every": 10**6}


def take_terminal(*, ignored):
    """Return what the new process does first: it makes the terminal on its output its own."""

    def first():
        fcntl.ioctl(2, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    return first


def close_the_terminal(command, ready, *, ignored=False):
    """Start a command in a terminal of its own, close that when `ready(shown)` says so, and return the process."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (24, 120))
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=its, stdout=its, stderr=its, start_new_session=True,
        preexec_fn=take_terminal(ignored=ignored),
    )  # fmt: skip
    os.close(its)
    shown, limit = b"", time.monotonic() + 120
    while not ready(shown):
        assert process.poll() is None, shown.decode()
        assert time.monotonic() < limit, shown.decode()
        if select.select([ours], [], [], 0.05)[0]:
            shown += os.read(ours, 65536)
    os.close(ours)
    return process


def notes(store):
    return [json.loads(path.read_text())["status"] for path in store.glob("attempts/*/*.json")]


def run_command(tmp_path):
    settings = [word for key, value in LONG.items() for word in ("--set", f"{key}={value}")]
    return [
        sys.executable, "-m", "runners.cli.run", "--attn", "full", "--task", "listops", "--profile", "quick",
        "--track", "open", "--device", "cpu", "--threads", "1", "--data-dir", str(tmp_path / "home"),
        "--store", str(tmp_path / "store"), "--checkpoint-seconds", "1e9", *settings,
    ]  # fmt: skip


@pytest.mark.nightly
def test_a_run_saves_its_state_when_its_terminal_is_closed(tmp_path):
    process = close_the_terminal(run_command(tmp_path), lambda shown: b"loss" in shown)
    assert process.wait(60) == 75
    assert notes(tmp_path / "store") == ["preempted"]
    assert len(list(tmp_path.glob("store/checkpoints/*/step-*.pt"))) == 1


@pytest.mark.nightly
def test_a_sweep_saves_its_cells_when_its_terminal_is_closed(tmp_path):
    suite = tmp_path / "mine.yaml"
    suite.write_text(yaml.safe_dump({
        "name": "mine", "title": "", "profile": "quick", "track": "open", "tasks": ["listops"], "seeds": [0],
        "variants": {"full": {}}, "settings": LONG,
    }))  # fmt: skip
    command = [
        sys.executable, "-m", "runners.cli.sweep", "run", str(suite), "--slots", "1", "--threads", "1",
        "--device", "cpu", "--checkpoint-seconds", "0.1",
        "--data-dir", str(tmp_path / "home"), "--store", str(tmp_path / "store"),
    ]  # fmt: skip
    process = close_the_terminal(command, lambda _: list(tmp_path.glob("store/checkpoints/*/step-*.pt")))
    assert process.wait(60) == 75
    assert notes(tmp_path / "store") == ["preempted"]


class Gone(io.StringIO):
    """A terminal that was closed; counts the attempts to write."""

    attempts = 0

    def write(self, text):
        self.attempts += 1
        raise OSError(errno.EIO, "Input/output error")


def test_a_line_that_cannot_be_written_costs_nothing(monkeypatch, tmp_path):
    gone = Gone()
    monkeypatch.setattr(sys, "stderr", gone)
    ProgressLine("full, seed 0", 10, lambda _: 0, shown=True).say("a line")
    SweepView(Store(tmp_path), [], []).say("a line")
    assert gone.attempts == 2


def test_workers_that_generate_data_leave_terminal_and_ctrl_c_to_their_parent():
    sessions = list(in_order(os.getsid, [0, 0], 2))
    assert os.getsid(0) not in sessions
    assert len(set(sessions)) == 2


STEPS = """
import os, signal, sys, time
from runners import signals
signals.install()
open(sys.argv[1], "w").close()
while os.isatty(2):
    time.sleep(0.01)
time.sleep(0.2)
sys.exit(7 if signals.stop_requested() else 9)
"""


@pytest.mark.parametrize(("ignored", "code"), [(False, 7), (True, 9)])
def test_a_closed_terminal_is_a_request_unless_it_is_to_be_ignored(ignored, code, tmp_path):
    ready = tmp_path / "ready"
    process = close_the_terminal([sys.executable, "-c", STEPS, str(ready)], lambda _: ready.exists(), ignored=ignored)
    assert process.wait(30) == code
