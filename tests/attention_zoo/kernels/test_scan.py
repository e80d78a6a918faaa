"""The linear scan against a loop over the tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo.kernels import scan
from attention_zoo.kernels.scan import linear_scan

BOTH_ENDS = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reversed"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=["real", "complex"])


def loop(a: Tensor, b: Tensor, *, reverse: bool = False) -> Tensor:
    state, states = torch.zeros_like(b[:, 0]), {}
    places = range(b.shape[1])
    for place in reversed(places) if reverse else places:
        state = a.expand_as(b)[:, place] * state + b[:, place]
        states[place] = state
    return torch.stack([states[place] for place in places], dim=1)


def drawn(length: int, dtype: torch.dtype, trailing: tuple[int, ...] = (2, 3)) -> tuple[Tensor, Tensor]:
    """Draw factors of absolute value at most 1, some of them exactly 0 and 1, and what is added."""
    torch.manual_seed(length)
    a = torch.rand(2, length, *trailing, dtype=torch.float64)
    a = torch.where(a < 0.1, 0.0, torch.where(a > 0.9, 1.0, a)).to(dtype)
    if dtype.is_complex:
        a = a * torch.exp(1j * torch.rand(a.shape, dtype=torch.float64))
    return a.requires_grad_(), torch.randn(2, length, *trailing, dtype=dtype, requires_grad=True)


def results(run, a: Tensor, b: Tensor, *, reverse: bool) -> tuple[Tensor, ...]:
    out = run(a, b, reverse=reverse)
    weights = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(0))
    loss = (out * weights).sum()
    return out, *torch.autograd.grad(loss.real if loss.is_complex() else loss, (a, b))


def assert_equals_the_loop(a: Tensor, b: Tensor, *, reverse: bool) -> None:
    found, expected = (results(run, a, b, reverse=reverse) for run in (linear_scan, loop))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@BOTH_ENDS
@DTYPES
@pytest.mark.parametrize("length", [1, 2, 16, 17, 32, 33, 34, 300, 600])
def test_equals_a_loop_in_outputs_and_gradients(length, dtype, reverse):
    """600 tokens are 37 chunks, which are two chunks of chunks and a rest."""
    assert_equals_the_loop(*drawn(length, dtype), reverse=reverse)


@BOTH_ENDS
@pytest.mark.parametrize("trailing", [(), (1,), (2, 1, 3)], ids=str)
def test_takes_any_shape_behind_the_length(trailing, reverse):
    assert_equals_the_loop(*drawn(40, torch.float64, trailing), reverse=reverse)


@BOTH_ENDS
@DTYPES
def test_factors_are_broadcast_and_their_gradients_summed(dtype, reverse):
    a, b = drawn(50, dtype)
    for shared in (a[:1, :1], a[0, 0], a[:, :, :1]):
        assert_equals_the_loop(shared.detach().requires_grad_(), b, reverse=reverse)


@BOTH_ENDS
def test_inputs_need_not_be_contiguous(reverse):
    a, b = (each.detach().transpose(1, 2).contiguous().transpose(1, 2) for each in drawn(50, torch.float64))
    assert not b.is_contiguous()
    assert_equals_the_loop(a.requires_grad_(), b.requires_grad_(), reverse=reverse)


@BOTH_ENDS
def test_forgetting_everything_neither_divides_by_zero_nor_loses_gradients(reverse):
    b = torch.randn(1, 100, 4, dtype=torch.float64, requires_grad=True)
    out, of_a, of_b = results(linear_scan, torch.zeros_like(b).requires_grad_(), b, reverse=reverse)
    assert torch.equal(out, b)
    assert of_a.isfinite().all()
    assert of_a.any()
    assert of_b.isfinite().all()


def test_has_second_derivatives():
    a, b = drawn(20, torch.float64, (2,))
    assert torch.autograd.gradgradcheck(linear_scan, (a, b))


def test_float32_stays_near_float64_over_a_long_sequence():
    torch.manual_seed(0)
    a = 1.0 - torch.rand(1, 5000, 8, dtype=torch.float64) * 1e-3
    b = torch.randn_like(a)
    exact = linear_scan(a, b)
    assert (linear_scan(a.float(), b.float()) - exact).abs().max() <= 1e-4 * exact.abs().max()


@pytest.mark.parametrize("reverse", [False, pytest.param(True, marks=pytest.mark.nightly)])
def test_the_operator_is_what_a_compiler_expects(reverse):
    a, b = drawn(40, torch.float64)
    torch.library.opcheck(scan._scan, (a[:, 1:].detach().requires_grad_(), b, reverse))


@BOTH_ENDS
def test_a_chunk_that_starts_from_nothing_is_told_apart(reverse, monkeypatch):
    """The broken twin: chunks do not see each other."""
    right = scan._fill

    def broken(out, kept, added, *, reverse):
        right(out, kept * 0.0 if kept.shape[1] < 10 else kept, added, reverse=reverse)

    a, b = drawn(40, torch.float64)
    assert_equals_the_loop(a, b, reverse=reverse)
    monkeypatch.setattr(scan, "_fill", broken)
    with pytest.raises(AssertionError):
        assert_equals_the_loop(a, b, reverse=reverse)


@BOTH_ENDS
def test_takes_few_operations_and_linear_memory(reverse):
    """No loop over tokens: 4,096 of them take less than 150 operations; kept for backward are factors and states."""
    a, b = drawn(4096, torch.float64, (1,))
    with torch.profiler.profile() as profile:
        scan._scan(a.detach()[:, 1:], b.detach(), reverse)
    calls = sum(event.count for event in profile.key_averages() if event.key in {"aten::addcmul", "aten::mul_"})
    assert 48 <= calls <= 150
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        linear_scan(a, b, reverse=reverse)
    assert sum(kept) == a[:, 1:].numel() + b.numel()
