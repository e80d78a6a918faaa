# SPDX-License-Identifier: Apache-2.0
"""The contract between a model and a sequence mixer: dimensions, options, traits and the module itself."""

from __future__ import annotations

import contextlib
import difflib
import operator
import sys
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, Self, TypeVar

import torch
from torch import Tensor, nn

from attention_zoo.kernels.dropout import dropout
from attention_zoo.masking import zero_masked

T = TypeVar("T")


class OptionError(ValueError):
    """An option of a variant is unknown or has a value that the variant refuses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerDims:
    """The dimensions that the model prescribes to its mixers; they are the same for every variant.

    Raises:
        ValueError: A size is not positive, or `dim` is not a multiple of `num_heads` while `head_dim` is left open.
    """

    dim: int
    """Width of the stream, in features."""
    num_heads: int
    max_length: int
    """Longest sequence the mixer has to accept, prefix tokens included."""
    head_dim: int = 0
    """Width of one head; 0 takes `dim // num_heads`."""
    qkv_bias: bool = True
    """Whether the query, key, value and output projections of the q-k-v family have biases."""
    causal: bool = False
    dropout: float = 0.0
    """Dropout of the attention weights (or of what stands in for them)."""
    grid: tuple[int, int] | None = None
    """(rows, columns) when the tokens are the pixels of an image in row-major order."""
    num_prefix: int = 0
    """Leading tokens that stand for the whole sequence and have no position in it, such as a CLS token."""
    layer: int = 0
    """Index of the block, from 0."""

    def __post_init__(self) -> None:
        if min(self.dim, self.num_heads, self.max_length) < 1 or self.head_dim < 0 or self.num_prefix < 0:
            raise ValueError(f"sizes must be positive: {self}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        if self.head_dim == 0:
            if self.dim % self.num_heads:
                raise ValueError(f"dim {self.dim} is not a multiple of num_heads {self.num_heads}; give head_dim")
            object.__setattr__(self, "head_dim", self.dim // self.num_heads)


def suggest(name: str, known: Iterable[str], number: int = 1) -> str:
    """Return the end of a message about an unknown name: up to `number` close names, or all known ones."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=number)
    if close:
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"known: {', '.join(known) or 'none'}"


_RANGES: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "least": (operator.ge, "at least {}"),
    "above": (operator.gt, "above {}"),
    "most": (operator.le, "at most {}"),
    "below": (operator.lt, "below {}"),
    "parity": (lambda value, parity: value == 0 or value % 2 == (parity == "odd"), "{}"),
}
"""Limits that `option` takes: what has to hold of a value and the limit, and its text."""


def option(
    default: T,
    help: str,  # noqa: A002 - the field's word for it
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    parity: Literal["even", "odd"] | None = None,
) -> T:
    """Return a dataclass field of a `VariantConfig`.

    Args:
        default: The value unless the experimenter chooses another one.
        help: The text that `describe` prints for it.
        least: The smallest value.
        above: All values are above it.
        most: The largest value.
        below: All values are below it.
        parity: Which integers are allowed; 0, which often stands for none, passes as both.
    """
    limits = {"least": least, "above": above, "most": most, "below": below, "parity": parity}
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantConfig:
    """The options of a variant, which the experimenter chooses.

    Each variant has one subclass, with a field made by `option` for each option.

    Raises:
        ValueError: A value is out of the range that its `option` gives. None is in every range.
    """

    def __post_init__(self) -> None:
        """Check the ranges; a subclass that has a check of its own calls this one first."""
        for f in fields(self):
            value = getattr(self, f.name)
            for name, (holds, text) in _RANGES.items():
                limit = f.metadata.get(name)
                if limit is not None and value is not None and not holds(value, limit):
                    raise ValueError(f"{f.name} must be {text.format(limit)}, got {value!r}")

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Self:
        """Build a configuration from plain values, refusing unknown names and wrong types.

        Equal values become one value, so that a run has one id: 1 and 1.0 of a float, -0.0 and 0.0, a list and a tuple.

        Raises:
            OptionError: One line per mistake; an unknown name comes with the closest known one.
        """
        hints = typing.get_type_hints(cls)
        known = {f.name: hints[f.name] for f in fields(cls)}
        problems = []
        values: dict[str, Any] = {}
        for name, value in options.items():
            if name not in known:
                problems.append(f"{name}: unknown option; {suggest(name, known)}")
                continue
            try:
                values[name] = _typed(known[name], value)
            except TypeError:
                problems.append(f"{name}: expected {_type_text(known[name])}, got {value!r}")
        if problems:
            raise OptionError("\n".join(problems))
        try:
            return cls(**values)
        except OptionError:
            raise
        except ValueError as error:
            raise OptionError(str(error)) from error

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values; `from_dict` takes them back."""
        return asdict(self)

    def resolved(self, dims: LayerDims) -> Self:  # noqa: ARG002 - for those that override it
        """Return these options with the values that defaults such as 0 stand for at these dimensions, in any layer.

        The constructor of the mixer reads them from here, and options that resolve to the same are one run. Nothing
        changes unless overridden.
        """
        return self

    def in_one_form(self, dims: LayerDims, usual: Mapping[str, Any] = MappingProxyType({})) -> Self:
        """Return the options with each one at its usual value, or else at its default, if they resolve to the same.

        Args:
            dims: The dimensions that defaults depend on.
            usual: Values that come before the defaults, those of a recipe.
        """
        found, meant = self, self.resolved(dims)
        for name, _, default, _ in self.describe():
            for value in (usual.get(name, default), default):
                options = found.to_dict()
                if same_value(options[name], value):
                    break
                with contextlib.suppress(ValueError):  # some values exclude each other
                    other = self.from_dict(options | {name: value})
                    if same_value(other.resolved(dims).to_dict(), meant.to_dict()):
                        found = other
                        break
        return found

    def inner_variants(self) -> dict[str, VariantConfig]:
        """Return name and options of each other variant that this one is built around; none unless overridden."""
        return {}

    @classmethod
    def describe(cls) -> list[tuple[str, str, Any, str]]:
        """List (name, type, default, help) of every option."""
        hints = typing.get_type_hints(cls)
        return [
            (
                f.name,
                _type_text(hints[f.name]),
                f.default_factory() if f.default_factory is not MISSING else f.default,
                str(f.metadata.get("help", "")),
            )
            for f in fields(cls)
        ]


def same_value(one: Any, other: Any) -> bool:
    """Say whether two values of an option are one: a list and a tuple of the same values are, True and 1 are not."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same_value, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_value(value, other[name]) for name, value in one.items())
    return bool(one == other) and isinstance(one, bool) == isinstance(other, bool)


