"""Modules as others write them, without a thought of this zoo; `test_foreign` names them by file and class."""

import torch
from torch import nn


class Heads(nn.Module):
    """Takes q, k and v in heads, and has no parameters."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.drop = nn.Dropout(dropout)

    def forward(self, q, k, v, mask=None):
        _batch, _heads, _length, width = q.shape
        scores = q @ k.transpose(-1, -2) / width**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        return self.drop(scores.softmax(-1)) @ v


class Tokens(nn.Module):
    """Batch first, with projections of its own and a mask that it insists on."""

    def __init__(self, d_model, nhead, temperature=1.0):
        super().__init__()
        self.nhead, self.temperature = nhead, temperature
        self.q, self.k, self.v, self.out = (nn.Linear(d_model, d_model) for _ in range(4))

    def forward(self, q, k, v, mask):
        batch, length, dim = q.shape
        parts = zip((self.q, self.k, self.v), (q, k, v), strict=True)
        q, k, v = (linear(x).view(batch, length, self.nhead, -1).transpose(1, 2) for linear, x in parts)
        scores = q @ k.transpose(-1, -2) / (self.temperature * (dim / self.nhead) ** 0.5)
        scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, dim))


class IgnoresTheMask(Tokens):
    def forward(self, q, k, v, mask):
        return super().forward(q, k, v, torch.ones_like(mask))


class MixesTheBatch(Tokens):
    def forward(self, q, k, v, mask):
        out = super().forward(q, k, v, mask)
        return out + out.mean(0, keepdim=True)


class WrongShape(Tokens):
    def forward(self, q, k, v, mask):
        return super().forward(q, k, v, mask)[:, :-1]


class PaddingIsTrue(Tokens):
    """Its mask has torch's meaning under the name that torch gives it, and it gives a tuple."""

    def forward(self, query, key, value, key_padding_mask=None):
        mask = torch.ones(query.shape[:2], dtype=torch.bool) if key_padding_mask is None else ~key_padding_mask
        return super().forward(query, key, value, mask), None


class Gate(nn.Module):
    """Takes x alone and treats each token alone."""

    def __init__(self, hidden_size, width):
        super().__init__()
        self.up, self.down = nn.Linear(hidden_size, width), nn.Linear(width, hidden_size)

    def forward(self, hidden_states):
        return self.down(self.up(hidden_states).relu())


def build_gate(dim):
    return Gate(dim, 8)


NOT_A_MODULE = 3
