"""The two patterns of the Sparse Transformer against dense attention, written out pair by pair."""

import pytest

from attention_zoo.variants import sparse
from tests.attention_zoo.variants.helpers import LENGTHS, assert_dense, make, pairs


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("stride", "num_summary"), [(1, 1), (5, 2), (8, 3), (60, 10)])
def test_fixed_sparse_attends_to_the_block_and_to_all_summaries(length, stride, num_summary):
    mixer = make("sparse", length=length, dim=12, stride=stride, num_summary=num_summary)
    assert_dense(
        mixer, pairs(length, lambda i, j: i // stride == j // stride or j % stride >= stride - num_summary), length
    )


@pytest.mark.parametrize("rows", [3, 64])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("stride", [1, 2, 5, 60])
def test_strided_sparse_attends_to_a_window_and_to_multiples_of_the_stride(length, stride, rows, monkeypatch):
    monkeypatch.setattr(sparse, "_ROWS", rows)
    mixer = make("sparse", length=length, dim=12, pattern="strided", stride=stride, num_summary=1)
    assert_dense(mixer, pairs(length, lambda i, j: abs(i - j) < stride or (i - j) % stride == 0), length)
