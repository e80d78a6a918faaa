# SPDX-License-Identifier: Apache-2.0
"""Modules that were not written for this zoo, as variants: `my_attention.py:MyAttention` or `package.module:Class`.

A class, or a function that builds a module, is found by its reference. A mixer of the contract is taken as it is. Any
other `nn.Module` is wrapped: its arguments are filled in from the dimensions of the layer by name, and what its
`forward` takes is found from its signature.

| signature of `forward` | what it gets |
| --- | --- |
| `(x)`, `(x, mask)` | x of (batch, length, dim) |
| `(q, k, v)`, `(q, k, v, mask)` | layout `heads`: projections of x, (batch, num_heads, length, head_dim) |
| the same | layout `tokens`: x three times, (batch, length, dim), for modules with projections of their own |

A function or class with a parameter `num_classes` builds a whole model and no mixer. The harness decides the parameters
of `MODEL_SIZES`, and the others become options. `lra.models.foreign` builds it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

import torch
from torch import Tensor, nn

from attention_zoo.base import LayerDims, SequenceMixer, VariantConfig, option, suggest
from attention_zoo.masking import zero_masked
from attention_zoo.projections import HeadProjections

DIMENSIONS = {
    "dim": ("dim", "d_model", "dim_model", "model_dim", "embed_dim", "embedding_dim", "hidden_size", "hidden_dim",
            "d_hidden", "n_embd", "embed_size", "channels", "query_dim"),
    "num_heads": ("num_heads", "heads", "n_heads", "nhead", "n_head", "num_attention_heads"),
    "head_dim": ("head_dim", "dim_head", "dim_heads", "d_head", "d_k", "d_keys", "head_size", "attention_head_size"),
    "max_length": ("max_length", "max_len", "max_seq_len", "max_seq_length", "seq_len", "seq_length", "sequence_length",
                   "context_length", "block_size", "max_position_embeddings"),
    "dropout": ("dropout", "attn_dropout", "attention_dropout", "dropout_p", "dropout_prob", "drop_rate", "attn_drop",
                "attention_probs_dropout_prob"),
    "qkv_bias": ("bias", "qkv_bias", "use_bias"),
    "causal": ("causal", "is_causal"),
}  # fmt: skip
"""Names of constructor arguments that mean a dimension of the layer."""
MODEL_SIZES = ("vocabulary_size", "max_length", "num_classes")
"""Parameters of what builds a whole model that its task decides."""
FIXED = {"batch_first": True}
"""Arguments that have one right value here."""
NO_OPTIONS = ("device", "dtype", "layout", "mask")
"""Arguments that keep their default, because the harness decides them or has an option of that name."""
QKV = ({"q", "query", "queries"}, {"k", "key", "keys"}, {"v", "value", "values"})
PADDING_MASKS = ("key_padding_mask", "src_key_padding_mask", "padding_mask")
"""Masks in which True means padding, as torch's attention has them."""
MASKS = (*PADDING_MASKS, "mask", "attention_mask", "attn_mask", "input_mask", "x_mask")
PLAIN = (bool, int, float, str)
"""Types of arguments that become options; an argument with another default keeps it."""
PROBE_LENGTH = 16
"""Tokens of the trial that finds the layout of a module."""


