# SPDX-License-Identifier: Apache-2.0
"""The precision of a forward pass: whoever repeats the answers of a run computes them as the run did."""

from __future__ import annotations

import torch


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of a forward pass: bfloat16 autocast, or none."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")
