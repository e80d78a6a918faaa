"""The plainest loop in torch for the model of the benchmark: what any harness around it can be measured against.

It has pre-norm blocks, learnt positions, torch's fused attention without attention dropout, and nothing that a run
needs besides: no seeds for each step, no checks, no variants.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lra.config.schema import ModelConfig


class PlainBlock(nn.Module):
    """Attention and a network for each token, both around a residual stream."""

    def __init__(self, model: ModelConfig) -> None:
        super().__init__()
        dim, self.heads = model.dim, model.num_heads
        self.before_attention, self.before_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.queries_keys_values, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(model.dropout)
        self.mlp = nn.Sequential(
            nn.Linear(dim, model.mlp_dim),
            nn.GELU(),
            nn.Dropout(model.dropout),
            nn.Linear(model.mlp_dim, dim),
            nn.Dropout(model.dropout),
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map (batch, length, dim) to the same shape."""
        parts = self.queries_keys_values(self.before_attention(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = None if mask is None else mask[:, None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, seen).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(mixed))
        return x + self.mlp(self.before_mlp(x))


class PlainModel(nn.Module):
    """A classifier of token sequences."""

    def __init__(self, model: ModelConfig, vocab_size: int, num_classes: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, model.dim)
        self.positions = nn.Parameter(torch.randn(model.max_length, model.dim) * 0.02)
        self.dropout = nn.Dropout(model.dropout)
        self.blocks = nn.ModuleList(PlainBlock(model) for _ in range(model.num_layers))
        self.norm = nn.LayerNorm(model.dim)
        hidden = model.head_hidden or model.dim
        self.head = nn.Sequential(nn.Linear(model.dim, hidden), nn.ReLU(), nn.Linear(hidden, num_classes))

    def forward(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """Map (batch, length) ids to (batch, num_classes) logits."""
        x = self.dropout(self.tokens(tokens.long()) + self.positions[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        if mask is None:
            return self.head(x.mean(dim=1))
        real = mask.unsqueeze(-1)
        return self.head((x * real).sum(dim=1) / real.sum(dim=1))
