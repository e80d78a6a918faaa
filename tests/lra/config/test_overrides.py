"""Settings of a command line."""

import pytest

from lra.config.overrides import parse_overrides
from lra.errors import UsageError


def test_equal_values_may_be_given_twice_and_others_may_not():
    assert parse_overrides(["a=1", "b=[x]", "a=1"]) == {"a": 1, "b": ["x"]}
    for pair in (["a=1", "a=1.0"], ["a=true", "a=1"], ["a=null", "a=0"], ["a=[1]", "b=2", "a=[2]"]):
        with pytest.raises(UsageError, match=r"^--set a: given as .* and as .*; leave one out$"):
            parse_overrides(pair)
