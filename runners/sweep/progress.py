# SPDX-License-Identifier: Apache-2.0
"""Progress of a running sweep: bars on a terminal, lines in a log elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lra.results.records import Store
from lra.terminal import progress_bar

from ..progress import print_line, words
from .state import RunState, SweepRun, state_of

if TYPE_CHECKING:
    from tqdm import tqdm

BAR = "{desc}: {n_fmt}/{total_fmt} |{bar}| [{elapsed}{postfix}]"
"""Without the time left that tqdm estimates from runs that ended; see `SweepView`."""

TERMINAL_SECONDS = 1.0
"""Time between two updates of the bars."""
LOG_SECONDS = 60.0
"""Time between two summaries in a log."""


class SweepView:
    """Prints a line for each attempt that ended; a terminal also shows a bar for the sweep and one per running run.

    Args:
        store: Where the steps of the runs are read.
        runs: All runs of the sweep.
        states: Their states at the start.
    """

    def __init__(self, store: Store, runs: Sequence[SweepRun], states: Sequence[RunState]) -> None:
        self.store, self.total, self.done = store, len(runs), sum(state.final for state in states)
        self.terminal = sys.stderr.isatty()
        self.started = self.last = time.monotonic()
        self.main: tqdm[Any] | None = None
        self.bars: dict[str, tqdm[Any]] = {}
        # Steps of all runs; those done at the start; those of the runs that became final since.
        pairs = list(zip(runs, states, strict=True))
        self.steps = sum(run.config.train.steps for run in runs)
        self.steps_before = sum(run.config.train.steps if state.final else state.step for run, state in pairs)
        self.steps_final = sum(run.config.train.steps for run, state in pairs if state.final)

    def __enter__(self) -> SweepView:
        """Show the bar of the whole sweep."""
        if self.terminal:
            self.main = progress_bar(
                title="runs", unit="run", total=self.total, start=self.done, shown=True, layout=BAR
            )
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove the bars."""
        for bar in [*self.bars.values(), *([self.main] if self.main is not None else [])]:
            bar.close()

    def finished(self, run: SweepRun, state: RunState) -> None:
        """Print how an attempt ended."""
        if state.final:
            self.done += 1
            self.steps_final += run.config.train.steps
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
        left = self._left(sum(step for step, _ in steps.values()))
        if self.main is not None:
            self._draw(self.main, steps, left)
            return
        parts = "; ".join(f"{label} at {step}/{total}" for label, (step, total) in steps.items())
        counts = [f"{self.done} of {self.total} done", f"{len(running)} running", f"{waiting} waiting", left]
        self.say(f"{', '.join(filter(None, counts))}. {parts}")

    def say(self, text: str) -> None:
        """Print a line."""
        print_line(text)

    def _left(self, running: int) -> str:
        """Return how long the steps left take at the pace of this sweep, in words; nothing before it is known."""
        since = self.steps_final + running - self.steps_before
        if since <= 0:
            return ""
        return (
            f"about {words((time.monotonic() - self.started) / since * (self.steps - self.steps_before - since))} left"
        )

    def _draw(self, main: tqdm[Any], steps: dict[str, tuple[int, int]], left: str) -> None:
        for label in self.bars.keys() - steps.keys():
            self.bars.pop(label).close()
        for label, (step, total) in steps.items():
            if label not in self.bars:
                # tqdm stores positions negated; a new bar takes the first free line below the main one.
                taken = {abs(bar.pos) for bar in self.bars.values()}
                position = next(number for number in range(1, len(taken) + 2) if number not in taken)
                self.bars[label] = progress_bar(
                    title=label, unit="step", total=total, shown=True, keep=False, position=position
                )
            self.bars[label].n = step
            self.bars[label].refresh()
        main.n = self.done
        main.set_postfix_str(left)
