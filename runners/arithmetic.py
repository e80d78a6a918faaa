# SPDX-License-Identifier: Apache-2.0
"""How a process computes: what float32 means, and whether sums have a fixed order."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import torch


def set_arithmetic(*, deterministic: bool = False) -> None:
    """Compute in true float32 on CUDA, and on request with torch's deterministic algorithms only.

    By default, torch lets convolutions on CUDA round their inputs to the 10 bits of TF32. A run whose precision is
    float32 would then have less than that. cuDNN takes the algorithm that it would take for the sizes at hand, and
    measures none, since a measurement may choose another one the next time.

    Args:
        deterministic: An operator that has no deterministic algorithm then raises a RuntimeError.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        torch.use_deterministic_algorithms(mode=True)


@contextlib.contextmanager
def repeatable(*, compiled: bool, foreign: bool, device: torch.device) -> Iterator[None]:
    """Take deterministic algorithms only, in the block, where the threads of a CPU would add in any order.

    They do that in compiled code, with the gradients of an embedding, and in programs of third parties, with those of a
    parameter that is read by index.

    Args:
        compiled: The steps are compiled.
        foreign: A program of a third party takes part.
        device: What computes.
    """
    before = torch.are_deterministic_algorithms_enabled()
    unordered = compiled or (foreign and torch.get_num_threads() > 1)
    torch.use_deterministic_algorithms(mode=before or (unordered and device.type == "cpu"))
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before)


def refused_operator(error: BaseException) -> str | None:
    """Return the operator that torch refused because it has no deterministic algorithm; None for any other error."""
    match = re.match(r"(.+?) does not have a deterministic implementation", str(error))
    return match.group(1) if match and torch.are_deterministic_algorithms_enabled() else None
