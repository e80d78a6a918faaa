"""Block-wise attention against the mathematics, with the same weights dropped."""

import pytest
import torch
from torch import Tensor

from attention_zoo.functional import attention
from attention_zoo.kernels.blockwise import blockwise_attention, dropout_factor
from attention_zoo.kernels.softmax import attend

BATCH, HEADS, HEAD_DIM = 3, 2, 8


def heads(length: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (3, BATCH, HEADS, length, HEAD_DIM)
    return tuple(torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_())  # type: ignore[return-value]


def make_mask(kind: str, length: int) -> Tensor | None:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "keys": (BATCH, length),
        "pairs": (BATCH, 1, length, length),
        "pairs by head": (1, HEADS, length, length),
    }
    if kind == "none":
        return None
    mask = torch.rand(shapes[kind], generator=generator) > 0.4
    if kind == "keys":
        mask[0, 0], mask[1] = False, False  # a first key hidden from causal queries, and a row without keys
    else:
        mask[:, :, 3] = False
    return mask


def output_and_gradients(out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    return [out, *torch.autograd.grad(out.sin().sum(), (q, k, v))]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "keys", "pairs", "pairs by head"])
@pytest.mark.parametrize("length", [1, 63, 64, 200])
@pytest.mark.parametrize("backend", ["fused", "blockwise"])
def test_equals_the_reference(backend: str, length: int, kind: str, *, causal: bool) -> None:
    q, k, v = heads(length)
    mask = make_mask(kind, length) if length > 3 else None
    expected = output_and_gradients(attention(q, k, v, mask, causal=causal), q, k, v)
    actual = output_and_gradients(attend(q, k, v, mask, causal=causal, backend=backend), q, k, v)  # type: ignore[arg-type]
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("width", [3, 20])
@pytest.mark.parametrize("backend", ["fused", "blockwise"])
def test_values_may_be_narrower_or_wider_than_keys(backend: str, width: int, *, causal: bool) -> None:
    q, k, _ = heads(70)
    v = torch.randn(BATCH, HEADS, 70, width, dtype=torch.float64, requires_grad=True)
    mask = make_mask("keys", 70)
    expected = output_and_gradients(attention(q, k, v, mask, causal=causal), q, k, v)
    actual = output_and_gradients(attend(q, k, v, mask, causal=causal, backend=backend), q, k, v)  # type: ignore[arg-type]
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_several_heads_and_sequences_share_a_block_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = heads(100)
    mask = make_mask("keys", 100)
    expected = output_and_gradients(attention(q, k, v, mask), q, k, v)
    for scores in (1, 64 * 100 * 2, 10**9):
        monkeypatch.setattr("attention_zoo.kernels.blockwise._SCORES", scores)
        actual = output_and_gradients(attend(q, k, v, mask, backend="blockwise"), q, k, v)
        for got, want in zip(actual, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "keys"])
def test_with_dropout_equals_the_reference_under_the_same_mask(kind: str, *, causal: bool) -> None:
    q, k, v = heads(130)
    mask = make_mask(kind, 130)
    torch.manual_seed(7)
    actual = output_and_gradients(
        attend(q, k, v, mask, causal=causal, dropout=0.3, training=True, backend="blockwise"), q, k, v
    )
    torch.manual_seed(7)
    seed = int(torch.randint(2**63 - 1, ()).item())
    factor = dropout_factor(q, k, causal=causal, dropout=0.3, seed=seed)
    expected = output_and_gradients(attention(q, k, v, mask, causal=causal, weight_factor=factor), q, k, v)
    for got, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_dropout_mask_is_unbiased_and_independent(rate: float) -> None:
    q, k, _ = heads(400)
    factor = dropout_factor(q, k, dropout=rate, seed=3)
    assert factor.unique().tolist() == pytest.approx([0.0, 1 / (1 - rate)], rel=2e-4)
    kept = (factor > 0).double()
    spread = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert abs(float(kept.mean()) - (1 - rate)) < 5 * spread + 2**-16
    centred = kept - kept.mean()
    for axis in range(4):  # neighbours along every axis, the four decisions of a word among them
        for step in range(1, min(5, kept.shape[axis])):
            product = centred.narrow(axis, step, kept.shape[axis] - step) * centred.narrow(
                axis, 0, kept.shape[axis] - step
            )
            assert abs(float(product.mean())) < 5 * rate * (1 - rate) / product.numel() ** 0.5


def test_the_mean_over_seeds_is_attention_without_dropout() -> None:
    q, k, v = (x.detach() for x in heads(20))
    expected = attention(q, k, v)
    draws = torch.stack([attend(q, k, v, dropout=0.2, training=True, backend="blockwise") for _ in range(1000)])
    error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - expected).abs() < 6 * error).all()


def test_the_global_seed_decides_and_the_number_of_threads_does_not() -> None:
    q, k, v = heads(300)

    def run(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        out = attend(q, k, v, dropout=0.3, training=True, backend="blockwise")
        torch.rand(3)  # what is drawn between forward and backward plays no part
        return output_and_gradients(out, q, k, v)

    first = run(1)
    assert all(torch.equal(a, b) for a, b in zip(first, run(1), strict=True))
    assert not torch.allclose(first[0], run(2)[0])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        other = run(1)
    finally:
        torch.set_num_threads(threads)
    for got, want in zip(other, first, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near_float64(dtype: torch.dtype) -> None:
    low = heads(150, dtype)
    high = tuple(x.detach().double().requires_grad_() for x in low)
    actual = output_and_gradients(blockwise_attention(*low), *low)
    expected = output_and_gradients(attention(*high), *high)
    tolerance = 20 * torch.finfo(dtype).eps
    for got, want in zip(actual, expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance * float(want.detach().abs().max()))


def test_autocast_leaves_the_precision_alone() -> None:
    q, k, v = heads(150, torch.float32)
    expected = output_and_gradients(blockwise_attention(q, k, v), q, k, v)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = blockwise_attention(q, k, v)
    for got, want in zip(output_and_gradients(out, q, k, v), expected, strict=True):
        assert torch.equal(got, want)
