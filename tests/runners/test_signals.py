"""What Ctrl-C does: commands that save their state say so, the others end at once."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading

import pytest
from click.testing import CliRunner

from runners import signals
from runners.cli import sweep as sweep_command


@pytest.fixture
def installed(monkeypatch):
    """The handlers as a command installs them; afterwards as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    monkeypatch.setattr(signals, "_requested", [])
    signals.install()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("installed")
def test_the_first_ctrl_c_is_noted_and_says_what_a_second_does(capfd):
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.stop_requested()
    assert "Ctrl-C again stops at once" in capfd.readouterr().err


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_are_noted_silently(capfd, number):
    os.kill(os.getpid(), number)
    assert signals.stop_requested()
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("installed")
def test_a_hangup_that_nohup_ignores_stays_ignored_and_others_act_again_after():
    signals.uninstall()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signals.install()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGHUP)
    assert not signals.stop_requested()
    signals.uninstall()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.usefixtures("installed")
def test_a_platform_without_hangups_has_the_other_two(monkeypatch):
    signals.uninstall()
    monkeypatch.setattr(signals, "HANGUP", None)
    signals.install()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.stop_requested()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["plan", "status", "retry", "gc"])
def test_commands_without_a_state_end_at_once(name, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep_command, "_runs", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    done = CliRunner().invoke(sweep_command.command, [name, "quick", "--store", str(tmp_path)])
    assert done.exit_code == 130
    assert "Stopped" in done.output
    assert not signals.stop_requested()


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("section", [signals.stop_at_once, contextlib.nullcontext])
def test_a_signal_ends_a_wait_for_a_lock_that_has_no_state_to_save(tmp_path, section):
    error = None
    with (tmp_path / "lock").open("w") as held, (tmp_path / "lock").open("w") as wanted:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        late = threading.Timer(20.0 if section is signals.stop_at_once else 0.5, fcntl.flock, (held, fcntl.LOCK_UN))
        late.start()
        try:
            with section():
                fcntl.flock(wanted, fcntl.LOCK_EX)
        except signals.StoppedError as stopped:
            error = stopped
        late.cancel()
        late.join()
    assert signals.stop_requested()
    # Without it, the wait goes on until the lock is free.
    assert getattr(error, "exit_code", None) == (75 if section is signals.stop_at_once else None)


@pytest.mark.usefixtures("installed")
def test_what_begins_after_a_request_to_stop_ends_before_it_does_anything():
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(signals.StoppedError), signals.stop_at_once():
        pytest.fail("this must not run")
    os.kill(os.getpid(), signal.SIGTERM)  # outside of the block, a signal is noted only


@pytest.mark.usefixtures("installed")
def test_a_stop_is_not_taken_for_a_fault_of_what_is_read():
    with pytest.raises(signals.StoppedError), signals.stop_at_once(), contextlib.suppress(Exception):
        os.kill(os.getpid(), signal.SIGTERM)


TWO_CTRL_C = """
import os, signal, subprocess, sys
from runners import signals
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
signals.install()
signals.children.add(child.pid)
os.kill(os.getpid(), signal.SIGINT)
os.kill(os.getpid(), signal.SIGINT)
"""


def test_two_ctrl_c_leave_no_child_behind():
    """The child holds the output open, so that `run` returns only when it has ended too."""
    done = subprocess.run([sys.executable, "-c", TWO_CTRL_C], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
