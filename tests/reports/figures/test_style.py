"""The style of figures: ticks of logarithmic axes."""

import itertools

import pytest

from reports.figures.style import new_figure, plain_ticks


@pytest.mark.parametrize(
    ("low", "high"), [(1, 1000), (497, 676), (430, 480), (8, 21), (41e3, 55e3), (500, 1250), (2, 9)]
)
def test_ticks_of_a_logarithmic_axis_are_round_and_apart(low, high):
    axes = new_figure(2.0).subplots()
    axes.set(xscale="log", xlim=(low, high))
    plain_ticks(axes.xaxis, low, high)
    ticks = axes.xaxis.get_majorticklocs()
    assert 2 <= len(ticks) <= 5
    assert all(len(f"{tick:g}".rstrip("0").replace(".", "").strip("0")) <= 3 for tick in ticks)
    assert all((b / a) ** 7.5 > high / low for a, b in itertools.pairwise(ticks))
