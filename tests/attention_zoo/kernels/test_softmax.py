"""`attend`: what the fused form must not do, and the forms behind it."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attention_zoo.functional import attention
from attention_zoo.kernels.softmax import _fused_causal_masked, attend


class RecordOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))])
        return result


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("width", [16, 24])
def test_the_fused_backend_on_cpu_is_the_fused_kernel(causal, masked, width):
    q, k = torch.randn(2, 2, 2, 256, 16, requires_grad=True)
    v = torch.randn(2, 2, 256, width, requires_grad=True)
    mask = (torch.arange(256) < torch.tensor([[256], [100]])) if masked else None
    with RecordOperations() as operations:
        torch.autograd.grad(attend(q, k, v, mask, causal=causal).sum(), (q, k, v))
    assert "_scaled_dot_product_flash_attention_for_cpu" in operations.names
    assert "_scaled_dot_product_flash_attention_for_cpu_backward" in operations.names
    assert operations.largest < 256 * 256


def test_dropout_in_torch_still_is_the_trap_that_blockwise_avoids():
    """Should this fail because torch has learnt dropout, "auto" may use the fused kernel everywhere."""
    q, k, v = torch.randn(3, 1, 1, 256, 16)
    with RecordOperations() as operations:
        torch.nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=0.1)
    assert operations.largest >= 256 * 256
    with RecordOperations() as operations:
        attend(q, k, v, dropout=0.1, training=True)
    assert operations.largest < 256 * 256


def test_a_key_mask_folded_into_the_features_equals_the_reference():
    """The form for CUDA, whose kernels refuse a mask together with causality; its mathematics runs anywhere."""
    q, k, v = torch.randn(3, 2, 2, 40, 8, dtype=torch.float64, requires_grad=True)
    mask = torch.rand(2, 40) > 0.4
    mask[:, 0] = True
    actual = _fused_causal_masked(q, k, v, mask[:, None, None, :], dropout=0.0)
    expected = attention(q, k, v, mask, causal=True)
    results = [(out, *torch.autograd.grad(out.sin().sum(), (q, k, v))) for out in (actual, expected)]
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
