"""How the pyramid and the tree cut their work: tiles of tokens, slabs of features."""

import pytest
import torch

from contextpool.backends.tiling import TILE, slabs, sort_into_tiles
from tests.contextpool.backends.cases import FORMS, Case, check_against_truth, over


def test_tiles_hold_every_valid_token_once_under_its_key():
    draw = torch.Generator().manual_seed(0)
    key, valid = torch.randint(5, (3, 70), generator=draw), torch.rand(3, 70, generator=draw) > 0.3
    tiled = sort_into_tiles(key, valid, torch.float64)
    filled = tiled.filled == 1.0
    assert tiled.token.shape == (len(tiled.key), TILE)
    assert torch.equal(tiled.token[filled].sort().values, valid.flatten().nonzero()[:, 0])
    assert torch.equal(key.flatten()[tiled.token][filled], tiled.key[:, None].expand(-1, TILE)[filled])
    count = key[valid].bincount(minlength=5)
    assert len(tiled.key) == int((-(-count // TILE)).sum())  # no tile more than each key needs


def test_untiled_is_the_inverse_of_tiled():
    draw = torch.Generator().manual_seed(0)
    key, valid = torch.randint(5, (3, 70), generator=draw), torch.rand(3, 70, generator=draw) > 0.3
    values = torch.randn(3, 70, generator=draw, dtype=torch.float64)
    tiled = sort_into_tiles(key, valid, torch.float64)
    assert not tiled.tiled(values)[tiled.filled == 0.0].any()
    assert torch.equal(tiled.untiled(tiled.tiled(values)).view(3, 70), values * valid)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@over([form for form in FORMS if form.backend in ("pyramid", "tree") and form.device == "cpu"])
def test_two_threads_take_wider_slabs_and_give_the_same_numbers(two_threads, form):
    assert slabs(200) == [(0, 100), (100, 200)]
    check_against_truth(form.pool, Case(300, dim=200, causal=form.causal))


def test_one_thread_takes_slabs_that_stay_in_its_cache():
    assert slabs(200) == [(0, 50), (50, 100), (100, 150), (150, 200)]
    assert slabs(64) == [(0, 64)]