def _typed(hint: Any, value: Any) -> Any:
    """Return a plain value in the one form that an annotation gives it; a bool is not an int here, an int fits a float.

    Raises:
        TypeError: The value does not fit.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for argument in sorted(arguments, key=lambda argument: argument is not float):  # 1 and 1.0 of int | float
            with contextlib.suppress(TypeError):
                return _typed(argument, value)
        raise TypeError
    if origin is Literal:
        if any(value == argument and type(value) is type(argument) for argument in arguments):
            return value
        raise TypeError
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # NaN, an infinity, or an integer that no float can hold
            raise TypeError
        return float(value) + 0.0  # -0.0 + 0.0 is 0.0
    kind = hint if origin is None else origin
    if kind is type(None) and value is None:
        return value
    if kind is tuple and isinstance(value, list | tuple):
        return tuple(map(_typed, _items(arguments, value), value) if arguments else map(_in_one_form, value))
    fits = kind is Any or (isinstance(kind, type) and isinstance(value, kind))
    if not fits or (kind is int and isinstance(value, bool)):
        raise TypeError
    if arguments and isinstance(value, Mapping):
        return {_typed(arguments[0], key): _typed(arguments[1], inner) for key, inner in value.items()}
    if arguments and isinstance(value, list):
        return [_typed(arguments[0], inner) for inner in value]
    return _in_one_form(value)


def _in_one_form(value: Any) -> Any:
    """Return a value of an unknown type with whole floats as integers, also inside: 1.0 is 1, and -0.0 is 0.

    Of 2**63 on they stay: torch has no such integers.
    """
    if isinstance(value, Mapping):
        return {key: _in_one_form(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_in_one_form, value))
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**63 else value


def _items(arguments: Sequence[Any], value: Sequence[Any]) -> Sequence[Any]:
    """Return the annotation of each item of a tuple.

    Raises:
        TypeError: The tuple has another length.
    """
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return [arguments[0]] * len(value)
    if len(arguments) != len(value):
        raise TypeError
    return arguments


def _type_text(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(argument) for argument in typing.get_args(hint))
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "").replace("collections.abc.", "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """The properties that a variant claims to have. The contract checks test each claim."""

    memory: Literal["linear", "subquadratic", "quadratic", "not stated"]
    """How the largest tensor of forward and backward grows with the length; what is not stated is not checked."""
    complexity: str
    """Growth of the time in the paper's notation, for tables, such as `O(n w)`."""
    causal: bool = False
    """Whether there is a causal form. A variant without it is never built with `LayerDims.causal`."""
    padding_length_invariant: bool = True
    """Whether the outputs of real positions stay the same when a sequence is padded further."""
    permutation_equivariant: bool | None = False
    """Whether permuted tokens give the same outputs in permuted order; None = not stated, and not checked."""
    mixes_tokens: bool = True
    """False for controls that treat each token alone."""
    exact_limit: Callable[[int], Mapping[str, Any]] | None = None
    """Function from a length to options with which the variant equals `full` with the same weights; None = no such."""
    waivers: Mapping[str, str] = field(default_factory=dict)
    """Name of a check -> reason why the variant does not pass it. A waived check that passes is an error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParameterGroup:
    """How parameters of a mixer are trained, where it is not as those of the model."""

    rate: float = 1.0
    """Factor of the learning rate."""
    decay: float = 1.0
    """Factor of the weight decay; 0 for none."""
    state_space: bool = False
    """Whether they are poles, steps or inputs of a recurrence, for which a recipe may have a rate of its own and no
    weight decay."""


STATE_SPACE = ParameterGroup(state_space=True)
"""The group of the parameters of a recurrence."""


class SequenceMixer(nn.Module, ABC):
    """A module that lets tokens exchange information: attention, or a layer used in its place.

    The mixer owns its projections, its dropout and its random state (as buffers). The block around it owns the norm,
    the residual connection and the feed-forward layers. The model owns embedding, positions, pooling and head.
    """

    def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
        super().__init__()
        self.config = config
        self.dims = dims

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Check the input, set masked positions of `x` to zero, and run `forward`.

        So no variant has to guard against NaN, infinity or memory that was never written behind the mask. A batch
        without sequences, or of sequences without tokens, gives an empty result, and `forward` does not see it.

        Args:
            x: (batch, length, dim).
            mask: (batch, length), bool, True = real token, in any pattern; None = all real.

        Returns:
            (batch, length, dim), see `forward`.

        Raises:
            ValueError: The length exceeds `dims.max_length`, or `x` or the mask has another shape or dtype.
        """
        self.check_input(x, mask)
        if x.numel() == 0:
            # No number, but a graph: a process without examples has zeros for gradients, as the others have numbers.
            return x + sum((p.flatten()[:0].abs().sum() for p in self.parameters()), x.new_zeros(()))
        out: Tensor = super().__call__(zero_masked(x, mask), mask)
        return out

    @abstractmethod
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens of each sequence; called through the mixer itself, which prepares the input.

        Args:
            x: (batch, length, dim), with at least one sequence and one token.
            mask: (batch, length), bool, True = real token, in any pattern; None = all real.

        Returns:
            (batch, length, dim). The values at masked positions are finite and otherwise unspecified. A sequence
            without any real token gives zeros.
        """

    def dropped(self, x: Tensor) -> Tensor:
        """Apply the dropout of the layer, which acts in training only."""
        return dropout(x, self.dims.dropout, training=self.training)

    def transform_stream(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Change the residual stream itself before the block's norm; returns it unchanged unless overridden."""
        return x

    def auxiliary_loss(self) -> Tensor | None:
        """Return a scalar that is added to the loss, such as a penalty on spans; None unless overridden."""
        return None

    def after_step(self) -> None:
        """Do what is due after every optimiser step, such as clamping a parameter; nothing unless overridden."""

    def parameter_groups(self) -> dict[str, ParameterGroup]:
        """Return how some parameters are trained, by name; all others are trained like the model's."""
        return {}

    def statistics(self) -> dict[str, Tensor]:
        """Return scalars of the last forward pass for learning curves, by name; none unless overridden."""
        return {}

    def token_statistics(self) -> dict[str, Tensor]:
        """Return one number for each token of the last forward pass, for figures, by name; none unless overridden.

        Each tensor is (batch, length - num_prefix), detached, and zero at masked tokens.
        """
        return {}

    def state_size(self, length: int) -> int | None:  # noqa: ARG002
        """Return how many numbers the layer keeps of a sequence, to go on without reading its tokens again.

        Of attention these are the keys and values that later tokens may meet; of a recurrence, the states of all its
        directions, a complex one being two numbers; of a convolution, the other tokens under the kernel, with their
        channels or their `dim` features, whichever are fewer.

        Args:
            length: Tokens that were read, at most `dims.max_length`.

        Returns:
            Numbers for each layer and sequence; None if there is no such form, or unless overridden.
        """
        return None

    def resolved_backend(self, device: torch.device) -> str:  # noqa: ARG002
        """Return the name of the implementation that `forward` uses in training on this device, for the record."""
        return "torch"

    def check_input(self, x: Tensor, mask: Tensor | None) -> None:
        """Raise ValueError for inputs that the contract does not allow; called before every `forward`.

        Raises:
            ValueError: See `__call__`.
        """
        if x.dim() != 3 or x.shape[2] != self.dims.dim:
            raise ValueError(f"x must be (batch, length, {self.dims.dim}), got {tuple(x.shape)}")
        if x.shape[1] > self.dims.max_length:
            raise ValueError(f"length {x.shape[1]} exceeds max_length {self.dims.max_length}")
        if mask is not None and (mask.shape != x.shape[:2] or mask.dtype != torch.bool):
            raise ValueError(
                f"mask must be bool of shape {tuple(x.shape[:2])}, got {mask.dtype} of {tuple(mask.shape)}"
            )
