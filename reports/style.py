"""How figures look and how they are written: column width, colours that everyone can tell apart, equal bytes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from lra.errors import UsageError

from .render import clean

COLUMN = 3.4
"""Width of a column of a two-column paper, in inches."""
PAGE = 7.0
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, yellow left out: it fades on white."""
MARKERS = "osD^vP*"
DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = ("-", (0, (4, 1)), (0, (1, 1)), (0, (4, 1, 1, 1)))
_SETTINGS: dict[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "legend.fontsize": 6.5,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.linewidth": 0.4,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
    "svg.hashsalt": "lra-report",
    "text.parse_math": False,
    "savefig.dpi": 200,
}
_METADATA = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with the settings of this module; dollar signs in names are no mathematics here."""
    with mpl.rc_context(_SETTINGS):
        yield


def new_figure(height: float, width: float = COLUMN) -> Figure:
    """Return an empty figure that is laid out without clipped labels; no window system is touched."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path, form: str) -> Path:
    """Write a figure as png, svg or pdf; equal figures give equal bytes.

    Raises:
        UsageError: The file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with house_style():
            figure.savefig(path, format=form, metadata=_METADATA[form])
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def shown(name: object, longest: int = 40) -> str:
    """Return a name as it stands in a figure: without control characters, and not longer than fits."""
    text = clean(name)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def slug(text: str) -> str:
    """Return a name for a file: letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:120] or "unnamed"


def plain_ticks(axis: Axis, low: float, high: float) -> None:
    """Put two to five round, plainly written numbers on a logarithmic axis from `low` to `high`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [
        [leading * 10.0**decade for decade in decades for leading in group if low <= leading * 10.0**decade <= high]
        for group in ((1,), (1, 3), (1, 2, 5))
    ]
    choices.append([float(f"{place:.2g}") for place in np.geomspace(low, high, 5)[1:-1]])
    axis.set_major_locator(
        FixedLocator(next((places for places in choices if 3 <= len(set(places)) <= 5), choices[-1]))
    )
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 100 else f"{x:.2g}"))


def mark_preview(axes: Axes, seeds: int) -> None:
    """Write "preview" across a figure that rests on one seed."""
    if seeds == 1:
        axes.text(
            0.5, 0.5, "PREVIEW: one seed", transform=axes.transAxes, ha="center", va="center", rotation=20,
            fontsize=14, color="#bbbbbb", alpha=0.6, zorder=0,
        )  # fmt: skip


def legend_below(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """Put one legend under the axes, in as many columns as the names leave room for."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        width = figure.get_size_inches()[0] / COLUMN
        columns = min(len(labels), max(1, int(width * 44 / (max(map(len, names)) + 6))))
        rows = math.ceil(len(labels) / columns)
        figure.set_figheight(figure.get_figheight() + 0.13 * max(0, rows - 2))  # else the axes give up their height
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)
