"""Linear attention: running sums by chunks, and their precision."""

import pytest
import torch

from attention_zoo.kernels.linear_attention import linear_attention


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128])
def test_causal_sums_at_the_edges_of_chunks(length):
    torch.manual_seed(0)
    q, k, v = torch.rand(3, 2, 2, length, 4, dtype=torch.float64)
    weights = (q @ k.transpose(-2, -1)).tril()
    torch.testing.assert_close(
        linear_attention(q, k, v, causal=True), weights @ v / weights.sum(-1, keepdim=True), msg=str(length)
    )


def test_half_precision_sums_in_single_precision():
    """The sum of 4096 equal features of 1 stays at 256 in bfloat16."""
    ones = torch.ones(1, 1, 4096, 4, dtype=torch.bfloat16)
    out = linear_attention(ones[:, :, :2], ones, ones)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, ones[:, :, :2])
