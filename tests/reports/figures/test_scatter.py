"""The scatter plots: the Pareto front."""

import math

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from reports.figures.scatter import front, medians


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


def test_means_that_are_equal_but_for_the_order_of_their_sum_beat_each_other_by_their_cost_alone():
    scores = np.array([np.mean([1.1, 1.1, 1.1]), np.mean([1.0, 1.1, 1.2])])
    assert scores[0] != scores[1]
    for order in (scores, scores[::-1]):
        assert front(np.array([1.0, 2.0]), order).tolist() == [True, False]


def test_the_order_of_the_seeds_ranks_no_label():
    scores = {"full": (76.1, 74.8, 70.7, 97.0), "local": (76.1, 70.7, 74.8, 97.0)}
    frame = pd.DataFrame(
        [
            {"label": label, "accuracy": score, "seed": seed}
            for label in scores
            for seed, score in enumerate(scores[label])
        ]
    ).assign(tokens_per_second=1.0, peak_bytes=1.0, variant="full", whole=True)
    assert medians(frame)["accuracy"].nunique() == 1
    counts = {"full": (564, 563), "local": (565, 562)}  # of 2,000: equal, and their rounded shares are not
    for label, pair in counts.items():
        for seed in (0, 1):
            frame.loc[(frame["label"] == label) & (frame["seed"] == seed), "accuracy"] = 100 * pair[seed] / 2000
    assert medians(frame[frame["seed"] < 2])["accuracy"].nunique() == 1
