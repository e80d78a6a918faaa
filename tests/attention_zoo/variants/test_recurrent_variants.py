"""s4d, gated_linear, mega, conv and mlp_only against their definitions, written as recurrences or loops."""

from __future__ import annotations

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo import LayerDims, SequenceMixer, get_variant
from attention_zoo.checks import contract_checks
from attention_zoo.kernels.long_convolution import exponential_kernel, long_convolution
from attention_zoo.variants.conv import Conv
from attention_zoo.variants.gated_linear import GatedLinear, gated_linear_attention
from attention_zoo.variants.mega import Mega, MovingAverage
from attention_zoo.variants.mlp_only import MlpOnly
from attention_zoo.variants.s4d import S4D

LENGTH = 37
NAMES = ("s4d", "gated_linear", "mega", "conv", "mlp_only")


def make(name: str, causal: bool = False, **options: object) -> SequenceMixer:
    torch.manual_seed(0)
    spec = get_variant(name)
    dims = LayerDims(dim=12, num_heads=2, max_length=LENGTH, causal=causal)
    return spec.build(spec.config.from_dict(options), dims).double()


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    mask = torch.rand(3, LENGTH) > 0.3
    mask[2] = False
    return torch.randn(3, LENGTH, 12, dtype=torch.float64, requires_grad=True), mask


def real_part(x: Tensor, mask: Tensor) -> Tensor:
    return x * mask[..., None]


def naive_s4d(mixer: S4D, x: Tensor, mask: Tensor) -> Tensor:
    """Step the state through the sequence, one token at a time, in both directions."""
    signal = real_part(x, mask)
    poles = torch.complex(-mixer.log_decay.exp(), mixer.frequency)
    rate = (poles * mixer.log_step.exp()[:, None]).exp()
    drive = (rate - 1.0) / poles
    readouts = [torch.view_as_complex(weight) for weight in mixer.readout]

    def scan(order: list[int], readout: Tensor, itself: bool) -> Tensor:
        state = torch.zeros(3, *poles.shape, dtype=poles.dtype)
        outputs: dict[int, Tensor] = {}
        for place in order:
            before = state
            state = rate * state + drive * signal[:, place, :, None]
            outputs[place] = 2.0 * (readout * (state if itself else before)).sum(-1).real
        return torch.stack([outputs[place] for place in range(LENGTH)], dim=1)

    mixed = scan(list(range(LENGTH)), readouts[0], itself=True) + mixer.skip * signal
    if not mixer.dims.causal:
        mixed = mixed + scan(list(range(LENGTH))[::-1], readouts[1], itself=False)
    value, gate = mixer.out(F.gelu(mixed)).chunk(2, dim=-1)
    return real_part(value * gate.sigmoid(), mask)


def naive_recurrence(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, itself: bool = True) -> Tensor:
    state = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
    outputs = []
    for place in range(q.shape[2]):
        state = log_decay[:, :, place, None, None].exp() * state
        written = k[:, :, place, :, None] * v[:, :, place, None, :]
        outputs.append((q[:, :, place, None] @ (state + written if itself else state)).squeeze(2))
        state = state + written
    return torch.stack(outputs, dim=2)


def naive_gated_linear(mixer: GatedLinear, x: Tensor, mask: Tensor) -> Tensor:
    def heads(projected: Tensor) -> Tensor:
        return projected.view(3, LENGTH, 2, -1).transpose(1, 2)

    q, v = heads(mixer.query(x)) / math.sqrt(3), heads(mixer.value(x))
    k = heads(real_part(mixer.key(x), mask))
    gates = real_part(mixer.forget_gate(x).sigmoid().log() / 16, mask).transpose(1, 2)
    read = naive_recurrence(q, k, v, gates[:, :2])
    if not mixer.dims.causal:
        turned = [each.flip(2) for each in (q, k, v, gates[:, 2:])]
        read = read + naive_recurrence(*turned, itself=False).flip(2)
    read = read / (read.square().mean(-1, keepdim=True) + 1e-5).sqrt() * mixer.norm.weight
    gate = mixer.output_gate(x)
    return real_part(mixer.out(gate * gate.sigmoid() * read.transpose(1, 2).flatten(2)), mask)