class ForeignError(TypeError):
    """A module cannot be found, built or called."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForeignConfig(VariantConfig):
    """Options of every wrapped module, besides the arguments of its own constructor."""

    layout: Literal["auto", "heads", "tokens"] = option("auto", "what q, k and v are; auto tries heads, then tokens")
    mask: Literal["auto", "real", "padding", "additive"] = option(
        "auto",
        "what the mask says: True = real, True = padding, or 0 and a large negative number; auto goes by its name",
    )


@dataclass(frozen=True, slots=True)
class Found:
    """What a reference leads to."""

    title: str
    mixer: type[SequenceMixer]
    """Of a whole model: what refuses to be built."""
    config: type[VariantConfig] | None
    """None for a mixer of the contract, which names its own."""
    program: Any
    """The class or function whose source identifies the program."""
    whole_model: bool = False
    """Whether the program builds a whole model."""
    origin: str = ""
    """What identifies the program, if that is not its source."""


def load(reference: str) -> Found:
    """Import what `file.py:Name` or `package.module:Name` leads to, and wrap it if it is not a mixer.

    Raises:
        ForeignError: There is no such thing, it cannot be imported, or it is no module and builds none.
    """
    place, _, name = reference.rpartition(":")
    if place == "hf":
        from attention_zoo import huggingface  # here, since it imports this module

        return huggingface.load(name)
    module = import_place(place)
    thing = getattr(module, name, None) if name else None
    if thing is None:
        named = [key for key, value in vars(module).items() if _usable(value) and value.__module__ == module.__name__]
        raise ForeignError(f"{place} has no {name or 'name after the colon'!r}; {suggest(name, named)}")
    if not _usable(thing):
        raise ForeignError(f"{reference} is {thing!r}; expected a class of nn.Module, or a function that builds one")
    if isinstance(thing, type) and issubclass(thing, SequenceMixer):
        return Found(name, thing, None, thing)
    if "num_classes" in _parameters(thing):
        return whole_model(f"{Path(place).stem}.{name}", thing)
    config = _config_class(name, thing, ForeignConfig, lambda key: _dimension(key) is not None)
    # Made here and not by a statement, since each class has its own factory and the annotation of its own options.
    wrapper = type(name, (ForeignMixer,), {"factory": staticmethod(thing), "__module__": module.__name__})
    return Found(name, wrapper, config, thing)


def whole_model(title: str, builder: Callable[..., nn.Module]) -> Found:
    """Return what a function or class leads to that builds a whole model."""
    config = _config_class(title.rpartition(".")[2], builder, VariantConfig, MODEL_SIZES.__contains__)
    return Found(title, NoMixer, config, builder, whole_model=True)


class NoMixer(SequenceMixer):
    """What a whole model has in place of a mixer.

    Raises:
        ForeignError: Always, when it is built.
    """

    def __init__(self, config: VariantConfig, dims: LayerDims) -> None:  # noqa: ARG002
        raise ForeignError("it builds a whole model, not a mixer; lra-run --model trains it")

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Return x; never called."""
        return x


