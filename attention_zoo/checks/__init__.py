# SPDX-License-Identifier: Apache-2.0
"""The contract of a sequence mixer as plain functions, for the variants of this zoo and for those of others.

Each `check_x(spec)` raises AssertionError with a message that says what is wrong. In the tests of another package:

    import pytest
    from attention_zoo import get_variant
    from attention_zoo.checks import contract_checks

    CHECKS = contract_checks(get_variant("my_mixer"))

    @pytest.mark.parametrize("check", [run for _, run in CHECKS], ids=[name for name, _ in CHECKS])
    def test_contract(check):
        check()

The sequences of the checks have at most 150 tokens. A variant whose default window or block is longer should also be
checked with a small one: `with_options(spec, {"window": 8})` is the same variant with another default.

The checks run on torch's default device: `with torch.device("cuda"): run_contract(spec)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from attention_zoo.checks.helpers import with_options
from attention_zoo.checks.numerics import (
    backends,
    check_backends,
    check_dtypes,
    check_empty_input,
    check_exact_limit,
    check_inference,
    check_lengths,
    check_memory,
    check_shape,
)
from attention_zoo.checks.padding import (
    check_empty_rows,
    check_mask_none,
    check_padding_gradient,
    check_padding_length,
    check_padding_values,
    check_scattered_padding,
    check_suffix_padding,
)
from attention_zoo.checks.state import (
    check_config,
    check_determinism,
    check_gradients,
    check_hooks,
    check_independent_instances,
    check_state_dict,
)
from attention_zoo.checks.structure import (
    check_batch_independence,
    check_causal,
    check_permutation,
    check_reach,
)
from attention_zoo.faults import fault_line, is_in_variant
from attention_zoo.registry import VariantSpec

Check = Callable[[VariantSpec], None]

CHECKS: dict[str, Check] = {check.__name__.removeprefix("check_"): check for check in (
    check_shape, check_determinism, check_batch_independence, check_suffix_padding, check_scattered_padding,
    check_padding_gradient, check_padding_values, check_mask_none, check_empty_rows, check_padding_length,
    check_permutation, check_causal, check_reach, check_gradients, check_state_dict, check_independent_instances,
    check_lengths, check_empty_input, check_memory, check_dtypes, check_inference, check_config, check_hooks,
    check_exact_limit, check_backends,
)}  # fmt: skip
"""All checks by name; `Traits.waivers` uses the same names. What explains the failure of others comes first."""


ADVICE = {
    "shape": "return one tensor like x; call self.check_input(x, mask) first; change no input in place",
    "determinism": "self.dropped(...) for dropout; draw random features in __init__, as buffers",
    "suffix_padding": "is the mask ignored, or inverted? True is a real token: masked_fill(~mask, -inf), zero_masked",
    "scattered_padding": "True in the mask is a real token, in any pattern: masked_fill(~mask, -inf), masked_mean",
    "padding_gradient": "set padding to exactly zero before it is used: attention_zoo.masking.zero_masked",
    "padding_values": "0 * NaN is NaN: fill masked positions with zero_masked, do not multiply them by the mask",
    "mask_none": "None means that every token is real, so it must give what a mask of ones gives",
    "empty_rows": "end forward with attention_zoo.masking.zero_masked(out, mask), and divide by no count of zero",
    "batch_independence": "mix along the length only, dimension 1: no BatchNorm, no mean over the batch",
    "padding_length": "divide by the number of real tokens, or set padding_length_invariant=False in Traits",
    "permutation": "the claim stands in Traits: permutation_equivariant",
    "causal": "honour dims.causal, or leave causal=True out of Traits",
    "reach": "the claim stands in Traits: mixes_tokens",
    "gradients": "every parameter must take part in forward, without detach",
    "state_dict": "keep random state and constants as buffers: self.register_buffer(NAME, TENSOR)",
    "independent_instances": "keep nothing on the class or in the module: build all state in __init__",
    "lengths": "every length from 1 to dims.max_length must work: pad inside, or size nothing by one length",
    "empty_input": "a batch of 0 and a length of 0 give an empty result",
    "memory": "the claim stands in Traits: memory",
    "dtypes": "make new tensors with x.new_zeros(...) or dtype=x.dtype, and sum in float32 where it matters",
    "inference": "make no in-place change of parameters or buffers in forward or __init__",
    "config": "make each option with option(DEFAULT, 'help'), of a plain type that JSON has",
    "hooks": "see `SequenceMixer`: what the optional methods return",
    "exact_limit": "the claim stands in Traits: exact_limit, a function from a length to options",
    "backends": "a fast form must equal backend='reference' in outputs and gradients",
}
"""What usually helps against the failure of a check, by its name."""


def contract_checks(spec: VariantSpec) -> list[tuple[str, Callable[[], None]]]:
    """Return the name and a function without arguments for each check that applies to a variant.

    A waived check is inverted: it raises if the check passes, so that a waiver without a reason is found.

    Raises:
        ValueError: The variant waives a check that does not exist or does not apply to it.
    """
    applying = [name for name in CHECKS if _applies(name, spec)]
    idle = set(spec.traits.waivers) - set(applying)
    if idle:
        raise ValueError(f"{spec.name} waives checks that do not apply to it: {', '.join(sorted(idle))}")
    return [
        (name, partial(_assert_still_fails if name in spec.traits.waivers else _run, name, spec)) for name in applying
    ]


def run_contract(spec: VariantSpec) -> dict[str, str]:
    """Run all checks that apply, and return one line for each failed one by name: see `verdict`."""
    verdicts = {name: verdict(name, run) for name, run in contract_checks(spec)}
    return {name: line for name, line in verdicts.items() if line}


def verdict(name: str, run: Callable[[], None]) -> str:
    """Run one check; return one line that says what is wrong and what usually helps, empty if nothing is.

    An error that the mixer itself raises is shown with the line of its file.
    """
    try:
        run()
    except AssertionError as failure:
        if is_in_variant(failure):  # an assertion of the mixer
            return fault_line(failure)
        return f"{' '.join(str(failure).split())} ({ADVICE[name]})"
    except Exception as error:  # noqa: BLE001 - whatever a broken mixer raises: the other checks still run
        return fault_line(error)
    return ""


def _applies(name: str, spec: VariantSpec) -> bool:
    if name == "exact_limit":
        return spec.traits.exact_limit is not None
    if name == "memory":
        return spec.traits.memory != "not stated"
    if name == "permutation":
        return spec.traits.permutation_equivariant is not None
    return name != "backends" or len(backends(spec.config)) > 1


def _run(name: str, spec: VariantSpec) -> None:
    CHECKS[name](spec)


def _assert_still_fails(name: str, spec: VariantSpec) -> None:
    try:
        CHECKS[name](spec)
    except AssertionError:
        return
    raise AssertionError(f"remove the waiver of {name}: the check passes ({spec.traits.waivers[name]})")


__all__ = [
    "ADVICE",
    "CHECKS",
    "Check",
    "contract_checks",
    "run_contract",
    "verdict",
    "with_options",
    *(f"check_{name}" for name in CHECKS),
]
