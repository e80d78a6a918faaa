"""Linear attention, Performer and cosFormer against their formulas on the whole matrix of weights."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from attention_zoo import LayerDims, SequenceMixer, get_variant
from attention_zoo.checks import contract_checks
from attention_zoo.functional import attention
from attention_zoo.kernels.linear_attention import linear_attention
from attention_zoo.variants.performer import Performer, PerformerConfig, estimate_softmax, orthogonal_features

LENGTH, DIM, HEADS = 150, 16, 2


def make(name: str, *, causal: bool = False, dropout: float = 0.0, **options: object) -> SequenceMixer:
    torch.manual_seed(0)
    spec = get_variant(name)
    dims = LayerDims(dim=DIM, num_heads=HEADS, max_length=LENGTH + 7, causal=causal, dropout=dropout)
    return spec.build(spec.config.from_dict(options), dims).double()


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(3, LENGTH, DIM, dtype=torch.float64)
    mask = torch.rand(3, LENGTH) > 0.3
    mask[2] = False
    return x, mask


def assert_same(mixer: SequenceMixer, naive, x: Tensor, mask: Tensor | None) -> None:
    """Outputs, and gradients of the input and of every parameter, are equal."""
    x = x.clone().requires_grad_()
    named = {"x": x, **dict(mixer.named_parameters())}
    outs = mixer(x, mask), naive(mixer, x, mask)
    torch.testing.assert_close(*outs)
    assert outs[0].abs().max() > 1e-3
    gradients = [torch.autograd.grad(out.sin().sum(), tuple(named.values())) for out in outs]
    for name, first, second in zip(named, *gradients, strict=True):
        torch.testing.assert_close(first, second, msg=lambda text, name=name: f"{name}: {text}")


def normalised(mixer: SequenceMixer, weights: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Divide (batch, num_heads, queries, keys) by its sums over the keys, and mix."""
    if mask is not None:
        weights = weights * mask[:, None, None, :]
    if mixer.dims.causal:
        weights = weights.tril()
    return mixer.projections.merge(weights @ v / weights.sum(-1, keepdim=True).clamp_min(1e-6), mask)


