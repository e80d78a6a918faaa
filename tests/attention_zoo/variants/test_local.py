"""Local attention against dense attention under the same pattern, written out pair by pair."""

import pytest

from tests.attention_zoo.variants.helpers import LENGTHS, assert_dense, make, pairs


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("window", [1, 4, 50])
def test_local_attends_within_blocks(length, window):
    mixer = make("local", length=length, dim=12, window=window, rotary=True)
    assert_dense(mixer, pairs(length, lambda i, j: i // window == j // window), length)
