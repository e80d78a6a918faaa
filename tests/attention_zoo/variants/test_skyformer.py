"""Skyformer against its formula on whole matrices, and at its limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import SequenceMixer
from attention_zoo.variants.skyformer import ridge_inverse, spread
from tests.attention_zoo.variants.helpers import assert_keeps_the_contract, assert_same, inputs, make

LENGTH = 90


def naive_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (-(x[..., :, None, :] - y[..., None, :, :]).square().sum(-1) / 2).exp()


def naive_skyformer(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    """Sequence by sequence, on the real tokens alone; the inverse by powers of its residual."""
    q, k, v = mixer.projections.split(x)
    q, k = (t * t.shape[-1] ** -0.25 for t in (q, k))
    config, out = mixer.config, []
    for row in range(len(x)):
        real = torch.arange(x.shape[1]) if mask is None else mask[row].nonzero()[:, 0]
        heads = torch.zeros_like(v[row])
        if len(real):
            queries, keys, values = (t[row][:, real] for t in (q, k, v))
            number = min(config.num_landmarks // 2, len(real))
            chosen = [int((i + 0.5) * len(real) / number) for i in range(number)]
            landmarks = torch.cat((queries[:, chosen], keys[:, chosen]), dim=1)
            inner = naive_kernel(landmarks, landmarks) + config.ridge * torch.eye(2 * number)
            root = torch.diag_embed(inner.sum(-1).rsqrt())
            residual = torch.eye(2 * number) - root @ inner @ root
            terms = [torch.linalg.matrix_power(residual, power) for power in range(3**config.inverse_iterations)]
            inverse = root @ torch.stack(terms).sum(0) @ root
            mixed = naive_kernel(queries, landmarks) @ inverse @ naive_kernel(landmarks, keys) @ values
            heads = heads.index_copy(1, real, mixed)
        out.append(mixer.projections.merge(heads[None], None if mask is None else mask[row : row + 1])[0])
    return torch.stack(out)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"num_landmarks": 8, "inverse_iterations": 2},
        {"num_landmarks": 80, "inverse_iterations": 2, "rotary": True},
        {"num_landmarks": 256, "inverse_iterations": 1},
    ],
    ids=str,
)
def test_equals_the_formula_in_outputs_and_gradients(options, masked):
    x, mask = inputs(LENGTH)
    x, mask = x[:, :-4], mask[:, :-4]  # shorter than max_length
    assert_same(make("skyformer", length=LENGTH, **options), naive_skyformer, x, mask if masked else None)


@pytest.mark.parametrize("options", [{"num_landmarks": 6}], ids=str)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options):
    assert_keeps_the_contract("skyformer", options)


@pytest.mark.parametrize("masked", [False, True])
def test_skyformer_with_all_tokens_as_landmarks_is_the_gaussian_kernel(masked):
    mixer = make("skyformer", length=LENGTH, num_landmarks=2 * LENGTH, ridge=1e-9, inverse_iterations=25)
    x, mask = inputs(LENGTH)
    real = mask if masked else torch.ones_like(mask)
    q, k, v = mixer.projections.split(x)
    weights = naive_kernel(q * q.shape[-1] ** -0.25, k * k.shape[-1] ** -0.25) * real[:, None, None, :]
    exact = mixer.projections.merge(weights @ v, real)
    out = mixer(x, mask if masked else None)
    assert exact.abs().max() > 1
    torch.testing.assert_close(out, exact, atol=1e-5, rtol=1e-5)


def test_skyformer_comes_closer_with_more_landmarks():
    x, _ = inputs(LENGTH)
    errors = []
    for num_landmarks in (4, 20, 80):
        mixer = make("skyformer", length=LENGTH, num_landmarks=num_landmarks, inverse_iterations=20)
        q, k, v = mixer.projections.split(x)
        exact = mixer.projections.merge(naive_kernel(q * q.shape[-1] ** -0.25, k * k.shape[-1] ** -0.25) @ v, None)
        errors.append(((mixer(x) - exact).norm() / exact.norm()).item())
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2], errors


def test_landmarks_are_spread_over_the_real_tokens():
    mask = torch.tensor([[True] * 10, [False, True] * 5, [False] * 10, [True] * 2 + [False] * 8])
    place, used = spread(mask, 4)
    assert place[0].tolist() == [1, 3, 6, 8]
    assert place[1].tolist() == [1, 3, 7, 9]
    assert place[3, :2].tolist() == [0, 1]
    assert used.sum(1).tolist() == [4, 4, 0, 2]


def test_ridge_inverse_converges():
    torch.manual_seed(0)
    points = torch.randn(2, 20, 3, dtype=torch.float64)
    matrix = naive_kernel(points, points)
    found = ridge_inverse(matrix, 0.01, 20)
    torch.testing.assert_close(found, torch.linalg.inv(matrix + 0.01 * torch.eye(20)))
