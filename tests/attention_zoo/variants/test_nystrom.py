"""Nyström attention against its formula on whole matrices, and at its limits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attention_zoo import SequenceMixer
from attention_zoo.variants.nystrom import pseudo_inverse, segment_means
from tests.attention_zoo.variants.helpers import (
    assert_keeps_the_contract,
    assert_same,
    full_like,
    inputs,
    make,
    softmax,
)

LENGTH, DIM = 90, 16


def naive_segments(real: int, num_landmarks: int) -> Tensor:
    """Return (landmarks, real): each landmark the mean of its run of tokens."""
    landmarks = min(real, num_landmarks)
    of = torch.tensor([token * landmarks // real for token in range(real)])
    member = (of == torch.arange(landmarks)[:, None]).double()
    return member / member.sum(1, keepdim=True)


def naive_nystrom(mixer: SequenceMixer, x: Tensor, mask: Tensor | None) -> Tensor:
    """Sequence by sequence, on the real tokens alone."""
    q, k, v = mixer.projections.split(x)
    config, out = mixer.config, []
    for row in range(len(x)):
        real = torch.arange(x.shape[1]) if mask is None else mask[row].nonzero()[:, 0]
        heads = torch.zeros_like(v[row])
        if len(real):
            queries, keys, values = (t[row][:, real] for t in (q, k, v))
            queries = queries * queries.shape[-1] ** -0.5
            means = naive_segments(len(real), config.num_landmarks)
            first = softmax(queries @ (means @ keys).transpose(-2, -1))
            third = softmax(means @ queries @ keys.transpose(-2, -1))
            inner = softmax(means @ queries @ (means @ keys).transpose(-2, -1))
            if len(real) > config.num_landmarks:
                first = first @ torch.stack([naive_pseudo_inverse(each, config.pinv_iterations) for each in inner])
            heads = heads.index_copy(1, real, first @ third @ values)
            if mixer.conv is not None:
                kernel = mixer.conv.weight[:, 0, :, 0]
                place = torch.arange(x.shape[1])
                offset = place[None, real] - place[:, None] + kernel.shape[1] // 2
                inside = (offset >= 0) & (offset < kernel.shape[1])
                taps = kernel[:, offset.clamp(0, kernel.shape[1] - 1)] * inside
                heads = heads + taps @ values
        out.append(mixer.projections.merge(heads[None], None if mask is None else mask[row : row + 1])[0])
    return torch.stack(out)


def naive_pseudo_inverse(matrix: Tensor, iterations: int) -> Tensor:
    """Expand the polynomial of the paper: one matrix, no nesting."""
    inverse = matrix.T / (matrix.abs().sum(0).max() * matrix.abs().sum(1).max())
    for _ in range(iterations):
        residual = matrix @ inverse
        inverse = (
            13 * inverse
            - 15 * inverse @ residual
            + 7 * inverse @ residual @ residual
            - inverse @ residual @ residual @ residual
        ) / 4
    return inverse


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"num_landmarks": 7},
        {"num_landmarks": 61, "conv_kernel": 0},
        {"num_landmarks": 30, "conv_kernel": 3, "pinv_iterations": 2, "rotary": True},
    ],
    ids=str,
)
def test_equals_the_formula_in_outputs_and_gradients(options, masked):
    x, mask = inputs(LENGTH)
    x, mask = x[:, :-4], mask[:, :-4]  # shorter than max_length
    assert_same(make("nystrom", length=LENGTH, **options), naive_nystrom, x, mask if masked else None)


@pytest.mark.parametrize(
    ("options", "without"),
    [
        ({"num_landmarks": 4, "conv_kernel": 0}, ()),
        # 256 landmarks are a quarter of the lengths that the check of memory compares
        ({"num_landmarks": 256}, ("memory",)),
    ],
    ids=str,
)
@pytest.mark.nightly
def test_other_options_keep_the_contract(options, without):
    assert_keeps_the_contract("nystrom", options, without=without)


def test_nystrom_is_full_attention_only_for_sequences_with_no_more_tokens_than_landmarks():
    x, _ = inputs(LENGTH)
    mask = torch.arange(LENGTH) < torch.tensor([20, 40, LENGTH])[:, None]
    mixer = make("nystrom", length=LENGTH, num_landmarks=40, conv_kernel=0)
    approximate, full = mixer(x, mask), full_like(mixer)(x, mask)
    torch.testing.assert_close(approximate[:2], full[:2])
    assert not torch.allclose(approximate[2], full[2], rtol=1e-3)


def test_nystrom_with_a_landmark_for_each_kind_of_token_is_close_to_full_attention():
    """Eight runs of nearly equal tokens: eight landmarks tell them apart, two do not."""
    torch.manual_seed(0)
    x = torch.randn(2, 8, DIM, dtype=torch.float64).repeat_interleave(11, dim=1)
    x = x + 0.1 * torch.randn(x.shape, dtype=torch.float64)
    errors = []
    for num_landmarks in (2, 8):
        mixer = make("nystrom", length=LENGTH, num_landmarks=num_landmarks, conv_kernel=0, pinv_iterations=20)
        exact = full_like(mixer)(x)
        errors.append(((mixer(x) - exact).norm() / exact.norm()).item())
    assert errors[0] > 0.1, errors
    assert errors[1] < 0.01, errors


def test_segments_are_of_real_tokens_and_nearly_equal():
    _, mask = inputs(LENGTH)
    weights, used = segment_means(mask, 7, torch.float64)
    assert weights.shape == (3, 1, 7, LENGTH)
    assert not weights[~mask[:, None, None, :].expand_as(weights)].any()
    torch.testing.assert_close(weights.sum(-1), used[:, None].double())
    sizes = (weights[:2] > 0).sum(-1)
    assert sizes.max() - sizes.min() <= 1
    assert torch.equal(sizes.sum(-1)[:, 0], mask[:2].sum(1))


def test_pseudo_inverse_converges_and_minds_no_neighbour():
    torch.manual_seed(0)
    matrices = torch.randn(3, 2, 6, 6, dtype=torch.float64).softmax(-1)
    matrices[1] *= 50.0
    matrices[2, 1] = 0.0
    found = pseudo_inverse(matrices, 30)
    torch.testing.assert_close(found, torch.linalg.pinv(matrices))
    for row in range(3):
        assert torch.equal(pseudo_inverse(matrices[row : row + 1], 4)[0], pseudo_inverse(matrices, 4)[row])
