"""Full attention: which backend runs where, and what the fused one must not do."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from attention_zoo import LayerDims, get_variant
from attention_zoo.functional import attention
from attention_zoo.kernels.softmax import _fused_causal_masked, attend
from attention_zoo.projections import Rotary
from attention_zoo.variants.full import FullConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class RecordOperations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names, self.largest = set(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.add(func.overloadpacket.__name__)
        self.largest = max([self.largest, *(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))])
        return result


@pytest.mark.parametrize(
    ("backend", "device", "dropout", "resolved"),
    [
        ("auto", CPU, 0.0, "fused"),
        ("auto", CPU, 0.1, "blockwise"),
        ("auto", CUDA, 0.1, "fused"),
        ("fused", CPU, 0.1, "fused"),
        ("blockwise", CUDA, 0.0, "blockwise"),
        ("reference", CPU, 0.1, "reference"),
    ],
)
def test_the_backend_has_a_name(backend, device, dropout, resolved):
    dims = LayerDims(dim=8, num_heads=2, max_length=4, dropout=dropout)
    assert get_variant("full").build(FullConfig(backend=backend), dims).resolved_backend(device) == resolved


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


def test_the_reference_gives_zeros_where_no_key_may_be_seen():
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    assert not attention(q, k, v, torch.zeros(1, 5, dtype=torch.bool)).any()
    late = torch.tensor([[False, False, True, True, True]])
    out = attention(q, k, v, late, causal=True)
    assert not out[:, :, :2].any()
    assert out[:, :, 2:].all()


def test_rotary_breaks_the_symmetry_of_order():
    dims = LayerDims(dim=8, num_heads=2, max_length=9)
    mixer = get_variant("full").build(FullConfig(rotary=True), dims).eval()
    x = torch.randn(1, 9, 8)
    assert not torch.allclose(mixer(x.flip(1)).flip(1), mixer(x), atol=1e-3)


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotary = Rotary(8, 12).double()
    queries, keys = rotary(q.expand(-1, -1, 12, -1)), rotary(k.expand(-1, -1, 12, -1))
    torch.testing.assert_close(queries.norm(dim=-1), q.norm(dim=-1).expand(-1, -1, 12), rtol=1e-6, atol=0)
    scores = (queries @ keys.transpose(-2, -1))[0, 0]
    by_distance = [scores.diagonal(offset) for offset in range(-11, 12)]
    for diagonal in by_distance:  # the tables are float32
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert torch.stack([diagonal[0] for diagonal in by_distance]).std() > 0.1


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own, at a graph break
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_compiled_equals_eager(dropout):
    full = get_variant("full")
    mixer = full.build(full.config(), LayerDims(dim=16, num_heads=2, max_length=64, dropout=dropout))
    compiled = torch.compile(mixer, backend="aot_eager")
    x = torch.randn(2, 50, 16, requires_grad=True)
    mask = torch.arange(50) < torch.tensor([[50], [30]])
    results = []
    for module in (compiled, mixer):
        torch.manual_seed(3)
        out = module(x, mask)
        results.append((out, *torch.autograd.grad(out.sin().sum(), x)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
