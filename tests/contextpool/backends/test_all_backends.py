"""Every backend of the pooling operator against the float64 reference and against what its formula implies.

Then what holds beyond the numbers: memory, the same bits twice, and use under `torch.compile`.

Each runs on the CPU, and on a CUDA device where there is one. The kernels of `triton` run under Triton's interpreter
where there is none; `tests/conftest.py` chooses it.
"""

from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from contextpool import functional as pool_module
from contextpool.functional import Backend, context_pool, resolve_backend
from contextpool.reference import reference_pool
from tests.contextpool.backends import cases

Case, FORMS = cases.Case, cases.FORMS

forms = cases.over(FORMS)
causal_forms = cases.over([form for form in FORMS if form.causal])
forms_in_logarithms = cases.over([form for form in FORMS if form.causal or form.backend == "triton"])
forms_in_float64 = cases.over([form for form in FORMS if form.backend != "triton"])  # which sums in float32
forms_with_an_operator = cases.over([form for form in FORMS if form.backend != "reference"])  # which is plain PyTorch
# On a GPU, PyTorch's indexed sums have no fixed order.
forms_in_fixed_order = cases.over(
    [form for form in FORMS if form.device == "cpu" or form.backend not in ("pyramid", "tree")]
)


def accepted_forms():
    """List what the operator accepts: (backend, causal)."""
    accepted = set()
    for backend in set(get_args(Backend)) - {"auto"}:
        for causal in (False, True):
            try:
                resolve_backend(10, torch.device("cuda"), causal=causal, backend=backend)
            except ValueError:
                continue
            accepted.add((backend, causal))
    return accepted


def check_that_all_are_tested(tested):
    for device in ("cpu", "cuda"):
        assert {(form.backend, form.causal) for form in tested if form.device == device} == accepted_forms()


def test_the_backends_tested_are_those_of_the_operator(monkeypatch):
    monkeypatch.setattr(pool_module, "_TRITON_INSTALLED", True)
    assert len(accepted_forms()) == 8
    check_that_all_are_tested(FORMS)
    with pytest.raises(AssertionError):
        check_that_all_are_tested(FORMS[:-1])
    monkeypatch.setitem(pool_module._KERNELS, "pyramid", {False: lambda: None, True: lambda: None})
    with pytest.raises(AssertionError):
        check_that_all_are_tested(FORMS)


@forms
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("sigma", ["tiny", "paper", "mixed"])
@pytest.mark.parametrize("length", [1, 2, 5, 17, 257])
def test_matches_the_reference(form, normalized, sigma, length):
    batch = 1 if form.interpreted and length > 100 else 2
    case = Case(length, sigma=sigma, causal=form.causal, normalized=normalized, batch=batch)
    cases.check_against_truth(form.pool, case)


