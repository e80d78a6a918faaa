"""What Ctrl-C does: commands that save their state say so, the others end at once."""

import os
import signal

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
    assert done.exit_code == 1
    assert "Aborted!" in done.output
    assert not signals.stop_requested()
