"""Every registered variant against every check of the contract that applies to it."""

from collections.abc import Callable

import pytest

from attention_zoo import available, get_variant
from attention_zoo.checks import CHECKS, contract_checks

VARIANTS = available()
CASES = [
    pytest.param(run, id=f"{name}-{check}") for name in VARIANTS for check, run in contract_checks(get_variant(name))
]


@pytest.mark.parametrize("run", CASES)
def test_variant_keeps_the_contract(run: Callable[[], None]) -> None:
    run()


def test_the_variants_were_found() -> None:
    assert {"full", "contextpool", "contextpool_conv_only"} <= set(VARIANTS)
    assert len(CASES) >= (len(CHECKS) - 2) * len(VARIANTS)  # only two checks depend on what a variant offers
