"""Synthesizer and FNet against their formulas."""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from torch import Tensor

from attention_zoo import LayerDims, SequenceMixer, get_variant
from attention_zoo.checks import contract_checks
from attention_zoo.variants.fnet import transform_real_tokens

LENGTH, DIM, HEADS = 30, 16, 2


def make(name: str, *, dropout: float = 0.0, **options: object) -> SequenceMixer:
    torch.manual_seed(0)
    spec = get_variant(name)
    dims = LayerDims(dim=DIM, num_heads=HEADS, max_length=LENGTH + 5, dropout=dropout)
    return spec.build(spec.config.from_dict(options), dims).double()


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(3, LENGTH, DIM, dtype=torch.float64)
    mask = torch.rand(3, LENGTH) > 0.3
    mask[2] = False
    return x, mask


def naive_synthesizer(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    batch, length = x.shape[:2]
    if mixer.config.kind == "random":
        scores = mixer.scores[:, :length, :length].expand(batch, -1, -1, -1)
    elif mixer.config.kind == "factorised":
        scores = (mixer.query_table @ mixer.key_table.transpose(1, 2))[:, :length, :length].expand(batch, -1, -1, -1)
    else:
        hidden = mixer.hidden(x).relu().view(batch, length, HEADS, -1)
        scores = torch.einsum("bihd,hjd->bhij", hidden, mixer.key_table[:, :length])
        scores = scores + mixer.key_bias[:, :length].transpose(1, 2)
    weights = scores.exp()
    if mask is not None:
        weights = weights * mask[:, None, None, :]
    weights = weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)
    v = mixer.value(x).view(batch, length, HEADS, -1)
    out = mixer.out(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))
    return out if mask is None else out * mask[..., None]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"rank": 3}, {"kind": "random"}, {"kind": "dense"}],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_synthesizer_equals_the_formula_in_outputs_and_gradients(options, masked):
    mixer = make("synthesizer", **options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    x, mask = inputs()
    x.requires_grad_()
    named = {"x": x, **dict(mixer.named_parameters())}
    outs = [form(x, mask if masked else None) for form in (mixer, lambda *given: naive_synthesizer(mixer, *given))]
    torch.testing.assert_close(*outs)
    gradients = [torch.autograd.grad(out.sin().sum(), tuple(named.values())) for out in outs]
    for name, first, second in zip(named, *gradients, strict=True):
        torch.testing.assert_close(first, second, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("kind", ["factorised", "random"])
def test_weights_that_are_not_of_the_tokens_make_a_linear_map(kind):
    mixer = make("synthesizer", kind=kind)
    x, mask = inputs()
    y = torch.randn_like(x)
    torch.testing.assert_close(mixer(x, mask) + mixer(y, mask) - mixer(0 * x, mask), mixer(x + y, mask))


def run_contract_with(name: str, options: dict[str, object], monkeypatch, *, without: set[str]) -> None:
    spec = get_variant(name)
    original = spec.config.__init__
    monkeypatch.setattr(spec.config, "__init__", lambda self, **given: original(self, **(options | given)))
    checks = dict(contract_checks(spec))
    assert len(checks) >= 20
    assert without <= set(checks)
    for check, run in checks.items():
        if check not in without:
            run()


@pytest.mark.parametrize(("kind", "without"), [("dense", set()), ("random", {"memory"})], ids=["dense", "random"])
def test_other_synthesizers_keep_the_contract(kind, without, monkeypatch):
    run_contract_with("synthesizer", {"kind": kind}, monkeypatch, without=without)


def test_fnet_over_padded_positions_keeps_the_rest_of_the_contract(monkeypatch):
    run_contract_with("fnet", {"over": "padded"}, monkeypatch, without={"padding_length"})


def naive_fourier(tokens: Tensor) -> Tensor:
    """Sum the two-dimensional transform of (length, dim) term by term, and divide by sqrt(length * dim)."""
    matrices = []
    for size in tokens.shape:
        rows = [[cmath.exp(-2j * math.pi * i * j / size) / math.sqrt(size) for j in range(size)] for i in range(size)]
        matrices.append(torch.tensor(rows, dtype=torch.complex128))
    return (matrices[0] @ tokens.to(torch.complex128) @ matrices[1]).real


def test_fnet_equals_the_sum_over_the_real_tokens():
    mixer = make("fnet")
    x, mask = inputs()
    expected = torch.zeros_like(x)
    for row in range(2):
        expected[row, mask[row]] = naive_fourier(x[row, mask[row]])
    torch.testing.assert_close(mixer(x, mask), expected)
    torch.testing.assert_close(mixer(x)[2], naive_fourier(x[2]))


def test_fnet_over_padded_positions_takes_them_for_zeros():
    mixer = make("fnet", over="padded")
    x, mask = inputs()
    out = mixer(x, mask)
    for row in range(3):
        whole = naive_fourier(x[row] * mask[row, :, None])
        torch.testing.assert_close(out[row], whole * mask[row, :, None])


@pytest.mark.parametrize("length", [1, 2, 3, 31, 64, 257])
def test_transform_of_real_tokens_keeps_the_norm_and_its_gradient_is_the_adjoint(length):
    torch.manual_seed(0)
    x = torch.randn(2, length, 3, dtype=torch.complex128, requires_grad=True)
    y = torch.randn(2, length, 3, dtype=torch.complex128)
    mask = torch.rand(2, length) > 0.4
    mask[:, 0] = True
    out = transform_real_tokens(x, mask)
    real = mask[..., None]
    torch.testing.assert_close((out * real).abs().square().sum((1, 2)), (x * real).abs().square().sum((1, 2)))
    (gradient,) = torch.autograd.grad((out * y.conj()).sum().real, x)
    torch.testing.assert_close((gradient.conj() * x).sum().real, (out * y.conj()).sum().real)
    assert not gradient[~mask].any()


def test_transform_in_single_precision_is_accurate_for_long_sequences():
    """The angle of the last chirp is some thousand turns: it would cost three digits without the reduction."""
    torch.manual_seed(0)
    x = torch.randn(1, 3001, 2, dtype=torch.complex64)
    out = transform_real_tokens(x, torch.ones(1, 3001, dtype=torch.bool))
    exact = torch.fft.fft(x.to(torch.complex128), dim=1, norm="ortho")
    assert (out - exact).abs().max() < 1e-5
