"""Progress of one run: a bar where there is a terminal, a plain line now and then where there is none."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from tqdm import tqdm

from .loop import TrainState

PLAIN_SECONDS = 30.0
"""Time between two lines of a plain log."""


def print_line(text: str) -> None:
    """Print a line on stderr, above any bars; one that cannot be written, as to a closed terminal, is dropped."""
    with contextlib.suppress(OSError):
        tqdm.write(text, file=sys.stderr)


class ProgressLine:
    """A bar over the steps of a run with loss, accuracy, speed and time left; with `shown=False` nothing at all."""

    def __init__(self, title: str, steps: int, *, shown: bool) -> None:
        self.title, self.steps, self.shown = title, steps, shown
        self.terminal = sys.stderr.isatty()
        self.bar: tqdm[Any] | None = None
        self._last_line = time.monotonic()
        self._speed_from: tuple[float, int] | None = None

    def __enter__(self) -> ProgressLine:
        if self.shown and self.terminal:
            self.bar = tqdm(total=self.steps, desc=self.title, unit="step", dynamic_ncols=True, leave=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.close()

    def report(self, state: TrainState, loss: float, accuracy: float) -> None:
        """Show how far the run is."""
        now = time.monotonic()
        if self._speed_from is None:
            self._speed_from = (now, state.step)
        if self.bar is not None:
            speed = state.timed_examples / state.timed_seconds if state.timed_seconds > 0 else 0.0
            self.bar.n = state.step
            best = "" if state.best_score is None else f", best validation {100 * state.best_score.accuracy:.1f} %"
            self.bar.set_postfix_str(f"loss {loss:.3f}, train {100 * accuracy:.1f} %{best}, {speed:.0f} examples/s")
        elif self.shown and (now - self._last_line >= PLAIN_SECONDS or state.step == self.steps):
            self._last_line = now
            started, first = self._speed_from
            pace = (state.step - first) / max(now - started, 1e-9)
            left = f"{(self.steps - state.step) / pace:.0f} s left" if pace > 0 else ""
            self.say(f"step {state.step}/{self.steps}  loss {loss:.3f}  accuracy {100 * accuracy:.1f} %  {left}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.shown:
            print_line(f"{self.title}: {text}")

    @contextlib.contextmanager
    def sub(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a second bar under the first for one pass over a split; gives the function that advances it."""
        if self.bar is None:
            yield lambda _: None
            return
        with tqdm(total=total, desc=title, unit="example", leave=False, dynamic_ncols=True, position=1) as bar:
            yield lambda count: (bar.update(count), None)[1]
