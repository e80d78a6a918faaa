# SPDX-License-Identifier: Apache-2.0
"""The shared classifier: embedding, positions, residual blocks around a sequence mixer, pooling and head."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo import LayerDims, SequenceMixer, get_variant
from attention_zoo.kernels.dropout import Dropout
from attention_zoo.masking import masked_mean, masked_softmax, zero_masked
from lra.config.schema import ModelConfig, RunConfig
from lra.models.convnet import ConvNet
from lra.models.foreign import ForeignModel
from lra.models.norms import build_norm, normalise
from lra.models.padding import hide_padding
from lra.seeding import seed_all
from lra.tasks import info_of

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
}


def sinusoid_table(length: int, dim: int) -> Tensor:
    """Return fixed positions (length, dim): sines in the even columns, cosines in the odd (arXiv:1706.03762, 3.5)."""
    # 10000^(-2i / dim) for each pair of columns, in float64: for a late position a float32 angle is too coarse.
    frequency = torch.exp(torch.arange(0, dim, 2, dtype=torch.float64) * (-math.log(10000.0) / dim))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    # (length, dim / 2, 2) flattened interleaves sines and cosines; an odd dim drops the last cosine.
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, :dim].float()


class TokenTable(nn.Embedding):
    """A learnt vector for each id."""

    def __init__(self, rows: int, dim: int, std: float) -> None:
        super().__init__(rows, dim)
        nn.init.normal_(self.weight, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, length) ids of any integer type to (batch, length, dim)."""
        return super().forward(tokens.long())


class LinearInput(nn.Linear):
    """A linear map of real values: bytes, brought to mean 0 and standard deviation 1."""

    def __init__(self, dim: int, mean: float, std: float) -> None:
        super().__init__(1, dim)
        self.mean, self.std = mean, std

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, length) values 0 to 255 to (batch, length, dim)."""
        values = (tokens.to(self.weight.dtype) / 255.0 - self.mean) / self.std  # (batch, length)
        return super().forward(values.unsqueeze(-1))


class Embedding(nn.Module):
    """Tokens as vectors, optional CLS token in front, positions, dropout.

    Args:
        config: The model.
        tokens: Maps each token to a vector.
        zero_is_padding: Hide tokens of value 0 like padding. The first implementations of the benchmark do that to
            black pixels.
    """

    positions: Tensor

    def __init__(self, config: ModelConfig, tokens: TokenTable | LinearInput, *, zero_is_padding: bool) -> None:
        super().__init__()
        self.tokens, self.zero_is_padding = tokens, zero_is_padding
        self.cls = nn.Parameter(torch.zeros(config.dim)) if config.pooling == "cls" else None
        rows = config.max_length + (self.cls is not None)
        if config.positions == "learned":
            self.positions = nn.Parameter(torch.empty(rows, config.dim))
            nn.init.normal_(self.positions, std=0.02)
        else:
            table = sinusoid_table(rows, config.dim) if config.positions == "sinusoidal" else torch.zeros(0)
            self.register_buffer("positions", table, persistent=False)  # computed again, so not in checkpoints
        self.dropout = Dropout(config.dropout)

    def forward(
        self, tokens: Tensor, mask: Tensor | None, hidden: Tensor | None = None, substitute: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Embed (batch, length) tokens as (batch, length [+ 1 with CLS], dim), and extend the mask in the same way.

        Where `hidden`, (batch, length), is True, `substitute`, (dim,), takes the place of the vector of the token.
        """
        tokens, mask = hide_padding(tokens, mask, zero_is_padding=self.zero_is_padding)
        x = self.tokens(tokens)
        if hidden is not None and substitute is not None:
            x = torch.where(hidden.unsqueeze(-1), substitute.to(x.dtype), x)
        if self.cls is not None:
            x = torch.cat((self.cls.to(x.dtype).expand(len(x), 1, -1), x), dim=1)
            mask = mask if mask is None else F.pad(mask, (1, 0), value=True)
        if len(self.positions) > 0:
            x = x + self.positions[: x.shape[1]]  # (length [+ 1], dim), the same for each example
        return self.dropout(x), mask


