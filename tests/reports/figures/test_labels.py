"""Names beside points and at the ends of lines: near what they name, and apart from each other."""

import numpy as np
import pytest

from reports.figures.labels import label_ends, label_points, spread
from reports.figures.style import new_figure
from tests.reports.figures.helpers import overlapping


def crowd(count):
    """A figure with most of its points in one corner."""
    random = np.random.default_rng(3)
    figure = new_figure(3.4)
    axes = figure.subplots()
    x, y = 10 ** random.normal(0, 0.2, count), random.normal(0, 0.3, count)
    x[0], y[0] = 100.0, 9.0
    axes.scatter(x, y, s=20)
    axes.set_xscale("log")
    axes.margins(0.2)
    return figure, axes, x, y


@pytest.mark.nightly
def test_names_of_points_in_a_crowd_do_not_overlap_and_stay_inside():
    figure, axes, x, y = crowd(12)
    names = [f"Variant number {k}" for k in range(12)]
    label_points([(axes, x)], y, names, 2.5, ["#D55E00"] * 12)
    assert [text.get_text() for text in axes.texts] == names
    assert overlapping(figure, axes.texts) == []
    assert overlapping(figure, axes.texts, np.column_stack([x, y])) == []
    inside = axes.get_window_extent()
    for text in axes.texts:
        box = text.get_bbox_patch() or text
        found = super(type(text), text).get_window_extent()
        assert inside.x0 <= found.x0 < found.x1 <= inside.x1, box
    assert axes.texts[0].arrow_patch is None  # it has room beside its point
    assert sum(text.arrow_patch is not None for text in axes.texts) >= 3


def test_the_check_for_overlaps_notices_one():
    figure, axes, x, y = crowd(12)
    for place in zip(x, y, strict=True):
        axes.annotate("a name", place, ha="center", va="center")
    assert len(overlapping(figure, axes.texts)) > 5
    assert len(overlapping(figure, axes.texts, np.column_stack([x, y]))) > 5


def test_a_name_does_not_cover_a_line():
    def covered(lines):
        figure = new_figure(2.0)
        axes = figure.subplots()
        axes.set(xlim=(0, 10), ylim=(0, 10))
        for line in lines:
            axes.plot(*line.T)
        label_points([(axes, [5])], [5], ["A variant"], 2.5, ["#000000"])
        figure.draw_without_rendering()
        text = axes.texts[0]
        box = super(type(text), text).get_window_extent().transformed(axes.transData.inverted())
        return box.y0 < 5 < box.y1 and box.x1 > 5

    assert covered([])
    assert not covered([np.array([[5.0, 5.0], [10.0, 5.0]])])


def test_names_at_the_ends_of_lines_keep_the_order_of_the_ends():
    figure = new_figure(2.0)
    axes = figure.subplots()
    ends = [(1.0, 0.50), (1.0, 0.49), (1.0, 0.0), (0.9, 1.0), (1.0, 0.505)]
    for x, y in ends:
        axes.plot([0.0, x], [0.5, y])
    label_ends(axes, ends, ["b", "a\nof two lines", "first", "last", "c"], ["#000000"] * 5)
    assert overlapping(figure, axes.texts) == []
    heights = [text.get_position()[1] for text in axes.texts]
    assert sorted(range(5), key=heights.__getitem__) == [2, 1, 0, 4, 3]


@pytest.mark.parametrize(
    ("wanted", "places"),
    [([10, 50], [10, 50]), ([50, 50], [45, 55]), ([99, 98], [95, 85]), ([1, 2], [5, 15]), ([50, 52, 90], [46, 56, 90]),
     ([40, 50, 52, 54], [34, 44, 54, 64]), ([50, 50, 50.001], [40, 50, 60])],
)  # fmt: skip
def test_places_are_as_near_the_wanted_ones_as_they_can_be(wanted, places):
    assert spread(wanted, [10.0] * len(wanted), 100.0) == pytest.approx(places, abs=0.01)


def test_labels_of_two_lines_take_the_room_of_two():
    assert spread([50, 50], [10.0, 20.0], 100.0) == pytest.approx([42.5, 57.5])
