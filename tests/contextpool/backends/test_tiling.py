"""How the pyramid and the tree cut their work: tiles of tokens, slabs of features."""

import pytest
import torch

from contextpool.backends import tiling
from contextpool.backends.tiling import TILE, slabs, sort_into_tiles, tiles_per_chunk
from tests.contextpool.backends.cases import FORMS, Case, check_against_truth, check_masked_tokens, over

CPU = torch.device("cpu")


@pytest.fixture(params=["sizes of the values", "sizes of the shapes"])
def exact(request, monkeypatch):
    """Tell whether sizes are exact; a GPU's are bounds, because the host reads none of its values."""
    if request.param == "sizes of the shapes":
        monkeypatch.setattr(tiling, "READABLE", ())
    return request.param == "sizes of the values"


def some_keys(kind):
    draw = torch.Generator().manual_seed(0)
    key, valid = torch.randint(5, (3, 70), generator=draw), torch.rand(3, 70, generator=draw) > 0.3
    key = key + 2 * (key > 2)  # 3 and 4 are missing, and so is 7
    return key, valid & (kind != "no valid token") | (kind == "all valid")


@pytest.mark.parametrize("kind", ["some", "no valid token", "all valid"])
def test_tiles_hold_every_valid_token_once_under_its_key(kind, exact):
    key, valid = some_keys(kind)
    tiled = sort_into_tiles(key, valid, 8)
    assert tiled.token.shape == (len(tiled.key), TILE)
    assert torch.equal(tiled.token[tiled.filled].sort().values, valid.flatten().nonzero()[:, 0])
    assert torch.equal(key.flatten()[tiled.token][tiled.filled], tiled.key[:, None].expand(-1, TILE)[tiled.filled])
    assert tiled.key.numel() == 0 or 0 <= tiled.key.min() <= tiled.key.max() <= 7
    needed = int((-(-key[valid].bincount(minlength=8) // TILE)).sum())
    assert len(tiled.key) == (needed if exact else (210 + 8 * 15) // 16)
    assert int(tiled.filled.any(dim=1).sum()) == needed  # no tile more than each key needs


def test_no_tokens_need_more_tiles_than_there_are(monkeypatch):
    """The most that tokens can ask for: one of each key, and one key that has all the others."""
    monkeypatch.setattr(tiling, "READABLE", ())
    for keys, tokens in ((8, 210), (300, 210), (1, 5), (40, 40)):
        key = torch.arange(tokens)[None].clamp_max(keys - 1)
        tiled = sort_into_tiles(key, torch.ones_like(key, dtype=torch.bool), keys)
        assert int(tiled.filled.sum()) == tokens


@pytest.mark.parametrize("kind", ["some", "no valid token"])
def test_untiled_is_the_inverse_of_tiled(kind, exact):
    key, valid = some_keys(kind)
    values = torch.randn(3, 70, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tiled = sort_into_tiles(key, valid, 8)
    assert not tiled.tiled(values)[~tiled.filled].any()
    assert torch.equal(tiled.untiled(tiled.tiled(values)).view(3, 70), values * valid)


@over([form for form in FORMS if form.backend in ("pyramid", "tree") and form.device == "cpu"])
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(
    ("length", "sigma"),
    [(1, "tiny"), (17, "mixed"), (301, "paper"), pytest.param(530, "mixed", marks=pytest.mark.nightly), (90, "huge")],
)
def test_sizes_of_the_shapes_give_the_same_numbers(monkeypatch, form, normalized, length, sigma):
    """All that differs on a GPU: every level, bounds for tiles, all sequences at once, some rows by the formula."""
    monkeypatch.setattr(tiling, "READABLE", ())
    for mask in ("ragged", "one empty"):
        case = Case(length, sigma=sigma, mask=mask, batch=3, causal=form.causal, normalized=normalized)
        check_against_truth(form.pool, case)
        check_masked_tokens(form.pool, case)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@over([form for form in FORMS if form.backend in ("pyramid", "tree") and form.device == "cpu"])
@pytest.mark.nightly
def test_two_threads_take_wider_slabs_and_give_the_same_numbers(two_threads, form):
    assert slabs(200, CPU) == [(0, 100), (100, 200)]
    check_against_truth(form.pool, Case(300, dim=200, causal=form.causal))


def test_one_thread_takes_slabs_that_stay_in_its_cache():
    assert slabs(200, CPU) == [(0, 50), (50, 100), (100, 150), (150, 200)]
    assert slabs(64, CPU) == [(0, 64)]


def test_a_gpu_takes_slabs_and_chunks_that_fill_it(two_threads):
    cuda = torch.device("cuda")
    assert slabs(256, cuda) == [(0, 256)]
    assert tiles_per_chunk(cuda, 64) == 4 * tiles_per_chunk(cuda, 256) > tiles_per_chunk(CPU, 64)
