"""Grids, the module and the layer on a CUDA device, against what they give on the CPU.

Skipped with a reason where there is none. The operator's own tests, `backends/test_all_backends`, run on both.
"""

import pytest
import torch

from contextpool import ContextPool, ContextPool2d, PoolConfig
from contextpool.backends.grid.pool import grid_pool

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact_convolutions():
    """Unlike matrix products, convolutions round to TensorFloat-32 if they are not told otherwise."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.mark.parametrize("backend", ["reference", "dense", "pyramid"])
def test_grids_match_the_reference(backend):
    grid, draw = (24, 20), torch.Generator().manual_seed(0)
    x, grad = (torch.randn(2, 480, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    log_weight = torch.randn(2, 480, generator=draw, dtype=torch.float64)
    sigma = torch.exp(1.5 * torch.randn(2, 480, generator=draw, dtype=torch.float64))
    mask = torch.rand(2, 480, generator=draw) > 0.2
    results = []
    for dtype, device, name in ((torch.float64, "cpu", "reference"), (torch.float32, "cuda", backend)):
        leaves = [value.detach().to(device, dtype).requires_grad_() for value in (x, log_weight, sigma)]
        y = grid_pool(*leaves, mask.to(device), grid=grid, backend=name)
        y.backward(grad.to(y))
        results.append([value.detach().cpu().double() for value in (y, *(leaf.grad for leaf in leaves))])
    for expected, actual, tolerance in zip(*results, (1e-6, 1e-6, 2e-6, 1e-5), strict=True):
        assert (actual - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("causal", [False, True])
def test_the_module_agrees_with_itself_on_the_cpu(causal):
    torch.manual_seed(0)
    module = ContextPool(32, PoolConfig(initial_sigma=4.0), causal=causal, max_length=900, num_prefix=1).double()
    x = torch.randn(3, 901, 32, dtype=torch.float64)
    mask = torch.arange(901) < torch.tensor([901, 600, 20])[:, None]
    expected = module(x, mask)
    there = module.float().cuda()(x.float().cuda(), mask.cuda())
    assert (there.cpu() - expected).norm() <= 1e-5 * expected.norm()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = module(x.float().cuda(), mask.cuda())
    y.float().square().sum().backward()
    assert (y.cpu() - expected).norm() <= 2e-2 * expected.norm()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in module.parameters())


def test_the_layer_agrees_with_itself_on_the_cpu():
    torch.manual_seed(0)
    layer, x = ContextPool2d(16).double(), torch.randn(2, 16, 33, 30, dtype=torch.float64)
    expected = layer(x)
    y = layer.float().cuda()(x.float().cuda())
    assert y.shape == (2, 16, 17, 15)
    assert (y.cpu() - expected).norm() <= 1e-5 * expected.norm()
    y.square().sum().backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in layer.parameters())
