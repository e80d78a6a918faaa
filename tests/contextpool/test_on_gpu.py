"""Every backend, the module and the layer on a CUDA device, against the float64 formula on the CPU.

Skipped with a reason where there is none. The kernels of `triton` have more tests, in `test_operator_triton`.
"""

import importlib.util
from dataclasses import replace

import pytest
import torch

from contextpool import ContextPool, ContextPool2d, PoolConfig
from contextpool.grid import grid_pool
from contextpool.pool import context_pool
from tests.contextpool import operator_cases as cases

pytestmark = pytest.mark.gpu

Case = cases.Case
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is missing")
TRITON = [pytest.param("triton", causal, marks=needs_triton) for causal in (False, True)]
forms = pytest.mark.parametrize(("backend", "causal"), [("reference", False), *cases.FORMS, *TRITON])


def pool_with(backend):
    """Pool on the GPU, and bring the result back."""

    def pool(*inputs, **options):
        there = [value if value is None else value.cuda() for value in inputs]
        return context_pool(*there, backend=backend, **options).cpu()

    return pool


@forms
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("sigma", ["tiny", "paper", "mixed"])
@pytest.mark.parametrize("length", [1, 17, 257, 1000])
def test_matches_the_reference(backend, causal, normalized, sigma, length):
    cases.check_against_truth(pool_with(backend), Case(length, sigma=sigma, causal=causal, normalized=normalized))


@forms
@pytest.mark.parametrize(
    "case",
    [
        Case(300, sigma="floor"),
        Case(300, sigma="huge"),
        Case(300, sigma="paper", weight="eight decades"),
        Case(300, mask="one empty"),
        Case(300, mask="one empty", normalized=False),
        Case(50, dim=130, batch=1),
        Case(3001, sigma="paper", batch=1, dim=3, mask="none"),
    ],
    ids=str,
)
def test_extreme_inputs_match_the_reference(backend, causal, case):
    cases.check_against_truth(pool_with(backend), replace(case, causal=causal))


@forms
def test_masked_tokens_reach_nothing(backend, causal):
    cases.check_masked_tokens(pool_with(backend), Case(100, sigma="paper", causal=causal))


@forms
def test_bfloat16_tokens_are_summed_in_float32(backend, causal):
    case = Case(400, sigma="paper", causal=causal, dim=16)
    x, log_weight, sigma, mask, grad = case.inputs()
    leaves = [x.bfloat16().requires_grad_(), log_weight.requires_grad_(), sigma.requires_grad_()]
    with torch.autocast("cuda", dtype=torch.bfloat16):
        y = pool_with(backend)(*leaves, mask, causal=causal)
    assert y.dtype == torch.bfloat16
    y.backward(grad.bfloat16())
    for ours, theirs in zip([y, *(leaf.grad for leaf in leaves)], cases.truth(case), strict=True):
        assert (ours - theirs).norm() <= 5e-3 * theirs.norm()


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


@pytest.mark.parametrize(("backend", "causal"), [("dense", False), ("dense", True), *TRITON])
def test_the_bits_are_the_same_every_time(backend, causal):
    case = Case(700, sigma="paper", causal=causal, dim=70)
    once, again = (cases.run(pool_with(backend), case) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(once, again, strict=True))
