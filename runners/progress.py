# SPDX-License-Identifier: Apache-2.0
"""Progress of one run: a bar where there is a terminal, a plain line now and then where there is none."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lra.terminal import clean_line, print_above_bars, progress_bar, terminal_size

from .train.loop import TrainState

if TYPE_CHECKING:
    from tqdm import tqdm

PLAIN_SECONDS = 30.0
"""Time between two lines of a plain log."""
TEXT_AND_BAR = "{desc} |{bar}|"
LEAST_BAR = 12
"""Columns that a bar must have left beside the text to be drawn."""


def print_line(text: str) -> None:
    """Print a line on stderr, above any bars; one that cannot be written, as to a closed terminal, is dropped."""
    with contextlib.suppress(OSError):
        print_above_bars(text)


def fit(title: str, numbers: Sequence[str], rest: Sequence[str], columns: int) -> str:
    """Write a line that a terminal can hold: the numbers, whatever it costs the title, then what of the rest fits."""
    text = ", ".join(numbers)
    room = columns - len(text) - len(": ")
    if len(title) > room:
        title = title[: max(0, room - len("..."))] + "..."
    line = f"{title}: {text}"
    for part in filter(None, rest):
        if len(line) + len(", ") + len(part) > columns:
            break
        line += f", {part}"
    return line


def words(seconds: float) -> str:
    """Write a time as a person says it: `17 s`, `12 min`, `3.5 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


class ProgressLine:
    """A bar over the steps of a run with loss, accuracy, speed and time left; with `shown=False` nothing at all.

    Args:
        title: The run.
        steps: Steps of the run.
        to_score: Returns how many examples are still to be scored after a step, in validations and the test.
        shown: Whether to show anything.
    """

    def __init__(self, title: str, steps: int, to_score: Callable[[int], int], *, shown: bool) -> None:
        self.title, self.steps, self.to_score, self.shown = clean_line(title), steps, to_score, shown
        self.terminal = sys.stderr.isatty()
        self.bar: tqdm[Any] | None = None
        self._last_line = time.monotonic()
        self._speed_from: tuple[float, int] | None = None
        self._scoring_seconds, self._scored = 0.0, 0

    def __enter__(self) -> ProgressLine:
        if self.shown and self.terminal:
            self.bar = progress_bar(
                title=self.title, unit="step", total=self.steps, shown=True, layout=TEXT_AND_BAR, keep=False
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def report(self, state: TrainState, loss: float, accuracy: float, phase: str = "train") -> None:
        """Show how far the run is; the phase is `train` or `pretrain`."""
        left = self._left(state)
        if self.bar is not None:
            speed = state.timed_examples / state.timed_seconds if state.timed_seconds > 0 else 0.0
            numbers = [f"loss {loss:.3f}", f"{phase} {100 * accuracy:.1f} %"]
            if state.best_score is not None:
                numbers.append(f"best val {100 * state.best_score.accuracy:.1f} %")
            rest = [left, f"step {state.step}/{self.steps}", f"{speed:.0f} examples/s" if speed else ""]
            columns, _ = terminal_size(sys.stderr)
            text = fit(self.title, numbers, rest, columns)
            self.bar.n = state.step
            self.bar.bar_format = TEXT_AND_BAR if columns - len(text) >= LEAST_BAR else "{desc}"
            self.bar.set_description_str(text)
        elif self._line_due() or state.step == self.steps:
            self.say(
                f"step {state.step}/{self.steps}  loss {loss:.3f}  {phase} accuracy {100 * accuracy:.1f} %  {left}"
            )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.shown:
            print_line(f"{self.title}: {text}")

    @contextlib.contextmanager
    def sub(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how far one pass over a split is, under the bar or as a line; gives the function that advances it."""
        started = time.monotonic()
        if self.bar is None:
            yield self._counter(title, total)
        else:
            with progress_bar(title=title, unit="example", total=total, shown=True, keep=False, position=1) as bar:
                yield lambda count: (bar.update(count), None)[1]
        self._scoring_seconds += time.monotonic() - started
        self._scored += total

    def _counter(self, title: str, total: int) -> Callable[[int], None]:
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if self._line_due():
                self.say(f"{title} {done}/{total}")

        return advance

    def _line_due(self) -> bool:
        """Say whether it is time for a line of a plain log, which is then taken as printed."""
        now = time.monotonic()
        due = now - self._last_line >= PLAIN_SECONDS
        if due:
            self._last_line = now
        return due

    def _left(self, state: TrainState) -> str:
        """Return the time that the steps and the scoring left take at the pace so far, in words; nothing at first."""
        trained = time.monotonic() - self._scoring_seconds
        started, first = self._speed_from = self._speed_from or (trained, state.step)
        if state.step == first:
            return ""
        per_step = (trained - started) / (state.step - first)
        if self._scored:
            per_example = self._scoring_seconds / self._scored
        else:
            # Forward without backward, which is about a third of a step.
            per_example = state.timed_seconds / max(1, state.timed_examples) / 3
        return f"{words((self.steps - state.step) * per_step + self.to_score(state.step) * per_example)} left"
