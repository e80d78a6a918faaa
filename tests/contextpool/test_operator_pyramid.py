"""What is true of the pyramid beyond its numbers: linear memory, the same bits twice, and life under torch.compile."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from contextpool.pool import context_pool


def inputs(batch, length, dim):
    draw = torch.Generator().manual_seed(length)
    x, grad = (torch.randn(batch, length, dim, generator=draw) for _ in range(2))
    log_weight = torch.randn(batch, length, generator=draw)
    sigma = 0.1 * length * torch.rand(batch, length, generator=draw)
    return x.requires_grad_(), log_weight.requires_grad_(), sigma.requires_grad_(), grad


class LargestTensor(TorchDispatchMode):
    """Records the most elements of any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.untyped_storage().nbytes() // value.element_size())
        return result


def largest_tensor(backend, length):
    *leaves, grad = inputs(1, length, 4)
    with LargestTensor() as record:
        context_pool(*leaves, backend=backend).backward(grad)
    return record.elements


def test_the_pyramid_makes_no_tensor_that_grows_with_the_square_of_the_length():
    short, long = (largest_tensor("pyramid", length) for length in (4096, 16384))
    assert long < 5 * short
    assert long < 16384**2 / 200
    assert largest_tensor("reference", 1024) >= 1024**2  # the record sees what is there


def test_the_pyramid_gives_the_same_bits_twice():
    results = []
    for _ in range(2):
        *leaves, grad = inputs(2, 700, 70)
        y = context_pool(*leaves, backend="pyramid")
        y.backward(grad)
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@pytest.mark.parametrize("backend", ["dense", "pyramid"])
def test_the_operators_follow_the_rules_of_custom_operators(backend):
    x, log_weight, sigma, _ = inputs(2, 40, 3)
    operator = getattr(torch.ops.contextpool, backend).default
    arguments = (x, log_weight.detach().exp().requires_grad_(), sigma.detach().clamp_min(0.5).requires_grad_(), True)
    torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("backend", ["dense", "pyramid"])
def test_compiled_code_gives_the_same_numbers(backend):
    def pool(x, log_weight, sigma):
        return context_pool(2.0 * x, log_weight, sigma, backend=backend)

    results = []
    for function in (pool, torch.compile(pool, backend="aot_eager", fullgraph=True)):
        *leaves, grad = inputs(2, 50, 3)
        y = function(*leaves)
        y.backward(grad)
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
