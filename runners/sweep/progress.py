# SPDX-License-Identifier: Apache-2.0
"""Progress of a running sweep: bars on a terminal, lines in a log elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tqdm import tqdm

from lra.results.records import Store
from lra.terminal import clean_line

from ..progress import print_line
from .state import RunState, SweepRun, state_of

TERMINAL_SECONDS = 1.0
"""Time between two updates of the bars."""
LOG_SECONDS = 60.0
"""Time between two summaries in a log."""


class SweepView:
    """Prints a line for each attempt that ended; a terminal also shows a bar for the sweep and one per running run.

    Args:
        store: Where the steps of the runs are read.
        total: Number of runs in the sweep.
        done: Number of runs that were final at the start.
    """

    def __init__(self, store: Store, *, total: int, done: int) -> None:
        self.store, self.total, self.done, self.first_done = store, total, done, done
        self.terminal = sys.stderr.isatty()
        self.started = self.last = time.monotonic()
        self.main: tqdm[Any] | None = None
        self.bars: dict[str, tqdm[Any]] = {}

    def __enter__(self) -> SweepView:
        """Show the bar of the whole sweep."""
        if self.terminal:
            self.main = tqdm(total=self.total, initial=self.done, desc="runs", unit="run", dynamic_ncols=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the bars."""
        for bar in [*self.bars.values(), *([self.main] if self.main is not None else [])]:
            bar.close()

    def finished(self, run: SweepRun, state: RunState) -> None:
        """Print how an attempt ended."""
        if state.final:
            self.done += 1
        again = "" if state.final or state.word != "failed" else f" (attempt {state.failures}, will be repeated)"
        detail = f": {state.detail}" if state.detail else ""
        self.say(f"[{self.done}/{self.total}] {run.label}: {state.word}{detail}{again}")

    def tick(self, running: Sequence[SweepRun], waiting: int) -> None:
        """Show the steps of the running runs, if the last update is old enough."""
        now = time.monotonic()
        if now - self.last < (TERMINAL_SECONDS if self.terminal else LOG_SECONDS):
            return
        self.last = now
        steps = {run.label: (state_of(self.store, run).step, run.config.train.steps) for run in running}
        if self.main is not None:
            self._draw(self.main, steps)
            return
        parts = "; ".join(f"{label} at {step}/{total}" for label, (step, total) in steps.items())
        self.say(f"{self.done} of {self.total} done, {len(running)} running, {waiting} waiting{self._left()}. {parts}")

    def say(self, text: str) -> None:
        """Print a line."""
        print_line(text)

    def _left(self) -> str:
        finished = self.done - self.first_done
        if finished == 0:
            return ""
        seconds = (time.monotonic() - self.started) / finished * (self.total - self.done)
        return f", about {seconds / 60:.0f} min left"

    def _draw(self, main: tqdm[Any], steps: dict[str, tuple[int, int]]) -> None:
        for label in self.bars.keys() - steps.keys():
            self.bars.pop(label).close()
        for label, (step, total) in steps.items():
            if label not in self.bars:
                # tqdm stores positions negated; a new bar takes the first free line below the main one.
                taken = {abs(bar.pos) for bar in self.bars.values()}
                position = next(number for number in range(1, len(taken) + 2) if number not in taken)
                self.bars[label] = tqdm(
                    total=total, desc=clean_line(label), unit="step", leave=False, position=position, dynamic_ncols=True
                )
            self.bars[label].n = step
            self.bars[label].refresh()
        main.n = self.done
        main.refresh()
