"""The scatter plots: numbers of points, and the Pareto front."""

import itertools
import math

import matplotlib.text
import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.figures.scatter import _number_points, front
from reports.figures.style import new_figure


def test_numbers_of_points_that_coincide_step_aside():
    figure = new_figure(3.0)
    axes = figure.subplots()
    x, y = pd.Series([1.0, 1.0, 1.0, 9.0]), pd.Series([1.0, 1.0, 1.01, 9.0])
    axes.scatter(x, y)
    _number_points(axes, x, y)
    figure.draw_without_rendering()
    places = [matplotlib.text.Text.get_window_extent(text) for text in axes.texts]  # without their lines
    assert len(places) == 4
    centres = [((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) for box in places]
    apart = [math.dist(a, b) * 72 / figure.dpi for a, b in itertools.combinations(centres, 2)]
    assert min(apart) > 7.0
    assert [text.arrow_patch is None for text in axes.texts] == [True, False, False, True]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_the_front_is_what_nothing_beats(points):
    cost, score = np.array(points, dtype=float).T
    beaten = [
        any((c <= cost[i] and s >= score[i]) and (c < cost[i] or s > score[i]) for c, s in points)
        for i in range(len(points))
    ]
    assert front(cost, score).tolist() == [not each for each in beaten]


def test_a_point_of_unknown_cost_or_score_is_not_on_the_front():
    cost, score = np.array([1.0, math.nan, 2.0]), np.array([1.0, 9.0, math.nan])
    assert front(cost, score).tolist() == [True, False, False]
