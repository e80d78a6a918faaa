import pytest
from scipy.stats import binomtest

from lra.metrics import Score, at_length, beatable, of_whole_test, wilson_interval


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


def test_a_baseline_at_one_length_is_none_of_the_whole_test():
    known = {"majority": 20.0, "majority at 64": 30.0, "majority at 256": 10.0, "fixed width at 64": 63.0}
    assert of_whole_test(known) == {"majority": 20.0, "fixed width at 64": 63.0} == beatable(known)
    assert at_length(known, 64, [64, 256]) == {"majority": 30.0, "fixed width": 63.0}
    assert at_length(known, 256, [64, 256]) == {"majority": 10.0}
    assert at_length({"majority": 20.0}, 64, [64, 256]) == {"majority": 20.0}
