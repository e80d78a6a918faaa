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
from attention_zoo.registry import VariantSpec

Check = Callable[[VariantSpec], None]

CHECKS: dict[str, Check] = {
    "shape": check_shape,
    "determinism": check_determinism,
    "suffix_padding": check_suffix_padding,
    "scattered_padding": check_scattered_padding,
    "padding_gradient": check_padding_gradient,
    "padding_values": check_padding_values,
    "mask_none": check_mask_none,
    "empty_rows": check_empty_rows,
    "batch_independence": check_batch_independence,
    "padding_length": check_padding_length,
    "permutation": check_permutation,
    "causal": check_causal,
    "reach": check_reach,
    "gradients": check_gradients,
    "state_dict": check_state_dict,
    "independent_instances": check_independent_instances,
    "lengths": check_lengths,
    "empty_input": check_empty_input,
    "memory": check_memory,
    "dtypes": check_dtypes,
    "inference": check_inference,
    "config": check_config,
    "hooks": check_hooks,
    "exact_limit": check_exact_limit,
    "backends": check_backends,
}
"""All checks by name; `Traits.waivers` uses the same names."""


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
    """Run all checks that apply, and return the message of each failed one by name.

    Only AssertionError is caught; any other error comes from the mixer itself.
    """
    failures = {}
    for name, run in contract_checks(spec):
        try:
            run()
        except AssertionError as failure:
            failures[name] = str(failure)
    return failures


def _applies(name: str, spec: VariantSpec) -> bool:
    if name == "exact_limit":
        return spec.traits.exact_limit is not None
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


__all__ = ["CHECKS", "Check", "contract_checks", "run_contract", "with_options", *(f"check_{name}" for name in CHECKS)]
