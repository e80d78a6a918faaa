# SPDX-License-Identifier: Apache-2.0
"""Checks of masks: padding must not reach any result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attention_zoo.base import SequenceMixer
from attention_zoo.checks.helpers import (
    EXACT,
    LONG,
    SHORT,
    assert_close,
    build,
    difference,
    forms,
    input_gradient,
    make_dims,
    mix,
    scattered_mask,
    suffix_mask,
    tokens,
    weighted_sum,
)
from attention_zoo.registry import VariantSpec


def check_suffix_padding(spec: VariantSpec) -> None:
    """The content of padding at the end must not change real positions."""
    _check_content(spec, suffix_mask, "padding at the end")


def check_scattered_padding(spec: VariantSpec) -> None:
    """The content of masked positions anywhere must not change real ones.

    A causal mixer passes the check with padding at the end whatever it does with the mask, so it needs this one.
    """
    _check_content(spec, scattered_mask, "scattered masked positions")


def _check_content(spec: VariantSpec, make_mask: Callable[[int], Tensor], what: str) -> None:
    for form, mixer, length in _built(spec):
        mask = make_mask(length)
        x = tokens(length)
        other = torch.where(mask.unsqueeze(-1), x, 3.0 * tokens(length, seed=1))
        actual, expected = mix(mixer, other, mask)[mask], mix(mixer, x, mask)[mask]
        assert_close(actual, expected, f"{form}, length {length}: the content of {what} changes real positions")


def _built(spec: VariantSpec) -> Iterator[tuple[str, SequenceMixer, int]]:
    """Iterate over the forms of a variant, each as a name and a mixer, at a short and at a long length."""
    for form, dims in forms(spec).items():
        mixer = build(spec, dims)
        for length in (SHORT, LONG):
            yield form, mixer, length


def check_padding_gradient(spec: VariantSpec) -> None:
    """The gradient at masked inputs must be exactly zero, which shows leaks that are too small for a tolerance."""
    for form, mixer, length in _built(spec):
        mask, x, at = scattered_mask(length), tokens(length), f"{form}, length {length}"
        gradient = input_gradient(mixer, x, mask, where=mask)
        assert gradient.isfinite().all(), f"{at}: the gradient of the input is not finite"
        assert gradient[mask].any(), f"{at}: the gradient of the real inputs is zero everywhere"
        leak = gradient[~mask].abs().max()
        assert leak == 0, f"{at}: the gradient at masked inputs must be exactly zero, is {leak:.1e}"


def check_padding_values(spec: VariantSpec) -> None:
    """NaN, infinity and huge numbers at masked positions must change no result and no gradient."""
    for form, mixer, length in _built(spec):
        mask, x = scattered_mask(length), tokens(length)
        expected = _results(mixer, x, mask)
        # In turn over the positions, so that one pass tries them all
        values = torch.tensor([math.nan, math.inf, 1e30], dtype=x.dtype)[torch.arange(length) % 3]
        actual = _results(mixer, torch.where(mask.unsqueeze(-1), x, values.unsqueeze(-1)), mask)
        for name, result in expected.items():
            what = f"{form}, length {length}: NaN, infinity and 1e30 at masked positions change the {name}"
            assert_close(actual[name], result, what)


def _results(mixer: SequenceMixer, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the real outputs of a call, and their gradients by the input and by each parameter that they have."""
    leaf = x.clone().requires_grad_()
    out = mixer(mixer.transform_stream(leaf, mask), mask)
    names, parameters = zip(("input", leaf), *mixer.named_parameters(), strict=True)
    gradients = torch.autograd.grad(weighted_sum(out, mask), parameters, allow_unused=True, materialize_grads=True)
    named = zip((f"gradient of {name}" for name in names), gradients, strict=True)
    return {"real positions": out[mask], **dict(named)}


def check_mask_none(spec: VariantSpec) -> None:
    """Mask None must give the same as a mask that is True everywhere."""
    for form, mixer, length in _built(spec):
        x = tokens(length)
        all_real = torch.ones(x.shape[:2], dtype=torch.bool)
        what = f"{form}, length {length}: mask None and a mask of True give different results"
        assert_close(mix(mixer, x, None), mix(mixer, x, all_real), what)


def check_empty_rows(spec: VariantSpec) -> None:
    """A sequence without any real token must give zeros, and all gradients must be finite."""
    for form, mixer, length in _built(spec):
        for others in (True, False):
            mask = scattered_mask(length) & others
            mask[0] = False
            x, what = tokens(length).requires_grad_(), f"{form}, length {length}: a sequence without real tokens"
            out = mix(mixer, x, mask)
            assert out.isfinite().all(), f"{what} gives NaN or infinity"
            assert not out[~mask.any(dim=1)].any(), f"{what} must give zeros"
            if not out.requires_grad:
                continue
            gradients = torch.autograd.grad(
                weighted_sum(out), (x, *mixer.parameters()), allow_unused=True, materialize_grads=True
            )
            finite = all(gradient.isfinite().all() for gradient in gradients)
            assert finite, f"{what} gives gradients of NaN or infinity"


def check_padding_length(spec: VariantSpec) -> None:
    """More padding must not change real positions, unless the variant says that it does."""
    mixer = build(spec, make_dims(LONG + SHORT))
    largest = 0.0
    for length, padding in ((SHORT, 5), (SHORT, LONG), (LONG, SHORT)):
        x = tokens(length + padding)
        real = suffix_mask(length)
        padded = torch.nn.functional.pad(real, (0, padding))
        expected = mix(mixer, x[:, :length], real)[real]
        actual = mix(mixer, x, padded)[padded]
        apart = difference(actual, expected)
        largest = max(largest, apart)
        if spec.traits.padding_length_invariant:
            assert apart <= EXACT, f"length {length}: {padding} more padded positions change real ones by {apart:.1e}"
    if not spec.traits.padding_length_invariant:
        assert largest > EXACT, "set padding_length_invariant=True: the padded length does not change the result"
