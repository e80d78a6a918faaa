# SPDX-License-Identifier: Apache-2.0
"""What a model does with masked positions before it reads a token."""

from __future__ import annotations

import torch
from torch import Tensor


def hide_padding(tokens: Tensor, mask: Tensor | None, *, zero_is_padding: bool) -> tuple[Tensor, Tensor | None]:
    """Set masked tokens to 0, so that no other value there, valid or not, reaches the model.

    Args:
        tokens: (batch, length), integers or real values.
        mask: Shaped like `tokens`, bool, True = real token; None = all real.
        zero_is_padding: Whether tokens of value 0 are masked too.

    Returns:
        The tokens and the mask.
    """
    if mask is not None:
        tokens = torch.where(mask, tokens, 0)
    return tokens, tokens > 0 if zero_is_padding else mask