@forms
@pytest.mark.parametrize("length", [1501, pytest.param(3001, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("sigma", ["tiny", "paper"])
def test_matches_the_reference_at_many_tokens(form, sigma, length):
    if form.interpreted and sigma == "paper":
        pytest.skip("wide Gaussians take the interpreter minutes")
    case = Case(length, sigma=sigma, causal=form.causal, batch=1, dim=3, mask="none")
    cases.check_against_truth(form.pool, case)


@forms
@pytest.mark.parametrize(
    "case",
    [
        Case(300, sigma="floor"),
        Case(300, sigma="huge"),
        Case(300, sigma="huge", normalized=False),
        Case(300, weight="eight decades"),
        Case(300, sigma="paper", weight="eight decades"),
        Case(300, mask="one empty"),
        Case(300, mask="one empty", normalized=False),
        Case(300, mask="none"),
        Case(50, dim=130, batch=1),
    ],
    ids=str,
)
def test_extreme_inputs_match_the_reference(form, case):
    cases.check_against_truth(form.pool, form.short(case))


def beside_the_heavy(length, low, sigma):
    """Return tokens, log-weights that are `low` for the middle 21 and 0 elsewhere, widths, and the middle."""
    x = torch.randn(1, length, 6, generator=torch.Generator().manual_seed(length))
    log_weight, middle = torch.zeros(1, length), length // 2
    log_weight[0, middle - 10 : middle + 11] = low
    return x, log_weight, torch.full((1, length), sigma), middle


@forms
@pytest.mark.parametrize("low", [-40.0, -55.0])
def test_heavy_tokens_out_of_reach_do_not_drown_a_light_one(form, low):
    x, log_weight, sigma, middle = beside_the_heavy(75 if form.interpreted else 384, low, 0.5)
    truth = reference_pool(x.double(), log_weight.double(), sigma.double(), causal=form.causal)
    y = form.pool(x, log_weight, sigma, causal=form.causal)
    assert (y - truth)[0, middle].abs().max() <= 1e-6


@forms_in_logarithms
@pytest.mark.parametrize("low", [-1e3, -1e6, -torch.inf])
def test_a_token_far_below_the_others_takes_its_value_from_them(form, low):
    x, log_weight, sigma, middle = beside_the_heavy(75, 0.0, 3.0)
    log_weight[0, middle if form.causal else 0] = low
    truth = reference_pool(x.double(), log_weight.double(), sigma.double(), causal=form.causal)
    y = form.pool(x, log_weight, sigma, causal=form.causal)
    assert (y - truth).abs().max() <= 1e-4


@forms
def test_a_sum_beyond_float16_is_divided_before_it_is_rounded(form):
    shape = (1, 75 if form.interpreted else 2048, 1)
    x = torch.full(shape, 2000.0 if form.interpreted else 40.0, dtype=torch.float16)
    assert x.float().sum() > torch.finfo(torch.float16).max
    wide = torch.full(shape[:2], 1e6)
    y = form.pool(x, torch.zeros(shape[:2]), wide, causal=form.causal, normalized=False)
    assert torch.allclose(y[0, -1], x[0, -1], rtol=2e-3)


@forms
@pytest.mark.parametrize("normalized", [True, False])
def test_masked_tokens_reach_nothing(form, normalized):
    cases.check_masked_tokens(form.pool, form.short(Case(100, sigma="paper", normalized=normalized), at_most=40))


@forms
def test_more_padding_changes_nothing(form):
    case = form.short(Case(200, sigma="paper"))
    x, log_weight, sigma, mask, _ = case.inputs()
    y = form.pool(x, log_weight, sigma, mask, causal=form.causal)
    more = 2 * case.length // 3
    longer = [torch.cat((value, value[:, :more] + 1), dim=1) for value in (x, log_weight, sigma)]
    padded = form.pool(*longer, torch.nn.functional.pad(mask, (0, more)), causal=form.causal)
    torch.testing.assert_close(padded[:, : case.length], y, rtol=1e-5, atol=2e-6)
    assert (padded[:, case.length :] == 0).all()


@forms
def test_permuting_the_batch_permutes_the_result(form):
    x, log_weight, sigma, mask, _ = form.short(Case(150, batch=4)).inputs()
    order = torch.tensor([2, 0, 3, 1])
    y = form.pool(x, log_weight, sigma, mask, causal=form.causal)
    permuted = form.pool(*(v[order] for v in (x, log_weight, sigma, mask)), causal=form.causal)
    torch.testing.assert_close(permuted, y[order], rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's under Triton's interpreter, of pairs that are masked
@forms
def test_only_differences_of_log_weights_matter(form):
    x, log_weight, sigma, mask, _ = form.short(Case(150)).inputs()
    y = form.pool(x, log_weight, sigma, mask, causal=form.causal)
    shifted = form.pool(x, log_weight + 300.0, sigma, mask, causal=form.causal)
    torch.testing.assert_close(shifted, y, rtol=1e-4, atol=1e-4)  # 300 costs log_weight its last digits


@forms
def test_constant_tokens_stay(form):
    _, log_weight, sigma, mask, _ = form.short(Case(150)).inputs()
    x = torch.full((*mask.shape, 3), 2.5)
    y = form.pool(x, log_weight, sigma, mask, causal=form.causal)
    torch.testing.assert_close(y[mask], x[mask], rtol=1e-6, atol=0)


@forms
def test_narrow_gaussians_give_the_identity(form):
    x, log_weight, sigma, mask, _ = form.short(Case(150)).inputs()
    y = form.pool(x, log_weight, torch.zeros_like(sigma), mask, causal=form.causal)
    torch.testing.assert_close(y[mask], x[mask], rtol=1e-6, atol=1e-7)


@forms
def test_wide_gaussians_give_the_mean_of_what_is_visible(form):
    x, _, sigma, mask, _ = form.short(Case(150)).inputs()
    y = form.pool(x, torch.zeros_like(sigma), torch.full_like(sigma, 1e6), mask, causal=form.causal)
    kept = x * mask[:, :, None]
    total, count = (kept.cumsum(1), mask.cumsum(1)) if form.causal else (kept.sum(1, True), mask.sum(1, True))
    expected = (total / count[:, :, None]).expand_as(x)
    torch.testing.assert_close(y[mask], expected[mask], rtol=1e-5, atol=1e-6)


@causal_forms
def test_causal_pooling_does_not_see_the_future(form):
    case = form.short(Case(500, sigma="paper"), at_most=100)
    x, log_weight, sigma, _, _ = case.inputs()
    now = case.length // 2 + 10
    y = form.pool(x, log_weight, sigma, causal=True)
    x, log_weight, sigma = (torch.cat((v[:, :now], v[:, now:] + 1.0), dim=1) for v in (x, log_weight, sigma))
    changed = form.pool(x, log_weight, sigma, causal=True)
    torch.testing.assert_close(changed[:, :now], y[:, :now], rtol=1e-6, atol=1e-6)
    assert ((changed - y)[:, now:].norm(dim=2) > 1e-3).all()


@forms_in_float64
@pytest.mark.parametrize("normalized", [True, False])
def test_gradients_are_those_of_the_function(form, normalized):
    draw = torch.Generator().manual_seed(0)
    x, log_weight = torch.randn(2, 21, 2, generator=draw).double(), torch.randn(2, 21, generator=draw).double()
    sigma = torch.linspace(0.6, 9.7, 42).view(2, 21).double()
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[0, 15:] = False

    def function(*leaves):
        return form.pool(*leaves, mask, causal=form.causal, normalized=normalized)

    leaves = [value.requires_grad_() for value in (x, log_weight, sigma)]
    # On a GPU some sums have no fixed order.
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True, nondet_tol=1e-12)


@forms
def test_the_gradient_of_x_is_the_adjoint(form):
    x, log_weight, sigma, mask, grad = form.short(Case(300, sigma="paper")).inputs()
    tolerance, dtype = (1e-4, torch.float32) if form.backend == "triton" else (1e-10, torch.float64)
    x = x.to(dtype).requires_grad_()
    y = form.pool(x, log_weight, sigma, mask, causal=form.causal)
    y.backward(grad.to(dtype))
    torch.testing.assert_close((y * grad).sum(), (x * x.grad).sum(), rtol=tolerance, atol=tolerance)


@forms
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tokens_are_summed_in_float32(form, dtype):
    case = form.short(Case(400, sigma="paper", dim=16), at_most=100)
    x, log_weight, sigma, mask, grad = case.inputs()
    leaves = [x.to(dtype).requires_grad_(), log_weight.requires_grad_(), sigma.requires_grad_()]
    with torch.autocast(form.device, dtype=dtype):
        y = form.pool(*leaves, mask, causal=form.causal)
    assert y.dtype == dtype
    y.backward(grad.to(dtype))
    # The interpreter cuts float32 to bfloat16 instead of rounding it, which doubles the error.
    tolerance = 1e-2 if form.interpreted and dtype == torch.bfloat16 else 5e-3
    for ours, theirs in zip([y, *(leaf.grad for leaf in leaves)], cases.truth(case), strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


@forms
def test_autocast_leaves_float32_alone(form):
    """A backward pass that runs under autocast too, which PyTorch advises against, but for the reference's."""

    def under_autocast(*inputs, **options):
        with torch.autocast(form.device, dtype=torch.bfloat16):
            return form.pool(*inputs, **options)

    case = form.short(Case(150))
    cases.check_against_truth(under_autocast, case)
    if form.backend != "reference":
        with torch.autocast(form.device, dtype=torch.bfloat16):
            cases.check_against_truth(form.pool, case)


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # the interpreter's maximum
@forms
def test_a_width_that_is_not_a_number_gives_no_number(form):
    x, log_weight, sigma, _, _ = Case(50).inputs()
    sigma[0, 7] = torch.nan
    y = form.pool(x, log_weight, sigma, causal=form.causal)
    assert y[0, 7].isnan().all()
    assert y[1].isfinite().all()


@forms
@pytest.mark.parametrize("normalized", [True, False])
def test_a_batch_without_real_tokens_gives_zeros_and_zero_gradients(form, normalized):
    x, log_weight, sigma, mask, grad = form.short(Case(200, sigma="paper")).inputs()
    leaves = [value.requires_grad_() for value in (x, log_weight, sigma)]
    y = form.pool(*leaves, mask & False, causal=form.causal, normalized=normalized)
    y.backward(grad)
    assert all((value == 0).all() for value in (y, *(leaf.grad for leaf in leaves)))


@forms
def test_strides_do_not_matter(form):
    def strided(x, log_weight, sigma, mask, **options):
        x = x.transpose(0, 2).contiguous().transpose(0, 2)
        log_weight, sigma = torch.stack((log_weight, sigma), dim=2).unbind(2)
        return form.pool(x, log_weight, sigma, mask, **options).transpose(0, 1).transpose(0, 1)

    cases.check_against_truth(strided, form.short(Case(200, sigma="paper")))


@forms
def test_an_empty_batch_is_returned(form):
    y = form.pool(torch.ones(0, 5, 3), torch.ones(0, 5), torch.ones(0, 5), causal=form.causal)
    assert y.shape == (0, 5, 3)


def wrong_centre(x, log_weight, sigma, mask, **options):
    return reference_pool(x.roll(1, dims=1), log_weight, sigma, mask, **options)


def no_gradient_of_sigma(x, log_weight, sigma, mask, **options):
    return reference_pool(x, log_weight, sigma.detach() + 0 * sigma, mask, **options)


def no_gradient_of_the_weight(x, log_weight, sigma, mask, **options):
    return reference_pool(x, log_weight.detach() + 0 * log_weight, sigma, mask, **options)


def sees_padding(x, log_weight, sigma, mask, **options):
    return reference_pool(x, log_weight, sigma, None, **options) * mask[:, :, None]


def sums_in_half_precision(x, log_weight, sigma, mask, **options):
    return reference_pool(x.bfloat16().to(x.dtype), log_weight, sigma, mask, **options)


@pytest.mark.parametrize(
    "broken",
    [wrong_centre, no_gradient_of_sigma, no_gradient_of_the_weight, sees_padding, sums_in_half_precision],
)
def test_the_comparison_catches_a_broken_operator(broken):
    cases.check_against_truth(reference_pool, Case(60))
    with pytest.raises(AssertionError):
        cases.check_against_truth(broken, Case(60))


def test_the_mask_check_catches_a_broken_operator():
    cases.check_masked_tokens(reference_pool, Case(60))
    with pytest.raises(AssertionError):
        cases.check_masked_tokens(sees_padding, Case(60))


def test_auto_goes_by_length_device_and_form():
    cpu = torch.device("cpu")
    chosen = [resolve_backend(length, cpu) for length in (1, 384, 385, 65536)]
    assert chosen == ["dense", "dense", "pyramid", "pyramid"]
    assert [resolve_backend(length, cpu, causal=True) for length in (768, 769)] == ["dense", "tree"]
    assert resolve_backend(1000, torch.device("cuda"), dtype=torch.float64) == "dense"


def test_mistakes_are_named():
    x, log_weight, sigma, mask, _ = Case(10).inputs()
    with pytest.raises(ValueError, match=r"unknown backend 'fast'; known: .*pyramid"):
        context_pool(x, log_weight, sigma, backend="fast")
    with pytest.raises(ValueError, match="no causal form; possible: reference, dense, tree"):
        context_pool(x, log_weight, sigma, causal=True, backend="pyramid")
    with pytest.raises(ValueError, match="sigma must be"):
        context_pool(x, log_weight, sigma[:, :5])
    with pytest.raises(ValueError, match="mask must be bool"):
        context_pool(x, log_weight, sigma, mask.float())
    with pytest.raises(ValueError, match="exclude each other"):
        context_pool(x, log_weight, sigma, causal=True, grid=(2, 5))


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


@forms_in_fixed_order
def test_two_runs_give_the_same_bits(form):
    results = []
    for _ in range(2):
        *leaves, grad = inputs(2, 75 if form.interpreted else 700, 70)
        y = form.pool(*leaves, causal=form.causal)
        y.backward(grad)
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@forms_with_an_operator
def test_the_operators_follow_the_rules_of_custom_operators(form):
    x, log_weight, sigma, _ = inputs(2, 40, 3)
    form.pool(x, log_weight, sigma, causal=form.causal)  # imports the kernels
    operator = getattr(torch.ops.contextpool, f"{form.backend}_causal" if form.causal else form.backend).default
    weight, sigma = log_weight.detach().exp(), sigma.detach().clamp_min(0.5)
    leaves = [value.detach().to(form.device).requires_grad_() for value in (x, weight, sigma)]
    torch.library.opcheck(operator, (*leaves, True))


@forms_with_an_operator
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
