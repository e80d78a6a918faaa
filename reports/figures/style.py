# SPDX-License-Identifier: Apache-2.0
"""Style and saving of figures: column width, colours that everyone can tell apart, and reproducible bytes."""

from __future__ import annotations

import itertools
import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from lra.errors import UsageError, refusals_as
from lra.results.bench_format import REFERENCE
from lra.terminal import clean_line

COLUMN = 3.4
"""Width of a column of a two-column paper, in inches."""
PAGE = 7.0
LABEL_LINES = 4
LETTERS = 50
"""Letters in a line below the axes."""
LINE = 0.11
"""Height of a line of small text, in inches."""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255", "#999933")
"""The palette of Okabe and Ito without yellow, which fades on white, and without black; wine and olive of Paul Tol."""
REFERENCE_COLOUR = "#222222"
"""The colour of full attention, in every figure."""
IN_ORDER = (
    "contextpool", "adaptive_span", "nystrom", "longformer", "local", "contextpool_conv_only", "performer", "linear",
    "linformer", "bigbird", "s4d", "reformer", "sparse", "synthesizer", "sinkhorn", "mlp_only",
    "transformer_ls", "luna", "cosformer", "fnet", "mega", "conv", "skyformer", "gated_linear", "h_transformer_1d",
    "multiscale_conv", "lion", "mra", "lru", "gated_delta", "tnn", "hgrn", "mamba", "block_topk",
    "gau", "differential", "hrrformer", "s5",
)  # fmt: skip
"""Variants in the order of their colours, so that those that are often drawn together differ. New ones come last."""
MARKERS = "osD^vP*<X>p"
DASHES: tuple[str | tuple[int, tuple[int, ...]], ...] = (
    "-", (0, (4, 1)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)), (0, (2, 3)),
)  # fmt: skip
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


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a figure draws one label."""

    colour: str
    marker: str
    dash: str | tuple[int, tuple[int, ...]]


def looks(frame: pd.DataFrame) -> dict[str, Look]:
    """Return the look of each label of a frame with the columns `label` and `variant`.

    All labels of a variant have its colour. Its first label has its look, if no other label of the figure has it; the
    others take the markers and dashes that are used least in this colour. So as many labels of one colour differ as
    there are markers.
    """
    labels = sorted(set(zip(frame["variant"], frame["label"], strict=True)))
    first = dict(reversed(labels))
    used, found = Counter[Look](), dict[str, Look]()
    for variant, label in sorted(labels, key=lambda each: (first[each[0]] != each[1], each[0] not in IN_ORDER, each)):
        colour, own = _colour_and_turn(variant)
        turn = min(range(len(MARKERS)), key=lambda turn: (used[_look(colour, turn)], turn != own, turn))
        found[label] = _look(colour, turn)
        used[found[label]] += 1
    return found


def _colour_and_turn(variant: str) -> tuple[str, int]:
    """Return the colour of a variant, and its place among the variants of this colour."""
    if variant == REFERENCE:
        return REFERENCE_COLOUR, 0
    place = IN_ORDER.index(variant) if variant in IN_ORDER else crc32(variant.encode())
    turn = place // len(COLOURS) + 1  # the first differs from full attention in more than its colour
    return COLOURS[place % len(COLOURS)], turn % len(MARKERS)


def _look(colour: str, turn: int) -> Look:
    return Look(colour=colour, marker=MARKERS[turn], dash=DASHES[turn % len(DASHES)])


@contextmanager
def house_style() -> Iterator[None]:
    """Apply the settings of this module; dollar signs in names are not taken for mathematics."""
    with mpl.rc_context(_SETTINGS):
        yield


class RoundedLayout(ConstrainedLayoutEngine):
    """Constrained layout with rounded positions.

    Processors differ in the last bit of a position, and SVG names its clip paths by a hash of all bits.
    """

    def execute(self, fig: Figure) -> None:
        """Lay out a figure and round where its axes lie."""
        super().execute(fig)
        for axes in fig.axes:
            axes.set_position(Bbox(axes.get_position(original=True).get_points().round(6)), which="original")
            axes.set_in_layout(True)  # `set_position` takes the axes out of the layout


def new_figure(height: float, width: float = COLUMN, below: str = "") -> Figure:
    """Return an empty figure whose layout leaves room for all labels; it needs no window system.

    Args:
        height: In inches, without the words below.
        width: In inches.
        below: Words for the lower edge; empty for none.
    """
    lines = textwrap.wrap(clean_line(below), LETTERS)
    figure = Figure(figsize=(width, height + LINE * len(lines)), layout=RoundedLayout())
    if lines:
        figure.supxlabel("\n".join(lines), fontsize=7)  # below the names too, which may leave the axes little room
    return figure


def save(figure: Figure, path: Path, form: str) -> Path:
    """Write a figure as png, svg or pdf; equal figures give equal bytes.

    Raises:
        UsageError: The file cannot be written.
    """
    with refusals_as(UsageError, f"cannot write {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with house_style():
            figure.savefig(path, format=form, metadata=_METADATA[form])
    return path


def shown(name: object, longest: int = 40) -> str:
    """Return a name as a figure shows it: without control characters, and cut in the middle to fit."""
    text = clean_line(name)
    head, tail = (longest - 3) // 2, (longest - 2) // 2
    return text if len(text) <= longest else f"{text[:head]}...{text[-tail:]}"


def wrapped(names: Iterable[object], width: int, most: int = LABEL_LINES) -> list[str]:
    """Break the names of one figure into lines of `width` letters, and cut those with more than `most` lines.

    Their ends stay, with what follows a name, such as the count of its runs. Where different names would look alike,
    there are more lines.
    """
    texts = [clean_line(name) for name in names]
    whole = {text: _lines(text, width, len(text) + 1) for text in texts}
    for lines in itertools.count(most):
        found = {text: _lines(text, width, lines) for text in texts}
        if len(set(found.values())) == len(set(whole.values())):
            break
    return [found[text] for text in texts]


def _lines(text: str, width: int, most: int) -> str:
    """Break a text into at most `most` lines of `width` letters."""
    room = width * most
    while len(lines := textwrap.wrap(shown(text, room), width)) > most:
        room -= 1
    return "\n".join(lines)


def extra_height(names: Sequence[str]) -> float:
    """Return the height that rows of these names need besides that of one line each, in inches."""
    return LINE * max(name.count("\n") for name in names) * len(names)


def slug(text: str) -> str:
    """Return a file name of small letters, digits and dashes, with the dots and underscores that profiles may have."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.")[:120] or "unnamed"