class Block(nn.Module):
    """Residual block: x + drop(mixer(norm(x))), then x + mlp(norm(x)).

    With `norm_placement: post` it is norm(x + drop(mixer(x))), then norm(x + mlp(x)).
    """

    def __init__(self, config: ModelConfig, mixer: SequenceMixer) -> None:
        super().__init__()
        self.post_norm = config.norm_placement == "post"
        self.mixer_norm = build_norm(config)
        self.mixer = mixer
        self.dropout = Dropout(config.dropout)
        self.mlp_norm = build_norm(config)
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, config.mlp_dim),
            _ACTIVATIONS[config.activation](),
            Dropout(config.dropout),
            nn.Linear(config.mlp_dim, config.dim),
            Dropout(config.dropout),
        )
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.normal_(module.bias, std=1e-6)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map (batch, length, dim) to the same shape."""
        x = self.mixer.transform_stream(x, mask)  # the identity, except for ContextPool's placement `stream`
        if self.post_norm:
            x = normalise(self.mixer_norm, x + self.dropout(self.mixer(x, mask)), mask)
            return normalise(self.mlp_norm, x + self.mlp(x), mask)
        x = x + self.dropout(self.mixer(normalise(self.mixer_norm, x, mask), mask))
        return x + self.mlp(normalise(self.mlp_norm, x, mask))


class Head(nn.Module):
    """Normalise, unless the blocks end with that, pool each sequence, combine the two of a pair, and classify."""

    def __init__(self, config: ModelConfig, num_classes: int, *, paired: bool) -> None:
        super().__init__()
        self.pooling, self.max_length = config.pooling, config.max_length
        self.pair_head = config.pair_head if paired else None
        self.norm = build_norm(config) if config.norm_placement == "pre" else nn.Identity()
        self.score = nn.Linear(config.dim, 1) if config.pooling == "attention" else None
        widths = [config.dim * {None: 1, "code": 2, "paper": 4}[self.pair_head]]
        if config.head_hidden:
            widths.append(config.head_hidden)
            if self.pair_head == "code":
                widths.append(config.head_hidden // 2)
        self.hidden = nn.ModuleList(nn.Linear(before, after) for before, after in itertools.pairwise(widths))
        self.out = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map (batch, length, dim) to logits (batch, num_classes); (2 * batch, ...) for pairs, kept side by side."""
        return self.classify(normalise(self.norm, x, mask), mask)

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map what `forward` maps, after the norm."""
        x = self.pool(x, mask)
        if self.pair_head is not None:
            first, second = x.unflatten(0, (-1, 2)).unbind(dim=1)  # (2 * batch, dim) to two of (batch, dim)
            features = [first, second]
            if self.pair_head == "paper":
                features += [first * second, first - second]
            x = torch.cat(features, dim=-1)
        for linear in self.hidden:
            x = F.relu(linear(x))
        return self.out(x)

    def pool(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Reduce (batch, length, dim) to (batch, dim)."""
        if self.pooling in ("cls", "first"):
            return x[:, 0]
        if self.pooling == "masked_mean":
            return masked_mean(x, mask)
        if self.pooling == "padded_mean":
            return zero_masked(x, mask).sum(dim=1) / self.max_length  # padding counts in the divisor
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        if self.score is not None:
            weights = masked_softmax(self.score(x)[..., 0], real).to(x.dtype)  # (batch, length)
            return (weights.unsqueeze(-1) * zero_masked(x, real)).sum(dim=1)
        if self.pooling == "max":  # a sequence without a real token gives zeros, as in the means
            return x.masked_fill(~real.unsqueeze(-1), -math.inf).amax(dim=1).masked_fill(~real.any(dim=1)[:, None], 0.0)
        place = (real * torch.arange(x.shape[1], device=x.device)).amax(dim=1)  # (batch,), of the last real token
        return zero_masked(x, real)[torch.arange(len(x), device=x.device), place]


