"""Every backend of the pooling operator against the float64 reference and against what its formula implies."""

import functools
from dataclasses import replace

import pytest
import torch

from contextpool.pool import context_pool, resolve_backend
from contextpool.reference import reference_pool
from tests.contextpool import operator_cases as cases

Case = cases.Case

forms = pytest.mark.parametrize(("backend", "causal"), cases.FORMS)


def pool_with(backend):
    return functools.partial(context_pool, backend=backend)


@forms
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("sigma", ["tiny", "paper", "mixed"])
@pytest.mark.parametrize("length", [1, 2, 5, 17, 257])
def test_matches_the_reference(backend, causal, normalized, sigma, length):
    cases.check_against_truth(pool_with(backend), Case(length, sigma=sigma, causal=causal, normalized=normalized))


@forms
@pytest.mark.parametrize("sigma", ["tiny", "paper"])
def test_matches_the_reference_at_3001_tokens(backend, causal, sigma):
    cases.check_against_truth(pool_with(backend), Case(3001, sigma=sigma, causal=causal, batch=1, dim=3, mask="none"))


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
def test_extreme_inputs_match_the_reference(backend, causal, case):
    cases.check_against_truth(pool_with(backend), replace(case, causal=causal))


@forms
@pytest.mark.parametrize("normalized", [True, False])
def test_masked_tokens_reach_nothing(backend, causal, normalized):
    case = Case(100, sigma="paper", causal=causal, normalized=normalized)
    cases.check_masked_tokens(pool_with(backend), case)


@forms
def test_more_padding_changes_nothing(backend, causal):
    x, log_weight, sigma, mask, _ = Case(200, sigma="paper").inputs()
    y = context_pool(x, log_weight, sigma, mask, causal=causal, backend=backend)
    longer = [torch.cat((value, value[:, :123] + 1), dim=1) for value in (x, log_weight, sigma)]
    padded = context_pool(*longer, torch.nn.functional.pad(mask, (0, 123)), causal=causal, backend=backend)
    torch.testing.assert_close(padded[:, :200], y, rtol=1e-5, atol=2e-6)
    assert (padded[:, 200:] == 0).all()


@forms
def test_permuting_the_batch_permutes_the_result(backend, causal):
    x, log_weight, sigma, mask, _ = Case(150, batch=4).inputs()
    order = torch.tensor([2, 0, 3, 1])
    y = context_pool(x, log_weight, sigma, mask, causal=causal, backend=backend)
    permuted = context_pool(*(v[order] for v in (x, log_weight, sigma, mask)), causal=causal, backend=backend)
    torch.testing.assert_close(permuted, y[order], rtol=1e-6, atol=1e-6)


@forms
def test_only_differences_of_log_weights_matter(backend, causal):
    x, log_weight, sigma, mask, _ = Case(150).inputs()
    y = context_pool(x, log_weight, sigma, mask, causal=causal, backend=backend)
    shifted = context_pool(x, log_weight + 300.0, sigma, mask, causal=causal, backend=backend)
    torch.testing.assert_close(shifted, y, rtol=1e-4, atol=1e-4)  # 300 costs log_weight its last digits


@forms
def test_constant_tokens_stay(backend, causal):
    _, log_weight, sigma, mask, _ = Case(150).inputs()
    x = torch.full((2, 150, 3), 2.5)
    y = context_pool(x, log_weight, sigma, mask, causal=causal, backend=backend)
    torch.testing.assert_close(y[mask], x[mask], rtol=1e-6, atol=0)


@forms
def test_narrow_gaussians_give_the_identity(backend, causal):
    x, log_weight, _, mask, _ = Case(150).inputs()
    y = context_pool(x, log_weight, torch.zeros(2, 150), mask, causal=causal, backend=backend)
    torch.testing.assert_close(y[mask], x[mask], rtol=1e-6, atol=1e-7)


@forms
def test_wide_gaussians_give_the_mean_of_what_is_visible(backend, causal):
    x, _, _, mask, _ = Case(150).inputs()
    y = context_pool(x, torch.zeros(2, 150), torch.full((2, 150), 1e6), mask, causal=causal, backend=backend)
    kept = x * mask[:, :, None]
    total, count = (kept.cumsum(1), mask.cumsum(1)) if causal else (kept.sum(1, True), mask.sum(1, True))
    expected = (total / count[:, :, None]).expand_as(x)
    torch.testing.assert_close(y[mask], expected[mask], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["dense", "tree"])
