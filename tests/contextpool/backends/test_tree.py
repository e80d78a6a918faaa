"""The causal tree: its nodes, its bound of what it cuts off, and the rows that it leaves to the formula."""

import functools

import pytest
import torch

from contextpool.backends import tiling
from contextpool.backends.tree import pool as tree_pool
from contextpool.backends.tree.nodes import LEAF, Tree, chebyshev, merge_matrix
from contextpool.backends.tree.truncation import log_truncation_bound
from contextpool.functional import context_pool
from tests.contextpool.backends import cases


@pytest.mark.parametrize("level", [0, 1, 2])
def test_merging_keeps_sums_of_polynomials(level):
    """Eight nodes carry every polynomial up to degree 7: sums over the tokens equal sums over the nodes."""
    nodes = chebyshev(torch.float64, torch.device("cpu"))
    places = (
        (torch.arange(LEAF).double() + 0.5) / (LEAF / 2) - 1 if level == 0 else torch.cat((nodes - 1, nodes + 1)) / 2
    )
    values = torch.randn(LEAF, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    merged = merge_matrix(level, torch.float64, torch.device("cpu")) @ values
    for degree in range(8):
        assert torch.allclose((nodes**degree * merged).sum(), (places**degree * values).sum(), atol=1e-12)
    assert (nodes**8 * merged).sum().sub((places**8 * values).sum()).abs() > 1e-6


def test_collapse_is_the_transpose_of_build():
    draw = torch.Generator().manual_seed(0)
    tree = Tree.of(2, 150, 2)
    log_weight = 20.0 * torch.randn(2, 150, generator=draw, dtype=torch.float64)
    log_weight[0, 100:] = -torch.inf
    merges = tree.merges(tree.scales(log_weight))
    up, down = (torch.zeros(tree.total, 3, dtype=torch.float64) for _ in range(2))
    tokens = torch.randn(2, 150, 3, generator=draw, dtype=torch.float64)
    tree.tokens(up)[:, :150] = tokens
    tree.build(up, merges)
    down.normal_(generator=draw)
    expected = (up * down).sum()
    tree.collapse(down, merges)
    assert torch.allclose((tree.tokens(down)[:, :150] * tokens).sum(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("limit", "name"), [("TOLERANCE", "hill"), ("LARGEST_TRUNCATION", "falling")], ids=["interpolation", "truncation"]
)
def test_the_check_catches_a_tree_that_trusts_itself(monkeypatch, limit, name):
    """Both reasons for which a row is pooled by the formula are needed."""
    monkeypatch.setattr(tree_pool, limit, 1e30)
    with pytest.raises(AssertionError):
        cases.check_wide_range(functools.partial(context_pool, backend="tree"), name, "paper")


def test_on_a_gpu_some_rows_take_the_formula_and_what_is_too_much_is_not_hidden(monkeypatch):
    monkeypatch.setattr(tiling, "READABLE", ())
    pool = functools.partial(context_pool, backend="tree")
    seen, rows = [], tree_pool._rows
    monkeypatch.setattr(tree_pool, "_rows", lambda formula: seen.append(int(formula.sum(dim=1).max())) or rows(formula))
    cases.check_wide_range(pool, "steps", "tiny")
    assert 0 < max(seen) < tree_pool.ROWS
    y = cases.run(cases.over_a_wide_range(pool, "falling"), cases.Case(cases.WIDE_LENGTH, sigma="paper", causal=True))[
        0
    ]
    assert y.isnan().any()
    assert max(seen) == tree_pool.ROWS
    monkeypatch.setattr(tree_pool, "ROWS", cases.WIDE_LENGTH)
    cases.check_wide_range(pool, "falling", "paper")


def test_ordinary_weights_leave_nothing_to_the_formula(monkeypatch):
    seen = []
    monkeypatch.setattr(tree_pool, "_rows", lambda formula: seen.append(int(formula.sum())) or [])
    for sigma in ("tiny", "paper", "mixed"):
        cases.run(functools.partial(context_pool, backend="tree"), cases.Case(3001, sigma=sigma, causal=True))
    assert seen == [0] * 6  # forward and backward


@pytest.mark.parametrize("weight", ["normal", "eight decades"])
def test_the_bound_of_what_is_cut_off_is_one(weight):
    _, log_weight, sigma, mask, _ = cases.Case(400, weight=weight).inputs()
    log_weight = log_weight.double().masked_fill(~mask, -torch.inf)
    sigma, position = sigma.double(), torch.arange(400)
    cut = (position - (4 * sigma).long()).minimum(position)
    term = log_weight[:, None, :] - (position[:, None] - position).square() / (2 * sigma[:, :, None].square())
    exact = term.masked_fill(position >= cut[:, :, None], -torch.inf).logsumexp(dim=2)
    bound = log_truncation_bound(log_weight, sigma, cut)
    assert (bound >= exact).all()
    some = exact > -torch.inf
    assert some.float().mean() > 0.3
    assert (bound[~some & (cut <= 0)] == -torch.inf).all()
    assert (bound - exact)[some].median() < 10.0
