"""What Ctrl-C does: commands that save their state say so, the others end at once."""

import os
import signal

import pytest
from click.testing import CliRunner

from runners import signals, sweep_command


@pytest.fixture
def installed(monkeypatch):
    """The handlers as a command installs them; afterwards as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
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
def test_sigterm_is_noted_silently(capfd):
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.stop_requested()
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["plan", "status", "retry", "gc"])
def test_commands_without_a_state_end_at_once(name, monkeypatch, tmp_path):
    monkeypatch.setattr(sweep_command, "_cells", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    done = CliRunner().invoke(sweep_command.command, [name, "quick", "--store", str(tmp_path)])
    assert done.exit_code == 1
    assert "Aborted!" in done.output
    assert not signals.stop_requested()
