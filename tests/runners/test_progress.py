"""The progress of a run: one line that fits the terminal, or plain lines in a log."""

import io
import os
import pty
import sys
import termios

import pytest

from lra.metrics import Score
from runners import progress
from runners.progress import ProgressLine, fit
from runners.train.loop import TrainState

NUMBERS = ["loss 1.264", "train 52.6 %", "best val 51.3 %"]
REST = ["3 s left", "step 1360/1500", "2977 examples/s"]


@pytest.mark.parametrize(
    ("title", "columns", "expected"),
    [
        ("full, seed 0", 60, "full, seed 0: loss 1.264, train 52.6 %, best val 51.3 %"),
        ("contextpool, seed 0", 60, "contextpool, s...: loss 1.264, train 52.6 %, best val 51.3 %"),
        ("contextpool, seed 0", 80, "contextpool, seed 0: loss 1.264, train 52.6 %, best val 51.3 %, 3 s left"),
        (
            "contextpool, seed 0",
            120,
            "contextpool, seed 0: loss 1.264, train 52.6 %, best val 51.3 %, 3 s left, step 1360/1500, 2977 examples/s",
        ),
        ("contextpool, seed 0", 20, "...: loss 1.264, train 52.6 %, best val 51.3 %"),
    ],
)
def test_the_numbers_come_first_and_nothing_is_cut_but_the_title(title, columns, expected):
    assert fit(title, NUMBERS, REST, columns) == expected


def test_what_is_not_known_yet_leaves_no_gap():
    assert fit("full, seed 0", NUMBERS[:1], ["", "step 1/9", ""], 80) == "full, seed 0: loss 1.264, step 1/9"


class Terminal(io.StringIO):
    """Keeps what is written; its width is that of a real terminal."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def fileno(self):
        return self.device

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes stderr a terminal of so many columns."""
    ends = pty.openpty()

    def of(columns):
        termios.tcsetwinsize(ends[1], (24 if columns else 0, columns))
        monkeypatch.setattr(sys, "stderr", Terminal(ends[1]))

    yield of
    for end in ends:
        os.close(end)


def state(step):
    score = Score(correct=513, total=1000, loss=1.0)
    return TrainState(step=step, best_score=score, timed_examples=2977, timed_seconds=1.0)


@pytest.mark.parametrize(("columns", "bars"), [(60, 0), (80, 0), (120, 1)])
def test_a_narrow_terminal_has_the_numbers_and_a_wide_one_a_bar_too(terminal, columns, bars):
    terminal(columns)
    with ProgressLine("contextpool, seed 0", 1500, lambda _: 0, shown=True) as line:
        line.report(state(1360), 1.264, 0.526)
        shown = sys.stderr.getvalue().split("\r")[-1]
    assert all(number in shown for number in NUMBERS)
    assert len(shown) <= columns
    assert shown.count("|") == 2 * bars


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_log_names_the_accuracy_of_training_as_such(capsys):
    with ProgressLine("full, seed 0", 10, lambda _: 0, shown=True) as line:
        line.report(state(5), 1.264, 0.526)
        line.report(state(10), 1.252, 0.531)
    (only,) = lines(capsys)  # the first is too early for a line, the last step always has one
    assert only.startswith("full, seed 0: step 10/10  loss 1.252  train accuracy 53.1 %  ")


def test_a_log_hears_of_an_evaluation_at_the_interval_of_the_steps(capsys, monkeypatch):
    line = ProgressLine("full, seed 0", 10, lambda _: 0, shown=True)
    with line.sub("validation", 2000) as advance:
        advance(300)
        monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
        advance(300)
        monkeypatch.setattr(progress, "PLAIN_SECONDS", 30.0)
        advance(300)
    line.report(state(5), 1.264, 0.526)  # the line of the evaluation counts: this one is too early
    assert lines(capsys) == ["full, seed 0: validation 600/2000"]


def test_a_quiet_run_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with ProgressLine("full, seed 0", 10, lambda _: 0, shown=False) as line, line.sub("validation", 2000) as advance:
        advance(300)
        line.report(state(10), 1.252, 0.531)
    assert lines(capsys) == []


def test_the_time_left_includes_the_scoring_that_follows(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    line = ProgressLine("full, seed 0", 10, lambda step: 300 if step < 10 else 200, shown=True)

    def report(seconds, step):
        now[0] = seconds
        line.report(state(step), 1.0, 0.5)
        return lines(capsys)[-1].split("%  ")[1]

    assert report(0.0, 0) == ""
    assert report(50.0, 5) == "50 s left"  # and 300 examples at a third of the 1 / 2977 s of training
    with line.sub("validation", 100) as advance:
        now[0] = 60.0
        advance(100)
    assert report(110.0, 10) == "20 s left"  # 200 examples, each at the 0.1 s of the pass


@pytest.mark.parametrize(
    ("seconds", "expected"), [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h")]
)
def test_times_are_written_as_a_person_says_them(seconds, expected):
    assert progress.words(seconds) == expected


def test_a_terminal_without_a_size_shows_as_much_as_one_of_80_columns(terminal):
    terminal(0)
    with ProgressLine("contextpool, seed 0", 1500, lambda _: 0, shown=True) as line:
        line.report(state(1360), 1.264, 0.526)
        shown = sys.stderr.getvalue().split("\r")[-1]
    assert all(number in shown for number in ("contextpool, seed 0", *NUMBERS))
