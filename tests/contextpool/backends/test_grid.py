"""Pooling on a grid: the operator and its backends."""

import functools
import math

import pytest
import torch

from contextpool import context_pool
from contextpool.backends import tiling
from contextpool.backends.dense import CHUNK_ELEMENTS
from contextpool.backends.grid import pool as grid_module
from contextpool.backends.grid.pool import grid_pool

GRID = (7, 10)


def draw(grid=GRID, *, batch=3, dim=5, dtype=torch.float64, spread=1.0, seed=0):
    """Return tokens, log-weights, widths from narrow to wide, and a mask with holes and one empty image."""
    generator = torch.Generator().manual_seed(seed)
    positions = math.prod(grid)
    x = torch.randn(batch, positions, dim, generator=generator, dtype=torch.float64)
    log_weight = spread * torch.randn(batch, positions, generator=generator, dtype=torch.float64)
    sigma = torch.exp(torch.empty(batch, positions, dtype=torch.float64).uniform_(-1.5, 1.5, generator=generator))
    mask = torch.rand(batch, positions, generator=generator) > 0.3
    mask[-1] = False
    return [value.to(dtype).requires_grad_() for value in (x, log_weight, sigma)], mask


def by_hand(x, log_weight, sigma, mask, grid, *, normalized=True):
    """Sum the formula position by position, without a gradient."""
    rows, columns = grid
    y = torch.zeros_like(x)
    for b, i in mask.nonzero().tolist():
        total = 0.0
        for j in range(rows * columns):
            if mask[b, j]:
                down = (i // columns - j // columns) / sigma[b, i]
                across = (i % columns - j % columns) / (sigma[b, i] * columns / rows)
                weight = torch.exp(log_weight[b, j] - (down**2 + across**2) / 2)
                y[b, i] += weight * x[b, j]
                total += weight
        y[b, i] /= total if normalized else mask[b].sum()
    return y


def gradients(inputs, y):
    draw_like = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(y)
    return torch.autograd.grad((y * draw_like).sum(), inputs)


def relative(actual, expected):
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.mark.parametrize("normalized", [True, False])
def test_reference_is_the_formula(normalized):
    inputs, mask = draw((3, 4))
    with torch.no_grad():
        y = grid_pool(*inputs, mask, grid=(3, 4), normalized=normalized, backend="reference")
        expected = by_hand(*inputs, mask, (3, 4), normalized=normalized)
    assert torch.allclose(y, expected, atol=1e-13)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("grid", [(7, 10), (1, 13), (13, 1), (1, 1), (16, 16)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_dense_equals_reference_with_all_gradients(normalized, masked, grid, stride, monkeypatch):
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 5000)  # several chunks, the last one cut short
    inputs, mask = draw(grid)
    results = [
        grid_pool(*inputs, mask if masked else None, grid=grid, normalized=normalized, backend=backend, stride=stride)
        for backend in ("dense", "reference")
    ]
    assert relative(*results) < 1e-13
    for actual, expected in zip(*(gradients(inputs, y) for y in results), strict=True):
        assert torch.allclose(actual, expected, rtol=1e-9, atol=1e-12)


@functools.cache
def at_all_levels(grid, stride):
    """Return inputs of all levels of the pyramid, a mask, and the reference's result and gradients."""
    inputs, mask = draw(grid)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        inputs[2] *= torch.rand(inputs[2].shape, generator=generator, dtype=torch.float64) * 3.0 + 0.05
    y = grid_pool(*inputs, mask, grid=grid, backend="reference", stride=stride)
    return inputs, mask, y, gradients(inputs, y)


@pytest.mark.parametrize("backend", ["dense", "pyramid"])
@pytest.mark.parametrize(
    "grid",
    [(28, 28), *(pytest.param(g, marks=pytest.mark.nightly) for g in ((48, 20), (17, 64))), (3, 70), (1, 1), (1, 40)],
)
@pytest.mark.parametrize("stride", [1, 2])
def test_float32_is_as_good_as_the_tolerances_ask(backend, grid, stride):
    inputs, mask, expected, exact_gradients = at_all_levels(grid, stride)
    single = [value.detach().float().requires_grad_() for value in inputs]
    y = grid_pool(*single, mask, grid=grid, backend=backend, stride=stride)
    assert relative(y, expected) < 1e-6
    for actual, exact, tolerance in zip(gradients(single, y), exact_gradients, (1e-6, 1e-6, 1e-5), strict=True):
        if grid != (1, 1):  # a lone position has gradients of nothing but rounding
            assert relative(actual, exact) < tolerance


@pytest.mark.parametrize("grid", [(28, 28), (72, 70), (17, 64), (3, 70), (1, 1)])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.nightly
def test_a_pyramid_that_reads_no_values_gives_the_same_numbers(monkeypatch, grid, normalized):
    """On a GPU every raster has all points, and windows are as large as its widths may ask for."""
    inputs, mask = draw(grid, batch=2, dim=2)
    with torch.no_grad():
        inputs[2] *= 3.0
    results = []
    for readable in (("cpu",), ()):
        monkeypatch.setattr(tiling, "READABLE", readable)
        y = grid_pool(*inputs, mask, grid=grid, normalized=normalized, backend="pyramid")
        results.append((y, *gradients(inputs, y)))
    for actual, expected, tolerance in zip(*results, (2e-7, 2e-7, 2e-7, 5e-6), strict=True):
        if grid != (1, 1):  # a lone position has gradients of nothing but rounding
            assert relative(actual, expected) < tolerance


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.nightly
def test_pyramid_is_accurate_beyond_float32(normalized, masked):
    inputs, mask = draw((40, 33), dim=3)
    with torch.no_grad():
        inputs[2] *= 3.0
    used = mask if masked else None
    y, expected = (
        grid_pool(*inputs, used, grid=(40, 33), normalized=normalized, backend=backend)
        for backend in ("pyramid", "reference")
    )
    assert relative(y, expected) < 2e-7
    for actual, exact, tolerance in zip(
        gradients(inputs, y), gradients(inputs, expected), (2e-7, 2e-7, 2e-6), strict=True
    ):
        assert relative(actual, exact) < tolerance


def test_pyramid_backward_is_the_adjoint_of_its_forward():
    (x, log_weight, sigma), mask = draw((40, 33), dim=3)

    def pool(values):
        return grid_pool(values, log_weight, sigma * 3.0, mask, grid=(40, 33), backend="pyramid")

    upstream = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(pool(x), x, upstream)
    other = torch.randn_like(x)
    assert torch.allclose((gradient * other).sum(), (upstream * pool(other)).sum(), rtol=1e-12)


def test_auto_takes_the_form_for_the_size():
    assert grid_module.resolve_grid_backend((32, 32), "auto") == "dense"
    assert grid_module.resolve_grid_backend((128, 128), "auto") == "pyramid"


def test_gradients_equal_finite_differences():
    inputs, mask = draw((3, 4), batch=2)
    mask[-1] = True
    assert torch.autograd.gradcheck(lambda *values: grid_pool(*values, mask, grid=(3, 4)), inputs)


def test_one_column_is_a_sequence():
    inputs, mask = draw((40, 1))
    results = [
        context_pool(*inputs, mask, backend="reference"),
        context_pool(*inputs, mask, grid=(40, 1)),
        # One row of 40: a width of one row is a width of forty columns.
        context_pool(inputs[0], inputs[1], inputs[2] / 40, mask, grid=(1, 40)),
    ]
    assert relative(results[1], results[0]) < 1e-13
    narrow = inputs[2] / 40 >= 0.05  # the floor of the width is in rows
    assert narrow.any()
    assert torch.allclose(results[2][narrow], results[0][narrow], atol=1e-12)


@pytest.mark.parametrize("backend", ["dense", "pyramid"])
def test_masked_positions_reach_nothing(backend):
    inputs, mask = draw()
    filled = inputs[0].detach().masked_fill(~mask[:, :, None], torch.nan).requires_grad_()
    y = grid_pool(filled, *inputs[1:], mask, grid=GRID, backend=backend)
    assert torch.equal(y, grid_pool(*inputs, mask, grid=GRID, backend=backend))
    assert not y[~mask].any()
    for gradient in gradients([filled, *inputs[1:]], y):
        assert gradient.isfinite().all()
        assert not gradient[~mask].any()


@pytest.mark.parametrize("backend", ["dense", "pyramid"])
@pytest.mark.parametrize("grid", [(8, 8), (28, 28)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_extreme_widths_and_weights(backend, grid, dtype):
    (x, log_weight, sigma), mask = draw(grid, dtype=dtype)
    mask[-1] = True

    def pool(log_weight, sigma):
        return grid_pool(x, log_weight, sigma, mask, grid=grid, backend=backend)

    narrow = pool(log_weight, torch.full_like(sigma, 1e-3))
    assert torch.allclose(narrow[mask], x[mask], atol=1e-6)
    wide = pool(log_weight, torch.full_like(sigma, 1e6))
    weight = log_weight.exp().masked_fill(~mask, 0.0)[:, :, None]
    mean = (weight * x).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
    assert torch.allclose(wide[mask], mean.expand_as(x)[mask], atol=1e-5)
    steep = (torch.rand(log_weight.shape, generator=torch.Generator().manual_seed(3)) * math.log(1e8)).to(dtype)
    exact = grid_pool(x.double(), steep.double(), sigma.double(), mask, grid=grid, backend="reference")
    y = pool(steep, sigma)
    assert relative(y, exact) < 1e-6
    assert all(gradient.isfinite().all() for gradient in gradients([x, sigma], y + narrow + wide))


@pytest.mark.parametrize("backend", ["dense", "pyramid"])
@pytest.mark.parametrize("low", [-30.0, -55.0])
def test_heavy_positions_out_of_reach_do_not_drown_a_light_one(backend, low):
    (x, _, _), _ = draw((32, 32), dtype=torch.float32)
    log_weight = torch.zeros(3, 32, 32)
    log_weight[:, 10:21, 10:21] = low
    inputs = x, log_weight.flatten(1), torch.full((3, 1024), 0.4)
    truth = grid_pool(*(value.double() for value in inputs), grid=(32, 32), backend="reference")
    y = grid_pool(*inputs, grid=(32, 32), backend=backend)
    assert (y - truth)[:, 15 * 32 + 15].abs().max() <= 1e-6


def test_widths_that_are_not_numbers_stay_where_they_are():
    (x, log_weight, sigma), mask = draw((40, 40))
    with torch.no_grad():
        sigma[0, 7] = torch.nan
        mask[0, 7] = True
    for backend in ("dense", "pyramid"):
        y = grid_pool(x, log_weight, sigma, mask, grid=(40, 40), backend=backend)
        assert y[0, 7].isnan().all()
        assert int(y.isnan().any(dim=2).sum()) == 1


def test_bfloat16_is_summed_in_float32():
    inputs, mask = draw((12, 12))
    low = inputs[0].detach().bfloat16()
    expected = grid_pool(low.double(), *inputs[1:], mask, grid=(12, 12), backend="reference")
    y = grid_pool(low, inputs[1].float(), inputs[2].float(), mask, grid=(12, 12))
    assert y.dtype == torch.bfloat16
    assert relative(y, expected) < 5e-3
    single = [value.detach().float().requires_grad_() for value in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = grid_pool(*single, mask, grid=(12, 12))
    exact = grid_pool(*inputs, mask, grid=(12, 12), backend="reference")
    assert relative(y, exact) < 1e-6
    for actual, expected in zip(gradients(single, y), gradients(inputs, exact), strict=True):
        assert relative(actual, expected) < 1e-5


def test_wrong_arguments_are_refused():
    inputs, _ = draw()
    with pytest.raises(ValueError, match="does not hold"):
        grid_pool(*inputs, grid=(7, 9))
    with pytest.raises(ValueError, match="stride"):
        grid_pool(*inputs, grid=GRID, stride=0)
    with pytest.raises(ValueError, match="tree"):
        grid_pool(*inputs, grid=GRID, backend="tree")
    with pytest.raises(ValueError, match="causal"):
        context_pool(*inputs, grid=GRID, causal=True)
    assert grid_pool(torch.zeros(0, 70, 5), torch.zeros(0, 70), torch.ones(0, 70), grid=GRID).shape == (0, 70, 5)
