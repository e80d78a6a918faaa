import math

import pytest

from lra.metrics import Score, wilson_interval


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (3, 7), (740, 2000), (1, 1), (123_456, 200_000)])
def test_wilson_equals_the_closed_formula(correct, total):
    z, share = 1.959963984540054, correct / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    expected = (max(0.0, centre - half), min(1.0, centre + half))
    assert wilson_interval(correct, total) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("correct", "total"), [(1, 0), (5, 4), (-1, 3)])
def test_wilson_refuses_what_is_not_a_count(correct, total):
    with pytest.raises(ValueError, match="not a count"):
        wilson_interval(correct, total)


def test_accuracy_is_a_share():
    assert Score(correct=3, total=4, loss=0.5).accuracy == 0.75
