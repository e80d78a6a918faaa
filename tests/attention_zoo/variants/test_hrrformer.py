"""The Hrrformer against circular convolutions written out feature by feature."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo.variants.hrrformer import Hrrformer
from tests.attention_zoo.variants.helpers import TOLERANCE, assert_same, inputs, make, perturb, share_of_full_attention

LENGTH = 13


def bind(x: Tensor, y: Tensor) -> Tensor:
    """Convolve two vectors on the circle: z_n = Σ_m x_m y_{n-m}, over the last axis."""
    width = x.shape[-1]
    return torch.stack([sum(x[..., m] * y[..., (n - m) % width] for m in range(width)) for n in range(width)], dim=-1)


def reversed_features(x: Tensor) -> Tensor:
    """Return y with y_n = x_{-n}."""
    return torch.stack([x[..., -n % x.shape[-1]] for n in range(x.shape[-1])], dim=-1)


def naive(mixer: Hrrformer, x: Tensor, mask: Tensor | None) -> Tensor:
    q, k, v = mixer.projections.split(x)
    heads = torch.zeros_like(v)
    for row, head in [(row, head) for row in range(x.shape[0]) for head in range(2)]:
        real = range(x.shape[1]) if mask is None else mask[row].nonzero()[:, 0].tolist()
        if not real:
            continue
        bound = sum(bind(k[row, head, j], v[row, head, j]) for j in real)
        cosines = []
        for i in real:
            found, own = bind(reversed_features(q[row, head, i]), bound), v[row, head, i]
            cosines.append((found @ own / (found @ found).sqrt() / (own @ own).sqrt()).exp())
        for i, cosine in zip(real, cosines, strict=True):
            heads[row, head, i] = cosine / sum(cosines) * v[row, head, i]
    return mixer.projections.merge(heads, mask)


@pytest.mark.parametrize("dim", [16, 10], ids=["even", "odd"])
def test_equals_its_definition_in_outputs_and_gradients(dim):
    mixer = make("hrrformer", length=LENGTH, dim=dim)
    perturb(mixer)
    x, mask = inputs(LENGTH, dim=dim)
    for used in (None, mask):
        gradients = assert_same(mixer, naive, x, used, tolerance=TOLERANCE)
        assert all(gradient.any() for gradient in gradients.values())
    assert not gradients["x"][~mask].any()


def test_another_unbinding_is_told_apart(monkeypatch):
    """The broken twin: the query binds once more in place of unbinding."""
    mixer = make("hrrformer", length=LENGTH)
    x, mask = inputs(LENGTH)
    monkeypatch.setattr(torch.Tensor, "conj", lambda spectrum: spectrum)
    with pytest.raises(AssertionError):
        assert_same(mixer, naive, x, mask, tolerance=TOLERANCE)


def test_as_many_weights_as_full_attention():
    assert share_of_full_attention("hrrformer") == 1.0
