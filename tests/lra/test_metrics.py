import pytest
from scipy.stats import binomtest

from lra.metrics import Score, beatable, wilson_interval


@pytest.mark.parametrize(("correct", "total"), [(0, 10), (10, 10), (3, 7), (740, 2000), (1, 1), (123_456, 200_000)])
def test_wilson_equals_that_of_scipy(correct, total):
    expected = binomtest(correct, total).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(correct, total) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("correct", "total"), [(1, 0), (5, 4), (-1, 3)])
def test_wilson_refuses_what_is_not_a_count(correct, total):
    with pytest.raises(ValueError, match="not a count"):
        wilson_interval(correct, total)


def test_accuracy_is_a_share():
    assert Score(correct=3, total=4, loss=0.5).accuracy == 0.75


def test_what_an_oracle_knows_need_not_be_beaten():
    known = {"chance": 25.0, "fixed width": 63.0, "oracle": 92.2, "oracle of scales at 96": 75.5}
    assert beatable(known) == {"chance": 25.0, "fixed width": 63.0}