def naive_average(average: MovingAverage, signal: Tensor, causal: bool) -> Tensor:
    alpha, delta = average.alpha.sigmoid(), average.delta.sigmoid()

    def scan(order: list[int], d: int, itself: bool) -> Tensor:
        state = torch.zeros(3, *alpha.shape[1:], dtype=torch.float64)
        outputs: dict[int, Tensor] = {}
        for place in order:
            before = state
            state = alpha[d] * average.beta[d] * signal[:, place, :, None] + (1 - alpha[d] * delta[d]) * state
            outputs[place] = (average.eta[d] * (state if itself else before)).sum(-1)
        return torch.stack([outputs[place] for place in range(LENGTH)], dim=1)

    forward = scan(list(range(LENGTH)), 0, itself=True)
    return forward if causal else forward + scan(list(range(LENGTH))[::-1], 1, itself=False)


def naive_mega(mixer: Mega, x: Tensor, mask: Tensor) -> Tensor:
    """The paper's equations on whole matrices."""
    signal = real_part(x, mask)
    averaged = naive_average(mixer.average, signal, mixer.dims.causal)
    shared = F.silu(mixer.shared(averaged))
    width = shared.shape[-1]
    q, k = mixer.scale[0] * shared + mixer.shift[0], mixer.scale[1] * shared + mixer.shift[1]
    chunk = mixer.config.chunk or LENGTH
    place = torch.arange(LENGTH)
    # The bias of a pair depends on the distance alone: turn alpha by it.
    angle = (place[:, None] - place).double()[..., None] * 10000.0 ** (-torch.arange(0, width, 2).double() / width)
    first, second = mixer.bias[0].chunk(2)
    turned = torch.cat((first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()), dim=-1)
    scores = q @ k.transpose(1, 2) / math.sqrt(width) + turned @ mixer.bias[1]
    seen = mask[:, None, :] & (place[:, None] // chunk == place // chunk)
    if mixer.dims.causal:
        seen = seen.tril()
    weights = scores.exp() * seen
    read = weights / weights.sum(-1, keepdim=True).clamp_min(1e-30) @ F.silu(mixer.value(signal))
    candidate = F.silu(mixer.candidate(averaged) + mixer.out(F.silu(mixer.reset(averaged)) * read))
    return real_part(mixer.update(averaged).sigmoid() * (candidate - signal), mask)


def naive_conv(mixer: Conv, x: Tensor, mask: Tensor) -> Tensor:
    signal = real_part(mixer.expand(x), mask)
    size = mixer.config.kernel_size
    centre = size - 1 if mixer.dims.causal else size // 2
    rows = []
    for place in range(LENGTH):
        met = [(tap, place + tap - centre) for tap in range(size) if 0 <= place + tap - centre < LENGTH]
        rows.append(sum(mixer.kernel.weight[:, 0, tap] * signal[:, other] for tap, other in met) + mixer.kernel.bias)
    return real_part(mixer.out(F.gelu(torch.stack(rows, dim=1))), mask)


def naive_mlp(mixer: MlpOnly, x: Tensor, mask: Tensor) -> Tensor:
    return real_part(mixer.out(F.gelu(mixer.expand(x))), mask)


CASES = [
    ("s4d", {"state_size": 6, "max_step": 0.5}, naive_s4d),
    ("gated_linear", {"chunk": 8, "gate_bias": -3.0}, naive_gated_linear),
    ("gated_linear", {"chunk": 64}, naive_gated_linear),
    ("mega", {"num_averages": 3}, naive_mega),
    ("mega", {"chunk": 8, "value_dim": 24, "key_dim": 4}, naive_mega),
    ("mega", {"chunk": 8, "backend": "fused"}, naive_mega),
    ("conv", {}, naive_conv),
    ("conv", {"kernel_size": 61}, naive_conv),
    ("mlp_only", {}, naive_mlp),
]


@pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
@pytest.mark.parametrize(("name", "options", "naive"), CASES, ids=[f"{name}-{options}" for name, options, _ in CASES])
def test_equals_its_definition_in_outputs_and_gradients(name, options, naive, causal):
    mixer = make(name, causal=causal, **options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x, mask = inputs()
    parameters = dict(mixer.named_parameters())
    fast, slow = mixer(x, mask), naive(mixer, x, mask)
    torch.testing.assert_close(fast, slow)
    gradients = [torch.autograd.grad(out.sin().sum(), (x, *parameters.values())) for out in (fast, slow)]
    for label, first, second in zip(("x", *parameters), *gradients, strict=True):
        torch.testing.assert_close(first, second, msg=lambda text, label=label: f"{label}: {text}")
        assert first.any(), label
    assert not gradients[0][0][~mask].any()


def test_every_name_has_a_case():
    assert {name for name, _, _ in CASES} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "options"), [("mega", {"chunk": 32}), ("conv", {"kernel_size": 61}), ("s4d", {"state_size": 4})], ids=str
)
def test_other_options_keep_the_contract(name, options, monkeypatch):
    spec = get_variant(name)
    with_options = functools.partialmethod(spec.config.__init__, **options)
    monkeypatch.setattr(spec.config, "__init__", with_options)
    assert spec.config().to_dict().items() >= options.items()
    checks = [(check, run) for check, run in contract_checks(spec) if check not in ("config", "backends")]
    assert len(checks) >= 18
    for _, run in checks:
        run()


