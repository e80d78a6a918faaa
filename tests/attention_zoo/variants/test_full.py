"""Full attention: which backend runs where, rotary positions, and compilation."""

import pytest
import torch

from attention_zoo import LayerDims, get_variant
from attention_zoo.variants.full import FullConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


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


def test_rotary_breaks_the_symmetry_of_order():
    dims = LayerDims(dim=8, num_heads=2, max_length=9)
    mixer = get_variant("full").build(FullConfig(rotary=True), dims).eval()
    x = torch.randn(1, 9, 8)
    assert not torch.allclose(mixer(x.flip(1)).flip(1), mixer(x), atol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own, at a graph break
@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.1, marks=pytest.mark.nightly)])
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
