"""Checks of who may depend on whom: sequences of a batch, order, past and future."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.base import SequenceMixer
from attention_zoo.checks.helpers import (
    EXACT,
    FAR,
    LONG,
    SHORT,
    assert_close,
    build,
    difference,
    input_gradient,
    make_dims,
    mix,
    scattered_mask,
    tokens,
)
from attention_zoo.registry import VariantSpec


def check_batch_independence(spec: VariantSpec) -> None:
    """A sequence gives the same whatever stands beside it in the batch, and wherever it stands."""
    mixer = build(spec)
    for length in (SHORT, LONG):
        x, mask = tokens(length) * torch.tensor([1.0, 0.5, 2.0]).view(3, 1, 1), scattered_mask(length)
        mask[0, length // 2 + 1 :] = False
        together = mix(mixer, x, mask)
        for row in range(3):
            alone = mix(mixer, x[row : row + 1], mask[row : row + 1])[0]
            real = mask[row]
            assert_close(together[row][real], alone[real], f"length {length}: sequence {row} depends on its batch")
        order = torch.tensor([2, 0, 1])
        reordered = mix(mixer, x[order], mask[order])
        assert_close(
            reordered[mask[order]], together[order][mask[order]], f"length {length}: the order of sequences matters"
        )


def check_permutation(spec: VariantSpec) -> None:
    """Permuted tokens give permuted outputs where this is claimed, and do not where it is not."""
    mixer = build(spec, make_dims(FAR))
    order = torch.randperm(FAR, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    order = order.to(torch.get_default_device())
    x, mask = tokens(FAR), scattered_mask(FAR)
    straight, permuted = mix(mixer, x, mask)[:, order], mix(mixer, x[:, order], mask[:, order])
    apart = difference(permuted[mask[:, order]], straight[mask[:, order]])
    if spec.traits.permutation_equivariant:
        assert apart <= EXACT, f"claims permutation_equivariant, and permuted tokens change the outputs by {apart:.1e}"
    else:
        assert apart > EXACT, "does not use the order of tokens: claim permutation_equivariant"


def check_causal(spec: VariantSpec) -> None:
    """In causal form no output depends on a later input; without the claim, the causal form is refused."""
    if not spec.traits.causal:
        try:
            spec.build(spec.config(), make_dims(causal=True))
        except ValueError:
            return
        raise AssertionError("does not claim causality, and builds with causal=True all the same")
    mixer = build(spec, make_dims(causal=True))
    for length in (SHORT, LONG):
        for mask in (None, scattered_mask(length)):
            for cut in (1, length // 2, length - 1):
                leak = _dependence(mixer, length, mask, outputs=slice(0, cut), inputs=slice(cut, None))
                assert leak <= EXACT, f"length {length}: outputs before {cut} depend on later inputs, by {leak:.1e}"


def check_reach(spec: VariantSpec) -> None:
    """Outputs depend on other positions, on both sides unless causal; without `mixes_tokens` they must not.

    The twin of every check of what may not depend: a mixer that mixes nothing would pass those.
    """
    for causal in (False, True) if spec.traits.causal else (False,):
        mixer = build(spec, make_dims(causal=causal))
        form = "causal form" if causal else "plain form"
        for length in (SHORT, LONG):
            middle = length // 2
            past = _dependence(mixer, length, None, outputs=slice(middle, None), inputs=slice(0, middle))
            future = _dependence(mixer, length, None, outputs=slice(0, middle), inputs=slice(middle, None))
            if spec.traits.mixes_tokens:
                assert past > EXACT, f"{form}, length {length}: no output depends on an earlier position"
                assert causal or future > EXACT, f"{form}, length {length}: no output depends on a later position"
            else:
                assert max(past, future) <= EXACT, "claims to mix no tokens, and mixes them"


def _dependence(mixer: SequenceMixer, length: int, mask: Tensor | None, *, outputs: slice, inputs: slice) -> float:
    """Return the largest derivative of some outputs by some inputs, relative to that of all outputs by all inputs."""
    x = tokens(length)
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    chosen = torch.zeros_like(real)
    chosen[:, outputs] = True
    some = input_gradient(mixer, x, mask, where=real & chosen)[:, inputs]
    every = input_gradient(mixer, x, mask, where=real)
    assert some.isfinite().all(), f"length {length}: the gradient of the input is not finite"
    return float(some.abs().max() / every.abs().max().clamp_min(1e-12))