class Classifier(nn.Module):
    """Encoder of a sequence, or of each of two, with a classification head."""

    def __init__(self, embedding: Embedding, blocks: list[Block], head: Head) -> None:
        super().__init__()
        self.embedding, self.blocks, self.head = embedding, nn.ModuleList(blocks), head

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Classify.

        Args:
            tokens: (batch, length), integers; (batch, 2, length) for pairs.
            mask: Shaped like `tokens`, bool, True = real token; None = all real.

        Returns:
            Logits (batch, num_classes).
        """
        if tokens.dim() == 3:  # both documents of a pair go through one encoder, as 2 * batch sequences
            tokens, mask = tokens.flatten(0, 1), None if mask is None else mask.flatten(0, 1)
        x, mask = self.embedding(tokens, mask)  # (batch, length [+ 1 with CLS], dim)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(x, mask)


def build_model(config: RunConfig, vocab_size: int, num_classes: int) -> Classifier | ConvNet | ForeignModel:
    """Build the model of a run.

    Each part is initialised from its own stream of the run's seed, so two variants under one seed share the weights of
    all parts that they have in common. This reseeds torch's global generator.

    Raises:
        ValueError: The variant refuses the dimensions, or the family is convnet and the task has no grid.
        ForeignError: A module that was not written for this harness cannot be built.
    """
    model = config.model
    spec = get_variant(config.variant.name)
    info = info_of(config)
    if model.family == "foreign":
        head = None
        if info.paired:
            seed_all(config.seed, "init", "head")
            head = Head(model.model_copy(update={"pooling": "first"}), num_classes, paired=True)
        return ForeignModel(spec, config, info, vocab_size, num_classes, head)
    seed_all(config.seed, "init", "embedding")
    if info.normalisation is None:
        tokens: TokenTable | LinearInput = TokenTable(
            model.embedding_rows or vocab_size, model.dim, model.embedding_std
        )
    else:
        tokens = LinearInput(model.dim, *info.normalisation)
    zero_is_padding = config.data.get("legacy_zero_mask", False)
    if model.family == "convnet":
        if info.grid is None:
            raise ValueError(f"task {info.name!r} has no images for a convnet")
        seed_all(config.seed, "init", "convnet")
        activation = _ACTIVATIONS[model.activation]
        return ConvNet(model, tokens, info.grid, num_classes, activation, zero_is_padding=zero_is_padding)
    embedding = Embedding(model, tokens, zero_is_padding=zero_is_padding)
    blocks = []
    for layer in range(model.num_layers):
        seed_all(config.seed, "init", "mixer", layer)
        mixer = spec.build(config.variant.typed, layer_dims(config, layer))
        seed_all(config.seed, "init", "block", layer)
        blocks.append(Block(model, mixer))
    seed_all(config.seed, "init", "head")
    return Classifier(embedding, blocks, Head(model, num_classes, paired=info.paired))


def layer_dims(config: RunConfig, layer: int) -> LayerDims:
    """Return the dimensions that the model of a run prescribes to the mixer of a layer, counted from 0."""
    model = config.model
    num_prefix = int(model.pooling == "cls")  # tokens in front that are not pixels of the grid
    return LayerDims(
        dim=model.dim,
        num_heads=model.num_heads,
        head_dim=model.head_dim,
        max_length=model.max_length + num_prefix,
        qkv_bias=model.qkv_bias,
        causal=model.causal,
        dropout=model.attention_dropout,
        grid=info_of(config).grid,
        num_prefix=num_prefix,
        layer=layer,
    )


def mixers(model: nn.Module) -> Iterator[SequenceMixer]:
    """Yield the outermost mixers of a model, in order of depth (a mixer inside a mixer is not yielded)."""
    for child in model.children():
        if isinstance(child, SequenceMixer):
            yield child
        else:
            yield from mixers(child)


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
