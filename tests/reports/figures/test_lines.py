"""The line plots."""

import numpy as np

from reports.figures.lines import on_common_steps


def test_curves_are_averaged_where_all_have_a_step():
    first = (np.array([10.0, 20.0, 30.0]), np.array([1.0, 2.0, 3.0]))
    second = (np.array([20.0, 30.0, 40.0]), np.array([6.0, 7.0, 8.0]))
    steps, scores = on_common_steps([first, second])
    assert steps.tolist() == [20.0, 30.0]
    assert scores.tolist() == [[2.0, 3.0], [6.0, 7.0]]