class ForeignMixer(SequenceMixer):
    """A module of somebody else behind the contract.

    What the module need not know: sequences without a real token, masked outputs, outputs in a tuple, and dropout if
    its constructor has no argument for it (then its output is dropped).

    Raises:
        ForeignError: The module cannot be built from dimensions and options, or called in any known way.
    """

    factory: ClassVar[Callable[..., nn.Module]]

    def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        assert isinstance(config, ForeignConfig)
        arguments, has_dropout = self._arguments(config, dims)
        try:
            self.inner = type(self).factory(**arguments)
        except Exception as error:
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise ForeignError(f"{self._name}({given}) failed: {_first_line(error)}") from error
        if not isinstance(self.inner, nn.Module):
            raise ForeignError(f"{self._name} built {type(self.inner).__name__}, not an nn.Module")
        takes = inspect.signature(self.inner.forward).parameters
        names = list(takes)
        self.takes_qkv = len(names) >= 3 and all(name.lower() in known for name, known in zip(names, QKV, strict=False))
        self.mask_name = next((name for name in MASKS if name in names), None)
        self.needs_mask = self.mask_name is not None and takes[self.mask_name].default is inspect.Parameter.empty
        self.mask_kind = config.mask
        if config.mask == "auto":
            additive = self.mask_name == "attention_mask" and names[0] == "hidden_states"
            self.mask_kind = "padding" if self.mask_name in PADDING_MASKS else "additive" if additive else "real"
        self.dropout = nn.Dropout(0.0 if has_dropout else dims.dropout)
        self.projections: HeadProjections | None = None
        if self.takes_qkv and self._layout(config) == "heads":
            self.projections = HeadProjections(dims)

    @property
    def _name(self) -> str:
        return type(self).__name__

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Call the module; see `SequenceMixer.forward`.

        Raises:
            ForeignError: Its result has another shape than the contract wants.
        """
        seen = mask
        if mask is not None:
            # A sequence without a real token shows the module all its zeros, so that no softmax is over nothing.
            seen = mask | ~mask.any(dim=1, keepdim=True)
        if self.projections is None:
            return zero_masked(self.dropout(self._call(*[x] * (3 if self.takes_qkv else 1), mask=seen)), mask)
        out = self._call(*self.projections.split(x), mask=seen)
        return self.projections.merge(self.dropout(out), mask)

    def _call(self, *inputs: Tensor, mask: Tensor | None) -> Tensor:
        keywords = {}
        if self.mask_name is not None:
            if mask is None and self.needs_mask:
                rows, length = inputs[0].shape[0], inputs[0].shape[-2]
                mask = torch.ones(rows, length, dtype=torch.bool, device=inputs[0].device)
            keywords[self.mask_name] = None if mask is None else self._as_wanted(mask, inputs[0].dtype)
        out = self.inner(*inputs, **keywords)
        out = out[0] if isinstance(out, tuple | list) else out
        if not isinstance(out, Tensor) or out.shape != inputs[0].shape:
            what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ForeignError(f"{self._name}.forward gave {what} for an input of {tuple(inputs[0].shape)}")
        return out

    def _as_wanted(self, mask: Tensor, dtype: torch.dtype) -> Tensor:
        """Convert the mask, (batch, length), to what the module understands."""
        if self.mask_kind == "additive":  # (batch, 1, 1, length), added to the scores
            return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)[:, None, None]
        return ~mask if self.mask_kind == "padding" else mask

    def _layout(self, config: ForeignConfig) -> str:
        """Return the layout of q, k and v: the first that the module accepts in a trial.

        Raises:
            ForeignError: It accepts none, or what it gives has a wrong shape.
        """
        if config.layout != "auto":
            return config.layout
        dims, length = self.dims, min(PROBE_LENGTH, self.dims.max_length)
        shapes = {"heads": (2, dims.num_heads, length, dims.head_dim), "tokens": (2, length, dims.dim)}
        problems, wrong_result = list[str](), None
        was_training = self.inner.training
        self.inner.eval()
        # The trial draws nothing from the generators of the run.
        with torch.random.fork_rng(), torch.no_grad():
            for layout, shape in shapes.items():
                x = torch.zeros(shape)
                try:
                    self._call(x, x, x, mask=torch.ones(2, length, dtype=torch.bool, device=x.device))
                except ForeignError as error:
                    wrong_result = error
                except Exception as error:  # noqa: BLE001 - whatever a foreign module raises on a wrong shape
                    problems.append(f"with {layout} of {shape}: {_first_line(error)}")
                else:
                    self.inner.train(was_training)
                    return layout
        if wrong_result is not None:
            raise wrong_result
        raise ForeignError(f"{self._name}.forward takes neither layout of q, k, v; {'; '.join(problems)}")

    def _arguments(self, config: ForeignConfig, dims: LayerDims) -> tuple[dict[str, Any], bool]:
        """Return the arguments of the constructor, and whether dropout is one of them."""
        arguments: dict[str, Any] = {}
        has_dropout = False
        options = config.to_dict()
        for name, parameter in _parameters(type(self).factory).items():
            dimension = _dimension(name)
            if dimension is not None:
                has_dropout |= dimension == "dropout"
                arguments[name] = getattr(dims, dimension)
            elif name in FIXED:
                arguments[name] = FIXED[name]
            elif parameter.default is inspect.Parameter.empty and options.get(name) is None:
                raise ForeignError(
                    f"{self._name} needs {name!r}, which is no dimension of the layer: give --set variant.{name}=..., "
                    "or name a function of the dimensions that builds the module"
                )
            elif name in options and name not in NO_OPTIONS:
                arguments[name] = options[name]
        return arguments, has_dropout


def _usable(thing: Any) -> bool:
    return inspect.isfunction(thing) or (isinstance(thing, type) and issubclass(thing, nn.Module))


def import_place(place: str) -> Any:
    """Import a file or a module.

    Raises:
        ForeignError: It does not exist, or its code fails; the message has the line. Or a helper of the same name with
            other content is loaded, see `check_helpers`.
    """
    from attention_zoo.program import remembering_reads  # here, since it imports this module

    if not place.endswith(".py"):
        try:
            with remembering_reads(place):
                return importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ForeignError(f"{place}: {error}; a file is named with its ending .py") from error
    file = Path(place).resolve()
    if not file.is_file():
        known = [str(path.name) for path in file.parent.glob("*.py")]
        raise ForeignError(f"{place}: no such file; {suggest(file.name, known)}")
    name = f"{file.stem}_of_{abs(hash(file)):x}"
    if name not in sys.modules:
        check_helpers([file.parent])
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        if str(file.parent) not in sys.path:
            sys.path.append(str(file.parent))  # for what it imports from its folder; after all that is installed
            _added.add(str(file.parent))
        try:
            with remembering_reads(name):
                spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        _FOLDERS[name] = file.parent
    return sys.modules[name]


_FOLDERS: dict[str, Path] = {}
"""Name of the module of each file that was imported -> its folder."""
_added: set[str] = set()
"""Folders that were appended to `sys.path`."""


def search_path() -> tuple[str, ...]:
    """Return where Python looks for modules, without the folders of the files that were imported."""
    return tuple(entry for entry in sys.path if entry not in _added)


def check_helpers(folders: Iterable[Path] | None = None) -> None:
    """Check that no helper of one folder stands in for that of another: Python loads one module of a name.

    Args:
        folders: Those whose helpers are compared with what is loaded from others; None takes all that files were
            imported from, such as for a helper that is imported in a function.

    Raises:
        ForeignError: One does.
    """
    roots = {str(folder) for folder in _FOLDERS.values()}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file is None or name in _FOLDERS:
            continue
        inside = name.replace(".", os.sep)
        root = str(file).rpartition(".")[0].removesuffix(f"{os.sep}__init__").removesuffix(f"{os.sep}{inside}")
        if root not in roots:
            continue  # not what `import` finds from such a folder
        for folder in set(_FOLDERS.values()) if folders is None else folders:
            own = folder / Path(file).relative_to(root)
            if str(folder) != root and own.is_file() and own.read_bytes() != Path(file).read_bytes():
                raise ForeignError(
                    f"{own}: a helper of this name is loaded from {file}, and Python loads one of a name; "
                    "rename one of them, or run the two in commands of their own"
                )


def _parameters(factory: Any) -> Mapping[str, inspect.Parameter]:
    """Return the named arguments of a class or function; `*args` and `**kwargs` get nothing."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    try:
        found = inspect.signature(factory, eval_str=True).parameters
    except Exception:  # noqa: BLE001 - whatever an annotation that is a text raises: it is not read then
        found = inspect.signature(factory).parameters
    return {name: value for name, value in found.items() if value.kind in kinds}


