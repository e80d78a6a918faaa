"""Local attention against dense attention under the same pattern, written out pair by pair."""

import pytest

from attention_zoo import get_variant
from tests.attention_zoo.variants.helpers import LENGTHS, assert_dense, assert_keeps_the_contract, make, pairs


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("window", [1, 4, 50])
def test_local_attends_within_blocks(length, window):
    mixer = make("local", length=length, dim=12, window=window, rotary=True)
    assert_dense(mixer, pairs(length, lambda i, j: i // window == j // window), length)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("window", "look_around"), [(4, 1), (5, 2), (50, 1)])
def test_local_looks_at_the_blocks_beside_its_own(length, window, look_around):
    mixer = make("local", length=length, dim=12, window=window, look_around=look_around)
    assert_dense(mixer, pairs(length, lambda i, j: abs(i // window - j // window) <= look_around), length)


@pytest.mark.parametrize("length", LENGTHS)
def test_strided_blocks_hold_the_tokens_that_are_equal_modulo_their_number(length):
    blocks = -(-length // min(4, length))
    mixer = make("local", length=length, dim=12, window=4, layout="strided", rotary=True)
    assert_dense(mixer, pairs(length, lambda i, j: i % blocks == j % blocks), length)


def test_blocks_in_the_other_layout_are_told_apart():
    """The broken twin."""
    mixer = make("local", length=37, dim=12, window=4, layout="strided")
    with pytest.raises(AssertionError):
        assert_dense(mixer, pairs(37, lambda i, j: i // 4 == j // 4), 37)


@pytest.mark.parametrize("options", [{"window": 8, "look_around": 1}, {"window": 8, "layout": "strided"}], ids=str)
@pytest.mark.nightly
def test_other_forms_keep_the_contract(options):
    """In strided blocks, who meets whom depends on the padded length."""
    assert_keeps_the_contract("local", options, without={"padding_length"} if "layout" in options else ())


@pytest.mark.parametrize(
    "options", [{"window": 0}, {"look_around": -1}, {"look_around": 1, "layout": "strided"}], ids=str
)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match="look_around" if "look_around" in options else "window"):
        get_variant("local").config.from_dict(options)
