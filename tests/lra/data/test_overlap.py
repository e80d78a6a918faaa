"""Which examples of one split are in another."""

import numpy as np
import pytest

from lra.data.overlap import found_in
from lra.tasks.splits import byte_split


def split(*documents, per_example=1):
    return byte_split(documents, [0] * (len(documents) // per_example), per_example=per_example)


@pytest.mark.parametrize(
    ("ours", "theirs", "options", "found"),
    [
        (split(b"ab", b"cd"), split(b"cd", b"x"), {}, [False, True]),
        (split(b"abc"), split(b"ab"), {}, [False]),
        (split(b"abc", b"ad"), split(b"ab"), {"cut": True}, [True, False]),
        (split(b"ab"), split(b"abc", b"c"), {"cut": True}, [True]),
        (split(b"a", b"bc", per_example=2), split(b"ab", b"c", per_example=2), {}, [False]),
        (split(b"a", b"bc", per_example=2), split(b"a", b"bc", per_example=2), {}, [True]),
        (split(b"a"), split(b"a", b"a", per_example=2), {}, [False]),
        (split(b"a", b"bc", per_example=2), split(b"bc", b"a", per_example=2), {}, [True]),
        (split(b"a", b"a", b"a", b"b", per_example=2), split(b"b", b"a", per_example=2), {}, [False, True]),
    ],
)
def test_examples_are_compared_whole_or_up_to_the_shorter_form(ours, theirs, options, found):
    assert np.array_equal(found_in(ours, theirs, **options), found)