def _dimension(name: str) -> str | None:
    return next((dimension for dimension, names in DIMENSIONS.items() if name.lower() in names), None)


def _config_class(
    name: str, factory: Any, base: type[VariantConfig], decided: Callable[[str], bool]
) -> type[VariantConfig]:
    """Make the options of a module from the arguments of its constructor that the harness does not decide."""
    added: list[tuple[str, Any, Any]] = []
    for key, parameter in _parameters(factory).items():
        if decided(key) or key in (*FIXED, *NO_OPTIONS):
            continue
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        if default is None or type(default) in PLAIN:
            text = f"argument of {name}" + (", without a default" if required else "")
            kind = _plain_annotation(parameter.annotation, default)
            added.append((key, kind, field(default=default, metadata={"help": text})))
    return make_dataclass(f"{name}Config", added, bases=(base,), frozen=True, kw_only=True, slots=True)


def _plain_annotation(hint: Any, default: Any) -> Any:
    """Return the annotation of an argument, if it is of plain types that the default fits, else the type of that.

    So 1 and 1.0 are one value where a float is wanted. Of an argument without either, nothing is known.
    """
    given = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = [kind for kind in given if kind is not NoneType]
    fits = default is None or type(default) in kinds or (type(default) is int and float in kinds)
    if not kinds or not all(kind in PLAIN for kind in kinds) or not fits:
        return Any if default is None else type(default)
    return functools.reduce(operator.or_, [*kinds, None] if default is None or NoneType in given else kinds)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
