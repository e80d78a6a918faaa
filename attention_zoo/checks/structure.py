# SPDX-License-Identifier: Apache-2.0
"""Checks of dependence: between the sequences of a batch, on the order of tokens, on past and future."""

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
    """The result of a sequence must not depend on the rest of the batch, nor on its place in the batch."""
    mixer = build(spec)
    for length in (SHORT, LONG):
        x, mask = tokens(length) * torch.tensor([1.0, 0.5, 2.0]).view(3, 1, 1), scattered_mask(length)
        mask[0, length // 2 + 1 :] = False
        together = mix(mixer, x, mask)
        for row in range(3):
            alone = mix(mixer, x[row : row + 1], mask[row : row + 1])[0]
            real = mask[row]
            assert_close(
                together[row][real],
                alone[real],
                f"length {length}: the result of sequence {row} depends on the rest of the batch",
            )
        order = torch.tensor([2, 0, 1])
        reordered = mix(mixer, x[order], mask[order])
        assert_close(
            reordered[mask[order]],
            together[order][mask[order]],
            f"length {length}: the order of the sequences changes results",
        )


def check_permutation(spec: VariantSpec) -> None:
    """Permuted tokens must give permuted outputs if the variant claims it, and must not if it does not."""
    mixer = build(spec, make_dims(FAR))
    order = torch.randperm(FAR, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    order = order.to(torch.get_default_device())
    x, mask = tokens(FAR), scattered_mask(FAR)
    straight, permuted = mix(mixer, x, mask)[:, order], mix(mixer, x[:, order], mask[:, order])
    apart = difference(permuted[mask[:, order]], straight[mask[:, order]])
    if spec.traits.permutation_equivariant:
        text = f"set permutation_equivariant=False: the order of tokens changes the outputs by {apart:.1e}"
        assert apart <= EXACT, text
    else:
        assert apart > EXACT, "set permutation_equivariant=True: the order of tokens does not change the outputs"


def check_causal(spec: VariantSpec) -> None:
    """In the causal form no output may depend on a later input; a variant without this form must refuse it."""
    if not spec.traits.causal:
        try:
            spec.build(spec.config(), make_dims(causal=True))
        except ValueError:
            return
        raise AssertionError(
            "raise ValueError for causal dimensions: the variant claims no causal form, but builds with causal=True"
        )
    mixer = build(spec, make_dims(causal=True))
    for length in (SHORT, LONG):
        for mask in (None, scattered_mask(length)):
            cuts = (1, length // 2, length - 1)
            leaks = _dependences(mixer, length, mask, *((slice(0, cut), slice(cut, None)) for cut in cuts))
            for cut, leak in zip(cuts, leaks, strict=True):
                assert leak <= EXACT, f"length {length}: outputs before {cut} depend on later inputs, by {leak:.1e}"


def check_reach(spec: VariantSpec) -> None:
    """Outputs must depend on other positions, on both sides unless causal; without `mixes_tokens` they must not.

    A mixer that mixes nothing passes all checks that forbid a dependence; this one finds it.
    """
    for causal in (False, True) if spec.traits.causal else (False,):
        mixer = build(spec, make_dims(causal=causal))
        form = "causal form" if causal else "plain form"
        for length in (SHORT, LONG):
            before, after = slice(0, length // 2), slice(length // 2, None)
            past, future = _dependences(mixer, length, None, (after, before), (before, after))
            if spec.traits.mixes_tokens:
                assert past > EXACT, f"{form}, length {length}: no output depends on an earlier position"
                assert causal or future > EXACT, f"{form}, length {length}: no output depends on a later position"
            else:
                assert max(past, future) <= EXACT, "set mixes_tokens=True: outputs depend on other tokens"


def _dependences(mixer: SequenceMixer, length: int, mask: Tensor | None, *places: tuple[slice, slice]) -> list[float]:
    """Return the largest derivative of some outputs by some inputs, relative to that of all outputs by all inputs.

    Args:
        mixer: The mixer.
        length: Tokens.
        mask: (3, length), or None.
        places: Positions of the outputs and of the inputs, for each number that is asked for.
    """
    x = tokens(length)
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    every = input_gradient(mixer, x, mask, where=real).abs().max().clamp_min(1e-12)
    found = []
    for outputs, inputs in places:
        chosen = torch.zeros_like(real)
        chosen[:, outputs] = True
        some = input_gradient(mixer, x, mask, where=real & chosen)[:, inputs]
        assert some.isfinite().all(), f"length {length}: the gradient of the input is not finite"
        found.append(float(some.abs().max() / every))
    return found
