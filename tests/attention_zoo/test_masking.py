import pytest
import torch

from attention_zoo.masking import masked_mean, zero_masked


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_whatever_stands_at_masked_positions_is_zero_and_so_is_its_gradient(value):
    mask = torch.tensor([[True, False, True]])
    x = torch.ones(1, 3, 2).masked_fill(~mask[:, :, None], value).requires_grad_()
    y = zero_masked(x, mask)
    assert y.tolist() == [[[1.0, 1.0], [0.0, 0.0], [1.0, 1.0]]]
    (gradient,) = torch.autograd.grad(y.sum() * torch.nan, x)
    assert not gradient[~mask].any()
    assert masked_mean(x, mask).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("mask", [None, torch.zeros(2, 0, dtype=torch.bool)])
def test_the_mean_of_no_token_is_zero(mask):
    assert masked_mean(torch.zeros(2, 0, 3), mask).tolist() == [[0.0] * 3] * 2
