"""Dropout by 16 random bits: its share, its scale, its gradient, and what it depends on."""

import pytest
import torch

from attention_zoo.kernels import dropout as kernel
from attention_zoo.kernels.dropout import Dropout, dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_share_and_the_scale_are_those_of_the_rate(rate, dtype):
    x = torch.ones(99, 1001, dtype=dtype)
    out = dropout(x, rate, training=True)
    assert out.dtype == dtype
    kept = out[out != 0]
    share = kept.numel() / x.numel()
    assert abs(share - (1 - rate)) < 5 * (rate * (1 - rate) / x.numel()) ** 0.5
    assert kept.unique().numel() == 1
    assert kept[0].item() == pytest.approx(1 / (1 - rate), rel=1e-2 if dtype == torch.bfloat16 else 1e-4)


def test_neighbours_are_dropped_independently():
    kept = (dropout(torch.ones(400_000), 0.5, training=True) != 0).double() - 0.5
    for apart in range(1, 9):  # within a word of four numbers, and across its border
        assert abs((kept[apart:] * kept[:-apart]).mean().item()) < 5 * 0.25 / 400_000**0.5


def test_what_was_dropped_has_no_gradient():
    x = torch.randn(7, 13, dtype=torch.float64, requires_grad=True)
    out = dropout(x, 0.3, training=True)
    (grad,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(grad * x, out)
    assert (grad == 0).any()
    assert (grad != 0).any()


def test_the_same_seed_drops_the_same_on_any_number_of_threads():
    def drawn(threads):
        torch.manual_seed(3)
        torch.set_num_threads(threads)
        return dropout(torch.ones(300, 500), 0.2, training=True)

    try:
        one, two = drawn(1), drawn(2)
    finally:
        torch.set_num_threads(1)
    assert torch.equal(one, two)
    assert not torch.equal(one, dropout(torch.ones(300, 500), 0.2, training=True))


def test_nothing_is_dropped_in_evaluation_and_at_rate_zero():
    x = torch.randn(5)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    module = Dropout(0.5)
    assert module.eval()(x) is x
    assert not torch.equal(module.train()(torch.ones(100)), torch.ones(100))
    assert repr(module) == "Dropout(rate=0.5)"


def test_a_scale_for_the_wrong_rate_is_told_apart(monkeypatch):
    """The broken twin of the first test."""
    monkeypatch.setattr(kernel, "_LEVELS", 2**15)
    with pytest.raises(AssertionError):
        test_the_share_and_the_scale_are_those_of_the_rate(0.1, torch.float32)
