"""The two patterns of the Sparse Transformer against dense attention, written out pair by pair."""

import pytest

from attention_zoo.variants import sparse
from tests.attention_zoo.variants.helpers import LENGTHS, assert_dense, assert_keeps_the_contract, make, pairs


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("stride", "num_summary"), [(1, 1), (5, 2), (8, 3), (60, 10)])
def test_fixed_sparse_attends_to_the_block_and_to_all_summaries(length, stride, num_summary):
    mixer = make("sparse", length=length, dim=12, stride=stride, num_summary=num_summary)
    assert_dense(
        mixer, pairs(length, lambda i, j: i // stride == j // stride or j % stride >= stride - num_summary), length
    )


@pytest.mark.parametrize("rows", [3, pytest.param(64, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("stride", [1, 2, 5, 60])
def test_strided_sparse_attends_to_a_window_and_to_multiples_of_the_stride(length, stride, rows, monkeypatch):
    monkeypatch.setattr(sparse, "_ROWS", rows)
    mixer = make("sparse", length=length, dim=12, pattern="strided", stride=stride, num_summary=1)
    assert_dense(mixer, pairs(length, lambda i, j: abs(i - j) < stride or (i - j) % stride == 0), length)


def seen_in_lra(i, j, *, stride, num_summary, num_prefix):
    """Say whether token i attends to token j in the code of Long Range Arena."""
    if i < num_prefix or j < num_prefix:
        return True
    i, j = i - num_prefix, j - num_prefix
    summary = j % stride == 0 or j % stride >= stride - num_summary
    return j <= i and (i // stride == j // stride or summary)


@pytest.mark.parametrize("num_prefix", [0, pytest.param(1, marks=pytest.mark.nightly), 2])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("stride", "num_summary"), [(1, 1), (5, 2), (5, 5), (8, 3), (60, 10)])
def test_the_pattern_of_long_range_arena_looks_to_the_left(length, stride, num_summary, num_prefix):
    options = {"stride": stride, "num_summary": num_summary}
    mixer = make("sparse", length=length, dim=12, pattern="lra", num_prefix=num_prefix, **options)
    known = options | {"num_prefix": num_prefix}
    assert_dense(mixer, pairs(length, lambda i, j: seen_in_lra(i, j, **known)), length)


def test_the_pattern_of_long_range_arena_is_neither_two_sided_nor_without_first_tokens():
    options = {"stride": 5, "num_summary": 2}
    mixer = make("sparse", length=37, dim=12, pattern="lra", num_prefix=1, **options)
    twins = (
        lambda i, j: seen_in_lra(i, j, num_prefix=1, **options) or i // 5 == j // 5,
        lambda i, j: seen_in_lra(i, j, num_prefix=1, **options) and ((j - 1) % 5 > 0 or (i - 1) // 5 == (j - 1) // 5),
        lambda i, j: seen_in_lra(i, j, num_prefix=0, **options),
    )
    for twin in twins:
        with pytest.raises(AssertionError):
            assert_dense(mixer, pairs(37, twin), 37)


@pytest.mark.nightly
def test_the_pattern_of_long_range_arena_keeps_the_contract_but_for_looking_to_one_side():
    assert_keeps_the_contract("sparse", {"pattern": "lra"}, without=["reach", "exact_limit"])
