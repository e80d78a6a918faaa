"""Adaptive span against its formula, and the band that follows the spans."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import LayerDims, ParameterGroup
from attention_zoo.kernels import adaptive_span as kernel
from attention_zoo.variants.adaptive_span import AdaptiveSpan, AdaptiveSpanConfig, StaticSpans
from tests.attention_zoo.variants.helpers import assert_keeps_the_contract, full_like, inputs

LENGTH = 150


def make(causal: bool = False, num_prefix: int = 0, dropout: float = 0.0, **options: object) -> AdaptiveSpan:
    torch.manual_seed(0)
    dims = LayerDims(dim=16, num_heads=4, max_length=LENGTH, causal=causal, num_prefix=num_prefix, dropout=dropout)
    return AdaptiveSpan(AdaptiveSpanConfig.from_dict(options), dims).double()


def naive(mixer: AdaptiveSpan, x: Tensor, mask: Tensor) -> Tensor:
    """Multiply by the mask and normalise again, as the paper writes it, on the whole matrix."""
    q, k, v = mixer.projections.split(x)
    spans = mixer.span(x, mask)[..., None]
    place = torch.arange(x.shape[1])
    distance = (place[:, None] - place).abs().double()
    prefix = place < mixer.dims.num_prefix
    distance = distance.masked_fill(prefix[:, None] | prefix, 0.0)
    fade = ((mixer.ramp + spans - distance) / mixer.ramp).clamp(0.0, 1.0) * mask[:, None, None, :]
    if mixer.dims.causal:
        fade = fade.tril()
    weights = fade * ((q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5).exp()
    return mixer.projections.merge(weights / weights.sum(-1, keepdim=True).clamp_min(1e-30) @ v, mask)


@pytest.mark.parametrize("num_prefix", [0, 2])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", [{}, {"rotary": True, "ramp": 3}, {"span": "dynamic"}], ids=str)
def test_equals_the_formula_in_outputs_and_gradients(options, causal, num_prefix):
    mixer = make(causal=causal, num_prefix=num_prefix, **options)
    with torch.no_grad():
        for parameter in mixer.span.parameters():
            parameter += 0.3 * torch.rand_like(parameter)
    x, mask = inputs(LENGTH)
    x.requires_grad_()
    parameters = dict(mixer.named_parameters())
    fast, slow = mixer(x, mask), naive(mixer, x, mask)
    torch.testing.assert_close(fast, slow)
    for of in (fast, slow):
        of.sin().sum().backward(retain_graph=True)
    gradients = [torch.autograd.grad(out.square().sum(), (x, *parameters.values())) for out in (fast, slow)]
    for name, first, second in zip(("x", *parameters), *gradients, strict=True):
        torch.testing.assert_close(first, second, msg=name)
    assert all(
        gradient.any() for name, gradient in zip(("x", *parameters), gradients[0], strict=True) if "span" in name
    )


@pytest.mark.parametrize(
    "options", [{"span": "dynamic", "initial_span": 0.5}, {"span": "dynamic"}, {"initial_span": 0.4}], ids=str
)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("adaptive_span", options, without={"exact_limit"})


@pytest.mark.parametrize("span", ["static", "dynamic"])
def test_a_span_of_the_whole_length_is_full_attention(span):
    mixer = make(span=span, initial_span=1.0)
    x, mask = inputs(LENGTH)
    torch.testing.assert_close(mixer(x, mask), full_like(mixer)(x, mask))


def test_penalty_is_the_mean_span_in_tokens():
    mixer = make(penalty=0.5, initial_span=0.1)
    loss = mixer.auxiliary_loss()
    assert loss.item() == pytest.approx(0.5 * 0.1 * LENGTH, rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, mixer.span.fraction)
    torch.testing.assert_close(gradient, torch.full((4,), 0.5 * LENGTH / 4, dtype=torch.float64))
    assert make(penalty=0.0).auxiliary_loss() is None


def test_dynamic_penalty_averages_over_real_tokens_and_lives_for_one_step():
    mixer = make(span="dynamic", penalty=1.0)
    assert mixer.auxiliary_loss() is None
    with torch.no_grad():
        mixer.span.weight.normal_()
    x, mask = inputs(LENGTH)
    mixer(x, mask)
    per_token = LENGTH * torch.sigmoid(x @ mixer.span.weight.T + mixer.span.bias)
    torch.testing.assert_close(mixer.auxiliary_loss(), per_token[mask].mean())
    mixer.after_step()
    assert mixer.auxiliary_loss() is None
    mixer.eval()(x, mask)
    assert mixer.auxiliary_loss() is None


def test_after_step_clamps_into_the_unit_interval():
    mixer = make()
    with torch.no_grad():
        mixer.span.fraction.copy_(torch.tensor([-0.5, 0.25, 1.5, 1.0]))
    mixer.after_step()
    assert mixer.span.fraction.tolist() == [0.0, 0.25, 1.0, 1.0]
    assert mixer.statistics()["span_longest"] == LENGTH


def test_spans_learn_ten_times_as_fast_or_at_the_rate_of_the_authors():
    for span in ("static", "dynamic"):
        mixer = make(span=span)
        (name,) = mixer.parameter_groups()
        assert mixer.parameter_groups() == {name: ParameterGroup(rate=10.0)}
        assert make(span=span, span_rate=1.0).parameter_groups() == {name: ParameterGroup()}
        assert name in dict(mixer.named_parameters())


def change_by_optimiser(mixer: AdaptiveSpan) -> None:
    mixer.span.fraction.grad = torch.full_like(mixer.span.fraction, -1.0)
    torch.optim.AdamW([mixer.span.fraction], lr=0.5, fused=True).step()
    mixer.after_step()  # part of the contract; a fused optimiser leaves no other trace of its step


def change_by_loading(mixer: AdaptiveSpan) -> None:
    mixer.load_state_dict(make(initial_span=0.5).state_dict())


def change_by_assigning(mixer: AdaptiveSpan) -> None:
    mixer.load_state_dict(make(initial_span=0.5).state_dict(), assign=True)


def change_in_place(mixer: AdaptiveSpan) -> None:
    torch.nn.init.constant_(mixer.span.fraction, 0.5)


@pytest.mark.parametrize(
    "change", [change_by_optimiser, change_by_loading, change_by_assigning, change_in_place], ids=lambda f: f.__name__
)
def test_the_band_follows_the_spans_however_they_change(change):
    mixer = make()
    x, mask = inputs(LENGTH)
    mixer(x, mask)
    change(mixer)
    assert mixer.span.fraction.max().item() == pytest.approx(0.5, abs=1e-3)
    torch.testing.assert_close(mixer(x, mask), naive(mixer, x, mask))
    torch.testing.assert_close(copy.deepcopy(mixer)(x, mask), mixer(x, mask), rtol=0, atol=0)


@pytest.mark.parametrize("span", ["static", "dynamic"])
def test_all_keys_of_a_gpu_are_those_of_the_band(span, monkeypatch):
    x, mask = inputs(LENGTH)
    results = []
    for meets_all in (False, True):
        if meets_all:
            monkeypatch.setattr(kernel, "_radius", lambda span, length, band: length)
        mixer = make(span=span, causal=True, num_prefix=2, bias="t5", initial_span=0.1)
        out = mixer(x, mask)
        out.square().sum().backward()
        results.append([out, *(parameter.grad for parameter in mixer.parameters())])
    for banded, whole in zip(*results, strict=True):
        torch.testing.assert_close(banded, whole)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the compiler looks at it itself
@pytest.mark.nightly
def test_compiled_it_follows_the_spans_without_compiling_again():
    mixer = make()
    x, mask = inputs(LENGTH)
    compiled = torch.compile(mixer, backend="aot_eager")
    with torch._dynamo.config.patch(cache_size_limit=3, fail_on_cache_limit_hit=True):
        for fraction in (0.0, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0):
            with torch.no_grad():
                mixer.span.fraction.fill_(fraction)
            mixer.after_step()
            torch.testing.assert_close(compiled(x, mask), naive(mixer, x, mask))
    fresh, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    compiled(fresh, mask).sum().backward()
    naive(mixer, again, mask).sum().backward()
    torch.testing.assert_close(fresh.grad, again.grad)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.nightly
@pytest.mark.parametrize("span", ["static", "dynamic"])
def test_compiled_it_is_one_graph_that_drops_the_same_weights(span):
    mixer = make(span=span, bias="t5", dropout=0.4)
    x, mask = inputs(LENGTH)
    results = []
    for run in (mixer, torch.compile(mixer, backend="aot_eager", fullgraph=True)):
        torch.manual_seed(3)
        out = run(x, mask)
        grads = torch.autograd.grad(out.square().sum(), list(mixer.parameters()))
        results.append([out, *grads])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(eager, compiled, rtol=0, atol=0)


def test_a_diverged_span_is_no_crash():
    mixer = make()
    with torch.no_grad():
        mixer.span.fraction.fill_(float("nan"))
    mixer.after_step()
    assert isinstance(mixer.span, StaticSpans)
    assert mixer(inputs(LENGTH)[0]).isnan().any()


def test_short_spans_meet_fewer_keys():
    def keys_met(fraction: float) -> int:
        mixer = make(initial_span=fraction)
        x = torch.randn(1, LENGTH, 16, dtype=torch.float64, requires_grad=True)
        mixer(x)[0, LENGTH // 2].sum().backward()
        return int(x.grad[0].any(dim=-1).sum())

    # At z = 0 and a ramp of 9 the mask is above zero at distances 0 to 8: 17 tokens.
    assert make().ramp == 9
    assert keys_met(0.0) == 17
    assert keys_met(0.125) == 2 * 27 + 1
    assert keys_met(1.0) == LENGTH


def test_work_follows_the_longest_span():
    def scores(fraction: float) -> int:
        mixer = AdaptiveSpan(AdaptiveSpanConfig(initial_span=fraction), LayerDims(dim=16, num_heads=1, max_length=4096))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            mixer(torch.randn(1, 4096, 16))
        return counter.get_flop_counts()["Global"][torch.ops.aten.bmm]

    short, whole = scores(0.0), scores(1.0)
    assert short > 0
    assert whole / short > 20


def test_dropout_is_the_same_in_backward():
    mixer = make(dropout=0.4)
    x, mask = inputs(LENGTH)
    x = x[:, :20].clone().requires_grad_()

    def seeded(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return mixer(x, mask[:, :20]).sum(-1)

    assert torch.autograd.gradcheck(seeded, (x,), nondet_tol=0.0, fast_mode=True)


@pytest.mark.parametrize("max_length", [2, 16, 24])
def test_a_span_of_zero_can_grow_on_short_sequences(max_length):
    mixer = AdaptiveSpan(AdaptiveSpanConfig(), LayerDims(dim=16, num_heads=4, max_length=max_length))
    mixer(torch.randn(2, max_length, 16)).square().sum().backward()
    assert (mixer.span.fraction.grad != 0).all()


@pytest.mark.parametrize(
    "options",
    [{"ramp": -1}, {"ramp": 1}, {"initial_span": 1.5}, {"penalty": -1.0}, {"span": "both"}, {"span_rate": 0.0}],
    ids=str,
)
def test_wrong_values_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        AdaptiveSpanConfig.from_dict(options)
