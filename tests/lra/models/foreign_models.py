"""Whole models as others write them, sound ones and such with one mistake each; `test_foreign` names them."""

import torch
from torch import nn


class Bag(nn.Module):
    """Mean of the vectors of the real tokens."""

    def __init__(self, vocabulary_size, num_classes, width=8, noise=0.1):
        super().__init__()
        self.embed = nn.Embedding(vocabulary_size, width) if vocabulary_size else nn.Linear(1, width)
        self.values = not vocabulary_size
        self.drop = nn.Dropout(noise)
        self.out = nn.Linear(width, num_classes)

    def forward(self, tokens, mask):
        x = self.embed(tokens.unsqueeze(-1) if self.values else tokens)
        real = mask.unsqueeze(-1).to(x.dtype)
        return self.out(self.drop((x * real).sum(1) / real.sum(1)))


def build(vocabulary_size, max_length, num_classes, width=8):
    return Bag(vocabulary_size, num_classes, width)


class Normalized(Bag):
    """Cannot be trained with a batch of one."""

    def __init__(self, vocabulary_size, num_classes):
        super().__init__(vocabulary_size, num_classes)
        self.norm = nn.BatchNorm1d(num_classes)

    def forward(self, tokens, mask):
        return self.norm(super().forward(tokens, mask))


class IgnoresTheMask(Bag):
    def forward(self, tokens, mask):
        return super().forward(tokens, torch.ones_like(mask))


class MixesTheBatch(Bag):
    def forward(self, tokens, mask):
        logits = super().forward(tokens, mask)
        return logits + logits.mean(0)


class WrongShape(Bag):
    def forward(self, tokens, mask):
        return super().forward(tokens, mask)[:, :-1]


class NotANumber(Bag):
    def forward(self, tokens, mask):
        return super().forward(tokens, mask) * float("nan")


class Detached(Bag):
    def forward(self, tokens, mask):
        return super().forward(tokens, mask).detach()


class TakesNoMask(Bag):
    def forward(self, tokens):
        return super().forward(tokens, torch.ones_like(tokens, dtype=torch.bool))


class Fails(Bag):
    def forward(self, tokens, mask):
        return self.out(self.embed(tokens) @ mask)


class CannotBeBuilt(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        raise ValueError("no such size")


def builds_nothing(vocabulary_size, max_length, num_classes):
    return num_classes


def needs_more(vocabulary_size, num_classes, depth):
    return Bag(vocabulary_size, num_classes, depth)


class AMixer(nn.Module):
    def forward(self, x):
        return x
