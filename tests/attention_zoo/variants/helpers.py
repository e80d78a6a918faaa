"""Shared by the tests of the variants: small mixers, inputs with masks, and comparison with a naive form."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection

import pytest
import torch
from torch import Tensor

from attention_zoo import LayerDims, SequenceMixer, get_variant
from attention_zoo.checks import contract_checks, with_options
from attention_zoo.functional import attention

LENGTHS = (1, 5, 16, 37)
"""Lengths at which the block-wise patterns are written out pair by pair."""
LENGTH = 37
"""The length at which recurrences and convolutions are written out; no multiple of a chunk."""
TOLERANCE = 1e-9
BOTH = pytest.mark.parametrize("causal", [False, True], ids=["both", "causal"])
"""Both forms: to both sides, and causal."""

Naive = Callable[[SequenceMixer, Tensor, Tensor | None], Tensor]


def make(
    name: str,
    *,
    length: int,
    dim: int = 16,
    seed: int = 0,
    causal: bool = False,
    num_prefix: int = 0,
    **options: object,
) -> SequenceMixer:
    """Build a mixer of two heads in float64; `length` is its longest length."""
    torch.manual_seed(seed)
    spec = get_variant(name)
    dims = LayerDims(dim=dim, num_heads=2, max_length=length, causal=causal, num_prefix=num_prefix)
    return spec.build(spec.config.from_dict(options), dims).double()


def inputs(length: int, *, dim: int = 16) -> tuple[Tensor, Tensor]:
    """Draw three sequences and a mask with holes; the last sequence has no real token."""
    torch.manual_seed(1)
    x = torch.randn(3, length, dim, dtype=torch.float64)
    mask = torch.rand(3, length) > 0.3
    mask[2] = False
    return x, mask


def inputs_with_tokens(length: int) -> tuple[Tensor, Tensor]:
    """Draw two sequences 12 wide, and a mask with holes that leaves a real token to each."""
    generator = torch.Generator().manual_seed(length)
    x = torch.randn(2, length, 12, dtype=torch.float64, generator=generator)
    mask = torch.rand(2, length, generator=generator) > 0.3
    mask[0, -1] = True
    mask[1, length // 2] = True
    return x, mask


def perturb(mixer: SequenceMixer) -> None:
    """Move every parameter by a little noise, away from zeros and ones."""
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter += 0.1 * torch.randn_like(parameter)


def assert_same(
    mixer: SequenceMixer,
    naive: Naive,
    x: Tensor,
    mask: Tensor | None,
    *,
    tolerance: float | None = None,
) -> dict[str, Tensor]:
    """Compare outputs, and gradients of the input and of every parameter; return the gradients by name."""
    x = x.detach().clone().requires_grad_()
    named = {"x": x, **dict(mixer.named_parameters())}
    outs = mixer(x, mask), naive(mixer, x, mask)
    torch.testing.assert_close(*outs, rtol=tolerance, atol=tolerance)
    assert outs[0].abs().max() > 1e-3
    gradients = [torch.autograd.grad(out.sin().sum(), tuple(named.values())) for out in outs]
    for name, first, second in zip(named, *gradients, strict=True):
        torch.testing.assert_close(
            first, second, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )
    return dict(zip(named, gradients[0], strict=True))


def assert_equals_definition(name: str, naive: Naive, *, length: int, causal: bool, **options: object) -> None:
    """Compare a perturbed mixer with its definition under a mask; every gradient is real, and none leaks."""
    mixer = make(name, length=length, dim=12, causal=causal, **options)
    perturb(mixer)
    x, mask = inputs(length, dim=12)
    gradients = assert_same(mixer, naive, x, mask)
    for label, gradient in gradients.items():
        assert gradient.any(), label
    assert not gradients["x"][~mask].any()


def assert_keeps_the_contract(name: str, options: dict[str, object], *, without: Collection[str] = ()) -> None:
    """Run the contract on a variant with other defaults, but for the checks named in `without`."""
    spec = with_options(get_variant(name), options)
    assert spec.config().to_dict().items() >= options.items()
    checks = dict(contract_checks(spec))
    assert len(checks) >= 20
    assert set(without) <= set(checks)
    for check, run in checks.items():
        if check not in without:
            run()


def pairs(length: int, sees: Callable[[int, int], bool]) -> Tensor:
    """Write out a pattern pair by pair: `sees(i, j)` says whether i attends to j."""
    flat = [sees(i, j) for i, j in itertools.product(range(length), repeat=2)]
    return torch.tensor(flat).view(length, length)


def dense(mixer: SequenceMixer, x: Tensor, mask: Tensor | None, allowed: Tensor) -> Tensor:
    """Attend under `allowed`, (length, length) or (batch, length, length): the reference of all patterns."""
    q, k, v = mixer.projections.split(x)
    allowed = allowed.expand(x.shape[0], -1, -1) & (True if mask is None else mask[:, None, :])
    return mixer.projections.merge(attention(q, k, v, allowed[:, None]), mask)


def assert_dense(mixer: SequenceMixer, allowed: Tensor, length: int) -> None:
    """Compare with dense attention under a pattern, with and without a mask."""
    assert_same_with_and_without_mask(mixer, lambda mixer, x, mask: dense(mixer, x, mask, allowed), length)


def assert_same_with_and_without_mask(mixer: SequenceMixer, naive: Naive, length: int) -> None:
    """Compare with a naive form on `inputs_with_tokens`."""
    x, mask = inputs_with_tokens(length)
    for used in (None, mask):
        assert_same(mixer, naive, x, used, tolerance=1e-9)


def normalised(mixer: SequenceMixer, weights: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Divide (batch, num_heads, queries, keys) by its sums over the keys, and mix."""
    if mask is not None:
        weights = weights * mask[:, None, None, :]
    if mixer.dims.causal:
        weights = weights.tril()
    return mixer.projections.merge(weights @ v / weights.sum(-1, keepdim=True).clamp_min(1e-6), mask)


def softmax(scores: Tensor) -> Tensor:
    """Take the softmax over the last axis as the formula says, without a shift."""
    weights = scores.exp()
    return weights / weights.sum(-1, keepdim=True)


def full_like(mixer: SequenceMixer) -> SequenceMixer:
    """Build full attention with the same projections."""
    spec = get_variant("full")
    full = spec.build(spec.config(), mixer.dims).double()
    full.load_state_dict(mixer.projections.state_dict(prefix="projections."))
    return full


def share_of_full_attention(name: str) -> float:
    """Count the weights relative to the four projections of full attention, 512 wide."""
    dims = LayerDims(dim=512, num_heads=8, max_length=2000, qkv_bias=False)
    spec = get_variant(name)
    count = sum(parameter.numel() for parameter in spec.build(spec.config(), dims).parameters())
    return count / (4 * 512 * 512)


def silu(x: Tensor) -> Tensor:
    """Compute x sigmoid(x) as the formula says."""
    return x * x.sigmoid()
