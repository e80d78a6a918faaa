"""The reference of softmax attention where no key may be seen."""

import torch

from attention_zoo.functional import attention


def test_the_reference_gives_zeros_where_no_key_may_be_seen():
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    assert not attention(q, k, v, torch.zeros(1, 5, dtype=torch.bool)).any()
    late = torch.tensor([[False, False, True, True, True]])
    out = attention(q, k, v, late, causal=True)
    assert not out[:, :, :2].any()
    assert out[:, :, 2:].all()
