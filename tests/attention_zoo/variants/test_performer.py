"""The Performer against its formula on the whole matrix of weights, and its random features."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from attention_zoo import SequenceMixer
from attention_zoo.functional import attention
from attention_zoo.variants.performer import Performer, PerformerConfig, estimate_softmax, orthogonal_features
from tests.attention_zoo.variants.helpers import assert_keeps_the_contract, assert_same, inputs, make, normalised

LENGTH = 150


def t_scale(mixer: SequenceMixer) -> float:
    """Return what queries and keys are multiplied by, so that q·k is divided by temperature * sqrt(head_dim)."""
    return float((mixer.config.temperature * mixer.dims.head_dim**0.5) ** -0.5)


def naive_performer(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = mixer.projections.split(x)
    if mixer.config.kernel == "softmax":
        scale = t_scale(mixer)
        q, k = (t * scale for t in (q, k))
        shifts = (0.0, 0.0)
        if mixer.config.stabiliser:
            real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
            of_keys = (k @ mixer.features.T).masked_fill(~real[:, None, :, None], -1e30).amax((2, 3), keepdim=True)
            shifts = (q @ mixer.features.T).amax(-1, keepdim=True).detach(), of_keys.detach()
        q, k = (
            (t @ mixer.features.T - t.square().sum(-1, keepdim=True) / 2 - h).clamp_max(30.0).exp()
            + mixer.config.stabiliser
            for t, h in zip((q, k), shifts, strict=True)
        )
    else:
        if mixer.features is not None:
            q, k = (t @ mixer.features.T * len(mixer.features) ** -0.5 for t in (q, k))
        q, k = (t.relu() + 0.001 for t in (q, k))
    return normalised(mixer, q @ k.transpose(-2, -1), v, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_features": 13},
        {"kernel": "softmax"},
        {"kernel": "softmax", "num_features": 5, "rotary": True},
        {"kernel": "softmax", "num_features": 5, "stabiliser": 1e-2, "temperature": 2.0},
    ],
    ids=str,
)
def test_equals_the_formula_in_outputs_and_gradients(options, masked):
    x, mask = inputs(LENGTH)
    assert_same(make("performer", length=LENGTH + 7, **options), naive_performer, x, mask if masked else None)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": "softmax", "num_features": 24, "redraw_interval": 2},
        {"kernel": "softmax", "stabiliser": 1e-4},
        {"kernel": "softmax"},
        {"num_features": 24},
    ],
    ids=str,
)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("performer", options)


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


def test_the_stabiliser_and_the_temperature_of_other_code_change_the_result():
    """The naive form is told apart from its twins without one of them."""
    x, _ = inputs(LENGTH)
    options = {"kernel": "softmax", "num_features": 5, "stabiliser": 1e-2, "temperature": 2.0}
    mixer = make("performer", length=LENGTH, **options)
    for name in ("stabiliser", "temperature"):
        twin = make("performer", length=LENGTH, **{key: value for key, value in options.items() if key != name})
        with pytest.raises(AssertionError):
            assert_same(twin, lambda _, x, mask: naive_performer(mixer, x, mask), x, None)


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
    mixer = make("performer", length=LENGTH + 7, kernel="softmax").float()
    with torch.no_grad():
        mixer.projections.query.weight *= 100
        mixer.projections.key.weight *= 100
    x, mask = inputs(LENGTH)
    x = x.float().requires_grad_()
    out = mixer(x, mask)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert out.isfinite().all()
    assert gradient.isfinite().all()
    assert out[mask].any(dim=1).all()


def test_features_are_redrawn_by_training_steps_and_resume_where_they_were():
    mixer = make("performer", length=LENGTH + 7, kernel="softmax", num_features=12, redraw_interval=3)
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
    mixer = make("performer", length=LENGTH + 7, kernel="softmax").train()
    before = mixer.features.clone()
    for _ in range(5):
        mixer.after_step()
    assert torch.equal(mixer.features, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stabiliser": 1e-4}, "belong to the softmax kernel"),
        ({"kernel": "softmax", "temperature": 0.0}, "temperature must be above 0.0"),
        ({"kernel": "softmax", "stabiliser": -1.0}, "stabiliser must be at least 0.0"),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        PerformerConfig.from_dict(options)


def test_nothing_to_redraw_is_refused():
    with pytest.raises(ValueError, match="nothing to redraw"):
        PerformerConfig.from_dict({"redraw_interval": 5})