def naive_linear(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = mixer.projections.split(x)
    q, k = (torch.where(t > 0, t + 1, t.exp()) for t in (q, k))
    return normalised(mixer, q @ k.transpose(-2, -1), v, mask)


def naive_cosformer(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = mixer.projections.split(x)
    place = torch.arange(x.shape[1], dtype=torch.float64)
    fade = (math.pi / 2 * (place[:, None] - place) / mixer.dims.max_length).cos()
    # The fast form keeps its angles in single precision.
    table = mixer.angles[:, : x.shape[1]]
    torch.testing.assert_close(table.T @ table, fade, atol=1e-6, rtol=0)
    return normalised(mixer, q.relu() @ k.relu().transpose(-2, -1) * (table.T @ table), v, mask)


def naive_performer(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = mixer.projections.split(x)
    if mixer.config.kernel == "softmax":
        q, k = (t * t.shape[-1] ** -0.25 for t in (q, k))
        q, k = ((t @ mixer.features.T - t.square().sum(-1, keepdim=True) / 2).exp() for t in (q, k))
    else:
        if mixer.features is not None:
            q, k = (t @ mixer.features.T * len(mixer.features) ** -0.5 for t in (q, k))
        q, k = (t.relu() + 0.001 for t in (q, k))
    return normalised(mixer, q @ k.transpose(-2, -1), v, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("name", "naive", "options"),
    [
        ("linear", naive_linear, {}),
        ("linear", naive_linear, {"rotary": True}),
        ("linear", naive_linear, {"causal": True}),
        ("cosformer", naive_cosformer, {}),
        ("cosformer", naive_cosformer, {"causal": True}),
        ("performer", naive_performer, {}),
        ("performer", naive_performer, {"num_features": 13}),
        ("performer", naive_performer, {"kernel": "softmax"}),
        ("performer", naive_performer, {"kernel": "softmax", "num_features": 5, "rotary": True}),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_equals_the_formula_in_outputs_and_gradients(name, naive, options, masked):
    x, mask = inputs()
    assert_same(make(name, **options), naive, x, mask if masked else None)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 128])
def test_causal_sums_at_the_edges_of_chunks(length):
    torch.manual_seed(0)
    q, k, v = torch.rand(3, 2, 2, length, 4, dtype=torch.float64)
    weights = (q @ k.transpose(-2, -1)).tril()
    torch.testing.assert_close(
        linear_attention(q, k, v, causal=True), weights @ v / weights.sum(-1, keepdim=True), msg=str(length)
    )


def test_half_precision_sums_in_single_precision():
    """The sum of 4096 equal features of 1 stays at 256 in bfloat16."""
    ones = torch.ones(1, 1, 4096, 4, dtype=torch.bfloat16)
    out = linear_attention(ones[:, :, :2], ones, ones)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, ones[:, :, :2])


@pytest.mark.parametrize(
    "options",
    [{"kernel": "softmax"}, {"num_features": 24}, {"kernel": "softmax", "num_features": 24, "redraw_interval": 2}],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_other_kernels_keep_the_contract(options, monkeypatch):
    original = PerformerConfig.__init__
    monkeypatch.setattr(PerformerConfig, "__init__", lambda self, **given: original(self, **(options | given)))
    checks = contract_checks(get_variant("performer"))
    assert len(checks) >= 20
    for _, run in checks:
        run()


def test_random_features_are_orthogonal_and_as_long_as_gaussian_ones():
    features = orthogonal_features(4096, 8, torch.Generator().manual_seed(0))
    blocks = features.view(-1, 8, 8)
    products = blocks @ blocks.transpose(1, 2)
    torch.testing.assert_close(
        products - torch.diag_embed(products.diagonal(dim1=1, dim2=2)), torch.zeros(512, 8, 8).double()
    )
    assert features.square().sum(1).mean() == pytest.approx(8.0, rel=0.05)
    covariance = features.T @ features / 4096
    assert (covariance - torch.eye(8)).abs().max() < 0.1


def softmax_error(num_features: int, *, draws: int = 20) -> float:
    """Mean relative error of the Performer's estimate of softmax attention over seeded draws."""
    torch.manual_seed(0)
    q, k, v = 0.5 * torch.randn(3, 1, 1, 64, 8, dtype=torch.float64)
    exact = attention(q, k, v)
    errors = []
    for draw in range(draws):
        features = orthogonal_features(num_features, 8, torch.Generator().manual_seed(draw))
        errors.append((estimate_softmax(q, k, v, features, None) - exact).norm() / exact.norm())
    return float(torch.stack(errors).mean())


def test_error_falls_with_the_square_root_of_the_features():
    errors = [softmax_error(num_features) for num_features in (16, 64, 256, 1024, 4096)]
    for fewer, more in pairwise(errors):
        assert 0.3 < more / fewer < 0.75, errors  # one half in expectation, once the bias of a ratio has gone
    assert errors[-1] < 0.05


def test_orthogonal_features_are_better_than_independent_ones():
    torch.manual_seed(0)
    q, k, v = 0.5 * torch.randn(3, 1, 1, 64, 8, dtype=torch.float64)
    exact = attention(q, k, v)
    errors = {"orthogonal": 0.0, "independent": 0.0}
    for draw in range(100):
        generator = torch.Generator().manual_seed(draw)
        drawn = {
            "orthogonal": orthogonal_features(64, 8, generator),
            "independent": torch.randn(64, 8, generator=generator, dtype=torch.float64),
        }
        for name, features in drawn.items():
            errors[name] += float((estimate_softmax(q, k, v, features, None) - exact).norm())
    assert errors["orthogonal"] < errors["independent"], errors


def test_softmax_kernel_survives_large_scores():
    """Exponents of some thousands: without the shifts the features would be infinite or zero in float32."""
    mixer = make("performer", kernel="softmax").float()
    with torch.no_grad():
        mixer.projections.query.weight *= 100
        mixer.projections.key.weight *= 100
    x, mask = inputs()
    x = x.float().requires_grad_()
    out = mixer(x, mask)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert out.isfinite().all()
    assert gradient.isfinite().all()
    assert out[mask].any(dim=1).all()


def test_features_are_redrawn_by_training_steps_and_resume_where_they_were():
    mixer = make("performer", kernel="softmax", num_features=12, redraw_interval=3)
    assert isinstance(mixer, Performer)
    mixer.train()
    seen = [mixer.features.clone()]
    for _ in range(6):
        mixer.after_step()
        seen.append(mixer.features.clone())
    changed = [not torch.equal(before, after) for before, after in pairwise(seen)]
    assert changed == [False, False, True, False, False, True]

    mixer.after_step()
    torch.manual_seed(99)
    twin = Performer(mixer.config, mixer.dims).double().train()
    twin.load_state_dict(mixer.state_dict())
    for _ in range(2):
        mixer.after_step()
        twin.after_step()
    assert not torch.equal(mixer.features, seen[-1])
    assert torch.equal(mixer.features, twin.features)

    mixer.eval()
    before = mixer.features.clone()
    for _ in range(3):
        mixer.after_step()
    assert torch.equal(mixer.features, before)


def test_without_an_interval_the_features_stay():
    mixer = make("performer", kernel="softmax").train()
    before = mixer.features.clone()
    for _ in range(5):
        mixer.after_step()
    assert torch.equal(mixer.features, before)


def test_nothing_to_redraw_is_refused():
    with pytest.raises(ValueError, match="nothing to redraw"):
        PerformerConfig.from_dict({"redraw_interval": 5})
