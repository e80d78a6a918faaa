"""What is true of the backends beyond their numbers: memory, the same bits twice, and life under torch.compile."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from contextpool.backends.pyramid.pool import slabs
from contextpool.functional import context_pool
from tests.contextpool.backends.cases import FORMS, Case, check_against_truth, over

opaque = over([form for form in FORMS if form.backend != "reference"])  # which is plain PyTorch
# On a GPU, PyTorch's indexed sums have no fixed order.
ordered = over([form for form in FORMS if form.device == "cpu" or form.backend not in ("pyramid", "tree")])


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


def largest_tensor(backend, length, *, causal):
    *leaves, grad = inputs(1, length, 4)
    with LargestTensor() as record:
        context_pool(*leaves, causal=causal, backend=backend).backward(grad)
    return record.elements


@pytest.mark.parametrize(("backend", "causal"), [("pyramid", False), ("tree", True)])
def test_no_tensor_grows_with_the_square_of_the_length(backend, causal):
    short, long = (largest_tensor(backend, length, causal=causal) for length in (4096, 16384))
    assert long < 5 * short
    assert long < 16384**2 / 200


@pytest.mark.parametrize("causal", [False, True])
def test_the_dense_backend_makes_no_tensor_of_length_by_length(causal):
    assert largest_tensor("dense", 2048, causal=causal) < 2048**2 / 10


def test_the_record_of_tensors_sees_a_length_by_length_tensor():
    assert largest_tensor("reference", 1024, causal=False) >= 1024**2


@ordered
def test_two_runs_give_the_same_bits(form):
    results = []
    for _ in range(2):
        *leaves, grad = inputs(2, 75 if form.interpreted else 700, 70)
        y = form.pool(*leaves, causal=form.causal)
        y.backward(grad)
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


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


@opaque
def test_the_operators_follow_the_rules_of_custom_operators(form):
    x, log_weight, sigma, _ = inputs(2, 40, 3)
    form.pool(x, log_weight, sigma, causal=form.causal)  # imports the kernels
    operator = getattr(torch.ops.contextpool, f"{form.backend}_causal" if form.causal else form.backend).default
    weight, sigma = log_weight.detach().exp(), sigma.detach().clamp_min(0.5)
    leaves = [value.detach().to(form.device).requires_grad_() for value in (x, weight, sigma)]
    torch.library.opcheck(operator, (*leaves, True))


@opaque
def test_compiled_code_gives_the_same_numbers(form):
    def pool(x, log_weight, sigma):
        return form.pool(2.0 * x, log_weight, sigma, causal=form.causal)

    results = []
    for function in (pool, torch.compile(pool, backend="aot_eager", fullgraph=True)):
        *leaves, grad = inputs(2, 50, 3)
        y = function(*leaves)
        y.backward(grad)
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
