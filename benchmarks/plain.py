"""The plainest training step in torch for one model, which the harness is compared with.

It is what a person writes for full attention alone: an embedding, learned positions, pre-norm blocks around torch's
fused attention, a mean over the tokens, a classifier, and AdamW. It has no options, masks or checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lra.config.schema import RunConfig
from lra.tasks import get_task


class PlainBlock(nn.Module):
    """One transformer block."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.heads, self.attention_dropout = heads, attention_dropout
        self.norm, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, mlp_dim), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(mlp_dim, dim), nn.Dropout(dropout),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Mix and transform (batch, length, dim)."""
        q, k, v = self.qkv(self.norm(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attention_dropout if self.training else 0.0)
        x = x + self.dropout(self.out(y.transpose(1, 2).flatten(2)))
        return x + self.mlp(x)


class PlainModel(nn.Module):
    """A classifier of the size that a configuration gives."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        model, info = config.model, get_task(config.task).info
        self.embedding = nn.Embedding(info.vocab_size, model.dim)
        self.position = nn.Parameter(0.02 * torch.randn(model.max_length, model.dim))
        self.dropout = nn.Dropout(model.dropout)
        sizes = model.dim, model.num_heads, model.mlp_dim, model.dropout, model.attention_dropout
        self.blocks = nn.Sequential(*(PlainBlock(*sizes) for _ in range(model.num_layers)))
        self.head = nn.Sequential(
            nn.LayerNorm(model.dim), nn.Linear(model.dim, model.mlp_dim), nn.ReLU(),
            nn.Linear(model.mlp_dim, info.num_classes),
        )  # fmt: skip

    def forward(self, tokens: Tensor) -> Tensor:
        """Classify (batch, length) into (batch, classes)."""
        x = self.dropout(self.embedding(tokens.long()) + self.position[: tokens.shape[1]])
        y: Tensor = self.head(self.blocks(x).mean(dim=1))
        return y


def plain_step(config: RunConfig, tokens: Tensor, labels: Tensor) -> Callable[[], None]:
    """Make a function that trains the plain model for one step on these tokens, (batch, length), and labels."""
    device, half = tokens.device, config.train.precision == "bfloat16"
    model = PlainModel(config).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            loss = F.cross_entropy(model(tokens).float(), labels)
        loss.backward()
        optimizer.step()

    return step
