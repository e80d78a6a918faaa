"""Counted FLOPs against closed forms, and the list of what is not counted."""

import pytest
import torch
import torch.nn.functional as F

from attention_zoo import LayerDims, get_variant
from lra.measure.flops import count_flops

BATCH, LENGTH, DIM, HEADS = 2, 128, 32, 4
TOKENS = BATCH * LENGTH
SCORES = BATCH * LENGTH * LENGTH * DIM
"""Multiplications of all heads of queries by keys."""
PROJECTIONS = 3 * 2 * 4 * TOKENS * DIM * DIM
"""Four linear maps, forward and two products each in backward."""


def counted(variant, dropout=0.0, **options):
    torch.manual_seed(0)
    spec = get_variant(variant)
    dims = LayerDims(dim=DIM, num_heads=HEADS, max_length=LENGTH, dropout=dropout)
    mixer = spec.build(spec.config(**options), dims)
    x = torch.randn(BATCH, LENGTH, DIM, requires_grad=True)
    return count_flops(lambda: mixer(x).square().sum().backward())


# Softmax attention: two products forward; backward makes the scores again, and two products for each of those two.
@pytest.mark.parametrize(("backend", "products"), [("fused", 7), ("blockwise", 7), ("reference", 6)])
def test_full_equals_its_closed_form(backend, products):
    count = counted("full", backend=backend)
    assert count.total == PROJECTIONS + 2 * products * SCORES
    used = any("scaled_dot_product" in name for name in count.by_operator)
    assert used == (backend == "fused")


def test_dropout_in_the_blockwise_kernel_changes_no_count():
    assert counted("full", dropout=0.1).total == counted("full", backend="blockwise").total


@pytest.mark.parametrize(("backend", "products"), [("fused", 7), ("blockwise", 7)])
def test_local_equals_its_closed_form(backend, products):
    window = 32
    assert (
        counted("local", window=window, backend=backend).total == PROJECTIONS + 2 * products * SCORES * window // LENGTH
    )


def test_a_short_last_block_of_local_is_counted_whole():
    window, blocks = 50, 3
    expected = PROJECTIONS + 2 * 7 * BATCH * blocks * window * window * DIM
    assert counted("local", window=window).total == expected


def test_linear_equals_its_closed_form():
    # Keys times values, and queries times that: values have a column of ones, for the normaliser.
    width = DIM // HEADS + 1
    assert counted("linear").total == PROJECTIONS + 3 * 2 * 2 * TOKENS * DIM * width


def test_linformer_equals_its_closed_form():
    rank = 16
    shortening = 3 * 2 * 2 * TOKENS * DIM * rank
    assert counted("linformer", rank=rank).total == PROJECTIONS + shortening + 2 * 7 * TOKENS * rank * DIM


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_convolution_costs_three_times_its_forward(groups, transposed):
    make = torch.nn.ConvTranspose1d if transposed else torch.nn.Conv1d
    layer = make(8, 16, 5, groups=groups, bias=False)
    x = torch.randn(2, 8, 20, requires_grad=True)
    count = count_flops(lambda: layer(x).sum().backward())
    places = 20 if transposed else 16
    assert count.total == 3 * 2 * 2 * places * 5 * 8 * 16 // groups


def test_a_product_that_adds_in_place_is_counted():
    a, b, total = torch.randn(2, 3, 4), torch.randn(2, 4, 5), torch.zeros(2, 3, 5)
    assert count_flops(lambda: total.baddbmm_(a, b)).total == 2 * 2 * 3 * 4 * 5
    assert count_flops(lambda: total[0].addmm_(a[0], b[0])).total == 2 * 3 * 4 * 5


def test_fnet_has_no_formula_and_says_so():
    count = counted("fnet")
    assert count.total == 0
    assert any("fft" in name for name in count.uncounted)


def test_sorting_softmax_and_pointwise_work_are_listed_and_views_are_not():
    x = torch.randn(8, 16, requires_grad=True)

    def run():
        product = x.view(16, 8) @ x
        (product.sort(dim=1).values.softmax(dim=1) * F.gelu(product)).sum().backward()

    count = count_flops(run)
    assert count.total == 3 * 2 * 16 * 8 * 16
    assert count.by_operator == {"mm": count.total}
    assert {"sort", "_softmax", "_softmax_backward_data", "sum"} <= count.uncounted.keys()
    assert {"gelu", "gelu_backward", "mul"} <= count.uncounted_pointwise.keys()
    assert not {"view", "t", "expand", "ones_like", "mm"} & {*count.uncounted, *count.uncounted_pointwise}


def test_counting_leaves_the_gradients_as_they_are():
    layer = torch.nn.Linear(8, 8)
    x = torch.randn(4, 8)
    layer(x).sum().backward()
    plain = layer.weight.grad.clone()
    layer.zero_grad()
    count_flops(lambda: layer(x).sum().backward())
    assert torch.equal(layer.weight.grad, plain)
