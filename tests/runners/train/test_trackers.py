"""Trackers: they get the numbers, and an error in one neither stops nor changes a run."""

import importlib.util
import json
import sys

import pytest

from lra.errors import UsageError
from lra.results.records import Store
from runners.train.trackers import BUILT_IN, check_trackers, open_trackers
from tests.runners.tiny_runs import execute, tiny, tiny_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def outcome(data, tmp_path_factory):
    return execute(tiny(), data, Store(tmp_path_factory.mktemp("plain"))).outcome


def test_the_event_file_is_always_there_and_tells_the_run(data, tmp_path):
    record = execute(tiny(), data, Store(tmp_path))
    lines = (tmp_path / "events" / f"{record.run_id}.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in (events[0], events[-1])] == ["start", "end"]
    assert events[0]["config"]["train"]["steps"] == 6
    validated = {event["step"]: event["validation/loss"] for event in events if "validation/loss" in event}
    curve = Store(tmp_path).arrays(record.run_id)
    assert validated == dict(zip(curve["curve.step"], curve["curve.validation_loss"], strict=True))
    assert any("train/loss" in event for event in events)


class Broken:
    def __init__(self, folder, name, config):
        pass

    def log(self, step, values):
        raise RuntimeError("the server is gone")

    def close(self):
        raise AssertionError("never reached")


class Unmakeable:
    def __init__(self, folder, name, config):
        raise ConnectionError("no network")


class Unclosable:
    def __init__(self, folder, name, config):
        pass

    def log(self, step, values):
        pass

    def close(self):
        raise OSError("no space left")


class Counted:
    """Raises at the second call, and counts how often it is called."""

    calls = 0

    def __init__(self, folder, name, config):
        pass

    def log(self, step, values):
        type(self).calls += 1
        if self.calls == 2:
            raise ValueError("enough")

    def close(self):
        type(self).calls += 100


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        (Broken, "RuntimeError: the server is gone"),
        (Unmakeable, "ConnectionError: no network"),
        (Unclosable, "OSError: no space left"),
    ],
)
def test_an_error_of_a_tracker_is_one_line(data, tmp_path, monkeypatch, capsys, outcome, tracker, message):
    monkeypatch.setitem(BUILT_IN, "mine", tracker)
    assert execute(tiny(), data, Store(tmp_path), trackers=("mine",)).outcome == outcome
    assert f"Tracker mine is off from here on: {message}\n" in capsys.readouterr().err


def test_a_tracker_that_raised_is_not_called_again(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(BUILT_IN, "mine", Counted)
    monkeypatch.setattr(Counted, "calls", 0)
    record = execute(tiny(), data, Store(tmp_path), trackers=("mine",))
    assert Counted.calls == 2
    assert capsys.readouterr().err.count("Tracker mine") == 1
    events = (tmp_path / "events" / f"{record.run_id}.jsonl").read_text().splitlines()
    assert len(events) > 4  # the other one goes on


def test_an_event_file_that_cannot_be_written_stops_nothing(data, tmp_path, capsys, outcome):
    (tmp_path / "events").write_text("a file where the folder should be")
    assert execute(tiny(), data, Store(tmp_path)).outcome == outcome
    assert "Tracker events is off from here on: FileExistsError" in capsys.readouterr().err


PLUGIN = """
class Mine:
    def __init__(self, folder, name, config):
        self.path = folder.parent / "told"

    def log(self, step, values):
        self.path.write_text(str(step))

    def close(self):
        pass
"""


def test_a_plug_in_is_found_by_name_and_not_imported_otherwise(data, tmp_path, monkeypatch):
    info = tmp_path / "site" / "mine-1.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "my_tracker.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[lra.trackers]\nmine = my_tracker:Mine\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    check_trackers(("mine", "wandb"))
    with open_trackers((), tmp_path / "a", "run", tiny()):
        pass
    assert "my_tracker" not in sys.modules
    execute(tiny(), data, Store(tmp_path), trackers=("mine",))
    assert (tmp_path / "told").read_text() == "6"


def test_an_unknown_tracker_is_a_usage_error():
    with pytest.raises(UsageError, match="did you mean 'tensorboard'"):
        check_trackers(("tensorbord",))


@pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="the extra `tensorboard` is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_gets_the_numbers(data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = execute(tiny(), data, Store(tmp_path), trackers=("tensorboard",))
    found = EventAccumulator(str(tmp_path / "tensorboard" / record.run_id)).Reload()
    losses = [event.value for event in found.Scalars("validation/loss")]
    assert losses == pytest.approx(Store(tmp_path).arrays(record.run_id)["curve.validation_loss"].tolist())


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="the extra `wandb` is not installed")
@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_an_offline_run(data, tmp_path):
    execute(tiny(), data, Store(tmp_path), trackers=("wandb",))
    assert list(tmp_path.glob("wandb/wandb/offline-run-*/*.wandb"))
