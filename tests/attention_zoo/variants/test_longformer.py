"""Longformer against dense attention under the same pattern, written out pair by pair."""

import pytest

from attention_zoo.variants import longformer
from tests.attention_zoo.variants.helpers import LENGTHS, assert_dense, make, pairs


@pytest.mark.parametrize("block", [2, 64])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize(("window", "num_global", "num_prefix"), [(2, 0, 0), (7, 0, 1), (10, 3, 1), (100, 2, 0)])
def test_longformer_attends_to_a_window_and_to_global_tokens(
    length, window, num_global, num_prefix, block, monkeypatch
):
    monkeypatch.setattr(longformer, "_BLOCK", block)
    mixer = make("longformer", length=length, dim=12, window=window, num_global=num_global, num_prefix=num_prefix)
    known = max(num_global, num_prefix)
    assert_dense(mixer, pairs(length, lambda i, j: abs(i - j) <= window // 2 or i < known or j < known), length)