def test_causal_pooling_does_not_see_the_future(backend):
    x, log_weight, sigma, _, _ = Case(500, sigma="paper").inputs()
    y = context_pool(x, log_weight, sigma, causal=True, backend=backend)
    x, log_weight, sigma = (torch.cat((v[:, :260], v[:, 260:] + 1.0), dim=1) for v in (x, log_weight, sigma))
    changed = context_pool(x, log_weight, sigma, causal=True, backend=backend)
    torch.testing.assert_close(changed[:, :260], y[:, :260], rtol=1e-6, atol=1e-6)
    assert ((changed - y)[:, 260:].norm(dim=2) > 1e-3).all()


@forms
@pytest.mark.parametrize("normalized", [True, False])
def test_gradients_are_those_of_the_function(backend, causal, normalized):
    draw = torch.Generator().manual_seed(0)
    x, log_weight = torch.randn(2, 21, 2, generator=draw).double(), torch.randn(2, 21, generator=draw).double()
    sigma = torch.linspace(0.6, 9.7, 42).view(2, 21).double()
    mask = torch.ones(2, 21, dtype=torch.bool)
    mask[0, 15:] = False

    def function(*leaves):
        return context_pool(*leaves, mask, causal=causal, normalized=normalized, backend=backend)

    assert torch.autograd.gradcheck(function, [v.requires_grad_() for v in (x, log_weight, sigma)], fast_mode=True)


@forms
def test_the_gradient_of_x_is_the_adjoint(backend, causal):
    x, log_weight, sigma, mask, grad = Case(300, sigma="paper").inputs()
    x = x.double().requires_grad_()
    y = context_pool(x, log_weight, sigma, mask, causal=causal, backend=backend)
    y.backward(grad.double())
    torch.testing.assert_close((y * grad).sum(), (x * x.grad).sum(), rtol=1e-10, atol=1e-10)


@forms
def test_bfloat16_tokens_are_summed_in_float32(backend, causal):
    case = Case(400, sigma="paper", causal=causal, dim=16)
    x, log_weight, sigma, mask, grad = case.inputs()
    leaves = [x.bfloat16().requires_grad_(), log_weight.requires_grad_(), sigma.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = context_pool(*leaves, mask, causal=causal, backend=backend)
    assert y.dtype == torch.bfloat16
    y.backward(grad.bfloat16())
    for ours, theirs in zip([y, *(leaf.grad for leaf in leaves)], cases.truth(case), strict=True):
        assert (ours - theirs).norm() <= 5e-3 * theirs.norm()


@forms
def test_autocast_leaves_float32_alone(backend, causal):
    case = Case(150, causal=causal)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cases.check_against_truth(pool_with(backend), case)


@forms
def test_a_width_that_is_not_a_number_gives_no_number(backend, causal):
    x, log_weight, sigma, _, _ = Case(50).inputs()
    sigma[0, 7] = torch.nan
    y = context_pool(x, log_weight, sigma, causal=causal, backend=backend)
    assert y[0, 7].isnan().all()
    assert y[1].isfinite().all()


@forms
@pytest.mark.parametrize("normalized", [True, False])
def test_a_batch_without_real_tokens_gives_zeros_and_zero_gradients(backend, causal, normalized):
    x, log_weight, sigma, mask, grad = Case(200, sigma="paper").inputs()
    leaves = [value.requires_grad_() for value in (x, log_weight, sigma)]
    y = context_pool(*leaves, mask & False, causal=causal, normalized=normalized, backend=backend)
    y.backward(grad)
    assert all((value == 0).all() for value in (y, *(leaf.grad for leaf in leaves)))


@forms
def test_strides_do_not_matter(backend, causal):
    case = Case(200, sigma="paper", causal=causal)

    def strided(x, log_weight, sigma, mask, **options):
        x = x.transpose(0, 2).contiguous().transpose(0, 2)
        log_weight, sigma = torch.stack((log_weight, sigma), dim=2).unbind(2)
        return context_pool(x, log_weight, sigma, mask, backend=backend, **options).transpose(0, 1).transpose(0, 1)

    cases.check_against_truth(strided, case)


@forms
def test_an_empty_batch_is_returned(backend, causal):
    y = context_pool(torch.ones(0, 5, 3), torch.ones(0, 5), torch.ones(0, 5), causal=causal, backend=backend)
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
