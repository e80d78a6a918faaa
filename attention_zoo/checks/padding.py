"""Checks of masks: what is padding never reaches a result."""

from __future__ import annotations

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
    """The content of padding at the end does not reach real positions."""
    _check_content(spec, suffix_mask, "padding at the end")


def check_scattered_padding(spec: VariantSpec) -> None:
    """The content of masked positions anywhere does not reach real ones; a causal mixer can fail only this one."""
    _check_content(spec, scattered_mask, "scattered masked positions")


def _check_content(spec: VariantSpec, make_mask: Callable[[int], Tensor], what: str) -> None:
    for form, mixer, length in _built(spec):
        mask = make_mask(length)
        x = tokens(length)
        other = torch.where(mask.unsqueeze(-1), x, 3.0 * tokens(length, seed=1))
        actual, expected = mix(mixer, other, mask)[mask], mix(mixer, x, mask)[mask]
        assert_close(actual, expected, f"{form}, length {length}: the content of {what} reaches real positions")


def _built(spec: VariantSpec) -> Iterator[tuple[str, SequenceMixer, int]]:
    """Iterate over every form of a variant, built, and a short and a long length."""
    for form, dims in forms(spec).items():
        mixer = build(spec, dims)
        for length in (SHORT, LONG):
            yield form, mixer, length


def check_padding_gradient(spec: VariantSpec) -> None:
    """The gradient at masked inputs is exactly zero: a leak too small for any tolerance shows here."""
    for form, mixer, length in _built(spec):
        mask, x, at = scattered_mask(length), tokens(length), f"{form}, length {length}"
        gradient = input_gradient(mixer, x, mask, where=mask)
        assert gradient.isfinite().all(), f"{at}: the gradient of the input is not finite"
        assert gradient[mask].any(), f"{at}: no gradient at all reaches the real inputs"
        leak = gradient[~mask].abs().max()
        assert leak == 0, f"{at}: the gradient at masked inputs is {leak:.1e}, not exactly zero"


def check_mask_none(spec: VariantSpec) -> None:
    """No mask means the same as a mask that is True everywhere."""
    for form, mixer, length in _built(spec):
        x = tokens(length)
        all_real = torch.ones(x.shape[:2], dtype=torch.bool)
        what = f"{form}, length {length}: mask None against all True"
        assert_close(mix(mixer, x, None), mix(mixer, x, all_real), what)


def check_empty_rows(spec: VariantSpec) -> None:
    """A sequence without any real token gives zeros, and gradients stay finite."""
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
    """More padding leaves the real positions as they were; a variant that does not claim it must depend on it."""
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
            assert apart <= EXACT, f"{padding} more padded positions change real ones of {length} by {apart:.1e}"
    if not spec.traits.padding_length_invariant:
        assert largest > EXACT, "claims to depend on the padded length, and does not: set padding_length_invariant"