@pytest.mark.parametrize("length", [1, 2, 17, 100])
def test_exponential_kernel_is_a_sum_of_powers(length):
    torch.manual_seed(0)
    weight = torch.randn(3, 5, dtype=torch.complex128)
    rate = torch.complex(-torch.rand(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64))
    place = torch.arange(length)
    expected = (weight[..., None] * rate.exp()[..., None] ** place).sum(1)
    torch.testing.assert_close(exponential_kernel(weight, rate, length), expected.real)
    torch.testing.assert_close(
        exponential_kernel(weight.real, rate.real, length),
        (weight.real[..., None] * rate.real.exp()[..., None] ** place).sum(1),
    )


@pytest.mark.parametrize("length", [1, 2, 31, 64])
def test_long_convolution_looks_both_ways(length):
    torch.manual_seed(0)
    x = torch.randn(2, length, 3, dtype=torch.float64)
    past, future = torch.randn(2, 3, length, dtype=torch.float64)
    expected = torch.zeros_like(x)
    for i in range(length):
        for j in range(length):
            tap = past[:, i - j] if j <= i else future[:, j - i - 1]
            expected[:, i] += tap * x[:, j]
    torch.testing.assert_close(long_convolution(x, past, future), expected)
    torch.testing.assert_close(long_convolution(x, past)[:, 0], past[:, 0] * x[:, 0])


def test_fast_forgetting_neither_overflows_nor_loses_gradients():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 1, 64, 8)
    decay = torch.full((1, 1, 64), -60.0, requires_grad=True)  # 64 of them: exp(3840) if written as a quotient
    for future in (None, decay):
        out = gated_linear_attention(q, k, v, decay, future, chunk=64)
        torch.testing.assert_close(out, (q * k).sum(-1, keepdim=True) * v)
        (gradient,) = torch.autograd.grad(out.sum(), decay)
        assert gradient.isfinite().all()


def test_a_convolution_sees_its_kernel_and_nothing_else():
    for kernel_size in (5, 61):
        mixer = make("conv", kernel_size=kernel_size)
        x, _ = inputs()
        mixer(x)[:, LENGTH // 2].sum().backward()
        touched = x.grad[0].any(dim=-1).nonzero().flatten().tolist()
        reach = min(kernel_size // 2, LENGTH // 2)
        assert touched == list(range(LENGTH // 2 - reach, LENGTH // 2 + reach + 1))


@pytest.mark.parametrize(
    ("name", "allowed"), [("s4d", 0.62), ("gated_linear", 1.02), ("mega", 1.10), ("conv", 1.02), ("mlp_only", 1.0)]
)
def test_weights_beside_those_of_full_attention(name, allowed):
    """s4d has no projections in front, as in its paper; the others match the four of attention."""
    dims = LayerDims(dim=512, num_heads=8, max_length=2000, qkv_bias=False)
    spec = get_variant(name)
    count = sum(p.numel() for p in spec.build(spec.config(), dims).parameters())
    assert allowed - 0.1 <= count / (4 * 512 * 512) <= allowed


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("conv", {"kernel_size": 4}),
        ("s4d", {"state_size": 3}),
        ("s4d", {"min_step": 0.5}),
        ("gated_linear", {"chunk": 0}),
        ("mega", {"chunk": 0}),
        ("mega", {"key_dim": 3}),
    ],
    ids=str,
)
def test_wrong_values_are_refused(name, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        get_variant(name).config.from_dict(options)
