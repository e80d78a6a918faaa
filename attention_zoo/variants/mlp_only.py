# SPDX-License-Identifier: Apache-2.0
"""No mixing of tokens at all: the lower bound of every table.

This control is from no paper. A model with it in place of attention shows what the embedding, the feed-forward layers
and the pooling reach on a task without attention.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig
from attention_zoo.masking import zero_masked
from attention_zoo.registry import register_variant


@register_variant(
    "mlp_only",
    title="MLP only",
    family="control",
    traits=Traits(memory="linear", complexity="O(n)", causal=True, permutation_equivariant=True, mixes_tokens=False),
    paper="none: a control",
)
class MlpOnly(SequenceMixer):
    """A feed-forward network with one hidden layer, on each token alone.

    The hidden layer is twice as wide as all heads together. Its two matrices then have exactly as many weights as the
    four projections of full attention.
    """

    def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        hidden = 2 * dims.num_heads * dims.head_dim
        self.expand = nn.Linear(dims.dim, hidden, bias=dims.qkv_bias)
        self.out = nn.Linear(hidden, dims.dim, bias=dims.qkv_bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Transform each token; see `SequenceMixer.forward`."""
        hidden = self.dropped(F.gelu(self.expand(x)))
        return zero_masked(self.out(hidden), mask)

    def state_size(self, length: int) -> int:  # noqa: ARG002 - the same at every length
        """Nothing."""
        return 0