def plain_ticks(axis: Axis, low: float, high: float) -> None:
    """Put two to five round numbers, written without exponents, on a logarithmic axis from `low` to `high`."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = [
        [leading * 10.0**decade for decade in decades for leading in group if low <= leading * 10.0**decade <= high]
        for group in ((1,), (1, 3), (1, 2, 5))
    ]
    for bins in (3, 4, 5, 6, 8):  # within a decade, steps of equal size
        even = MaxNLocator(nbins=bins, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        spaced: list[float] = []
        for place in even:
            if low <= float(place) <= high and (not spaced or (place / spaced[-1]) ** 7 > high / low):
                spaced.append(float(place))
        choices.append(spaced)
    axis.set_major_locator(FixedLocator(next((p for p in choices if 3 <= len(p) <= 5), max(choices, key=len))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x >= 100 else f"{x:.3g}"))


def mark_preview(axes: Axes, seeds: int) -> None:
    """Write "PREVIEW" across a figure with one seed only."""
    if seeds == 1:
        axes.text(
            0.5, 0.5, "PREVIEW:\none seed", transform=axes.transAxes, ha="center", va="center", rotation=20,
            fontsize=12, color="#bbbbbb", alpha=0.6, zorder=0,
        ).set_in_layout(False)  # fmt: skip


def write_title(figure: Figure, what: str, where: str) -> None:
    """Write a title of two lines, or none if `where` is empty."""
    if where:
        longest = int(figure.get_size_inches()[0] / COLUMN * 62)
        figure.suptitle("\n".join([what, *textwrap.wrap(shown(where, 3 * longest), longest)]), fontsize=7)
