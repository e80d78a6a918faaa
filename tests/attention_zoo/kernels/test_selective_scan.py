"""The selective scan against a loop over the tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo.kernels import selective_scan as kernel


def drawn(length: int, *, states: int = 3, dim: int = 4) -> list[Tensor]:
    torch.manual_seed(length)
    shapes = ((2, length, dim), (2, length, dim), (states, dim), (2, length, states), (2, length, states))
    driven, step, a, b, c = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    return [each.requires_grad_() for each in (driven, step.exp(), -a.exp(), b, c)]


def loop(driven: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    state, rows = torch.zeros(len(driven), *a.shape, dtype=a.dtype), []
    for place in range(driven.shape[1]):
        added = b[:, place, :, None] * driven[:, place, None, :]
        state = torch.exp(step[:, place, None, :] * a) * state + added
        rows.append((c[:, place, :, None] * state).sum(1))
    return torch.stack(rows, dim=1)


def results(run, arguments: list[Tensor]) -> tuple[Tensor, ...]:
    out = run(*arguments)
    return out, *torch.autograd.grad(out.sin().sum(), arguments)


def assert_equals_the_loop(length: int) -> None:
    found, expected = (results(run, drawn(length)) for run in (kernel.selective_scan, loop))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 3, 17, 64, 100, 300])
def test_equals_a_loop_in_outputs_and_gradients(length):
    assert_equals_the_loop(length)


def test_many_chunks(monkeypatch):
    monkeypatch.setattr(kernel, "_LONGEST", 4)
    monkeypatch.setattr(kernel, "_SEGMENT", 3)
    assert_equals_the_loop(90)


def test_chunks_that_start_from_nothing_are_told_apart(monkeypatch):
    """The broken twin."""
    monkeypatch.setattr(kernel, "_moved_on", torch.zeros_like)
    assert_equals_the_loop(1)
    with pytest.raises(AssertionError):
        assert_equals_the_loop(17)


def test_strong_decay_neither_overflows_nor_loses_gradients():
    driven, step, a, b, c = (each.detach().float().requires_grad_() for each in drawn(100))
    out, *gradients = results(kernel.selective_scan, [driven, step, a.mul(1e4).detach().requires_grad_(), b, c])
    torch.testing.assert_close(out, (b * c).sum(2, keepdim=True) * driven)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_step_of_zero_skips_a_token():
    driven, step, a, b, c = (each.detach() for each in drawn(40))
    out = kernel.selective_scan(driven, step, a, b, c)
    mixed = [torch.zeros(2, 60, each.shape[2], dtype=each.dtype) for each in (driven, step, b, c)]
    places = torch.arange(60)[torch.arange(60) % 3 != 1]
    for each, whole in zip((driven, step, b, c), mixed, strict=True):
        whole[:, places] = each
    torch.testing.assert_close(kernel.selective_scan(*mixed[:2], a, *mixed[2:])[:, places], out)


def test_the_operator_is_what_a_compiler_expects():
    driven, step, a, b, c = drawn(24)
    parts = [each.detach().unflatten(1, (3, 8)).requires_grad_() for each in (driven, step, b, c)]
    torch.library.opcheck(kernel._scan, (*parts[:2], a.detach().requires_grad_(), *parts[2:]))


def test_states_of_all_tokens_are_never_kept():
    arguments = drawn(1024, states=16, dim=32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        kernel.selective_scan(*arguments)
    assert 0 < sum(kept) < 2 * 1024 * 16 * 32 / 4
