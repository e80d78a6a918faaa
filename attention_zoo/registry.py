# SPDX-License-Identifier: Apache-2.0
"""Registry of variants: built-in ones, one per file, and plug-ins that are found by entry point."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
import typing
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from attention_zoo import variants
from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig, suggest
from attention_zoo.faults import fault_line
from attention_zoo.foreign import ForeignError, load
from attention_zoo.program import ProgramError, program_text, remember_imports, remembering_reads

ENTRY_POINT_GROUP = "attention_zoo.variants"
OWN_DISTRIBUTION = "lra-harness"
"""The distribution of this project, which announces ContextPool by entry point, as a third party would."""
Family = Literal[
    "attention", "sparse", "low rank", "kernel", "state space", "convolution", "gated recurrence", "other", "control"
]
"""Groups of variants, in the order of tables: by where the weights between tokens come from.

attention: all pairs of tokens. sparse: some pairs. low rank: fewer keys, landmarks or blocks stand for all. kernel:
products of features. state space: a linear recurrence with fixed weights. convolution: fixed weights by position, or a
Fourier transform. gated recurrence: a recurrence with weights from the input. control: what shows where a gain comes
from.
"""
M = TypeVar("M", bound=type[SequenceMixer])


class UnknownVariantError(LookupError):
    """There is no variant of this name."""


class RegistrationError(TypeError):
    """A class cannot be registered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantSpec:
    """A registered variant."""

    name: str
    title: str = ""
    """Name that tables and figures show, such as `Full attention`; if empty, derived from `name`."""
    mixer: type[SequenceMixer]
    config: type[VariantConfig]
    traits: Traits
    paper: str
    """Source in one line: authors, year, identifier."""
    program: Any = None
    """The class or function that makes the module, if the mixer wraps one."""
    registered_in: str = ""
    """Module with the call that registered it, which may change what it computes."""
    whole_model: bool = False
    """Whether `program` builds a whole model, so that there is no mixer; see `attention_zoo.foreign`."""
    origin: str = ""
    """What identifies the program of a third party, if that is not its source."""
    family: Family = "other"
    """Which group it belongs to in tables that are sorted by family."""

    def __post_init__(self) -> None:
        """Derive the title if none is given."""
        if not self.title:
            object.__setattr__(self, "title", self.name.replace("_", " ").capitalize())

    def build(self, config: VariantConfig, dims: LayerDims) -> SequenceMixer:
        """Build one mixer.

        Raises:
            ValueError: `dims.causal` is set and the variant has no causal form.
        """
        if dims.causal and not self.traits.causal:
            raise ValueError(f"variant {self.name!r} has no causal form")
        return self.mixer(config, dims)


_registered: dict[str, VariantSpec] = {}
_referenced: dict[str, VariantSpec] = {}
"""Variants that are named by file or module and class."""


def register_variant(
    name: str, *, traits: Traits, paper: str, title: str = "", family: Family = "other"
) -> Callable[[M], M]:
    """Return a decorator that registers a mixer class; its config class is read from the constructor's annotation.

    Args:
        name: Name on command lines and in records, in lower snake case.
        traits: Properties that the variant claims; the contract checks test them.
        paper: Source in one line: authors, year, identifier.
        title: Name that tables and figures show. If empty, it is derived from `name`: `my_mixer` becomes `My mixer`.
        family: Which group it belongs to in tables that are sorted by family.

    Raises:
        RegistrationError: The name belongs to another variant, even one that is not imported yet; or it is not lower
            snake case; or a signature differs from the contract. Raised when the decorator is applied.
    """

    def register(mixer: M) -> M:
        if name != normalise(name) or not name.isidentifier():
            raise RegistrationError(f"{name!r}: the name of a variant must be lower snake case")
        home = _home(name)
        if home and mixer.__module__ != home and not mixer.__module__.startswith(f"{home}."):
            raise RegistrationError(f"{name!r} is a variant of {home}; refused: {_where(mixer)}")
        present = _registered.get(name)
        if present is not None and present.mixer is not mixer:
            raise RegistrationError(f"{name!r} is registered by {_where(present.mixer)}; refused: {_where(mixer)}")
        _registered[name] = VariantSpec(
            name=name,
            title=title,
            mixer=mixer,
            config=_config_of(mixer),
            traits=traits,
            paper=paper,
            registered_in=sys._getframe(1).f_globals.get("__name__", ""),
            family=family,
        )
        return mixer

    return register


def normalise(name: str) -> str:
    """Return the registered form of a name: lower case, with `_` for `-`. A reference to a file or module stays."""
    return name.strip() if ":" in name else name.strip().lower().replace("-", "_")


def available() -> list[str]:
    """Return the names of all variants, sorted, without importing any of them."""
    return sorted({*_builtin_names(), *_plugins(), *_registered})


def get_variant(name: str) -> VariantSpec:
    """Return a variant; only the file or plug-in that registers it is imported.

    Args:
        name: A registered name, or a reference `file.py:Name`, `package.module:Name` or `hf:CONFIG.json`; see
            `attention_zoo.foreign`.

    Raises:
        UnknownVariantError: There is no such variant; the message has the closest names.
        RegistrationError: The file or plug-in that announces this name cannot be imported or does not register it, or
            the reference leads to nothing. The message is one line, with the line of the file that fails.
    """
    key = normalise(name)
    if ":" in key:
        return _refer(key)
    if key not in _registered:
        if key in _builtin_names():
            _import(key, lambda: importlib.import_module(f"{variants.__name__}.{key}"))
        elif key in _plugins():
            with remembering_reads(_plugins()[key].module):
                _import(key, _plugins()[key].load)
        else:
            raise UnknownVariantError(f"unknown variant {name!r}; {suggest(key, available(), 3)}")
    if key not in _registered:
        raise RegistrationError(
            f"nothing registers the name {key!r} where it was announced; decorate the class with "
            f"@register_variant({key!r}, traits=Traits(...), paper=...)"
        )
    return _registered[key]


def create(
    name: str,
    options: Mapping[str, Any] | None = None,
    *,
    dim: int,
    num_heads: int,
    max_length: int,
    head_dim: int = 0,
    causal: bool = False,
    dropout: float = 0.0,
    grid: tuple[int, int] | None = None,
) -> SequenceMixer:
    """Build one mixer for use in a model of your own: `create("nystrom", dim=64, num_heads=4, max_length=4096)`.

    Args:
        name: A registered name, or a reference; see `get_variant`.
        options: Options of the variant; those that are not named keep their defaults.
        dim: Width of the stream, in features.
        num_heads: Heads.
        max_length: Longest sequence that it has to accept.
        head_dim: Width of one head; 0 takes `dim // num_heads`.
        causal: Whether a token sees only itself and what comes before it.
        dropout: Dropout of the attention weights.
        grid: (rows, columns) when the tokens are the pixels of an image in row-major order.

    Returns:
        A module that takes x, (batch, length, dim), and a mask, (batch, length), True = real token.

    Raises:
        UnknownVariantError: There is no such variant.
        OptionError: An option is unknown or has a wrong value.
        ValueError: The dimensions do not fit together, or the variant has no causal form.
    """
    spec = get_variant(name)
    dims = LayerDims(
        dim=dim,
        num_heads=num_heads,
        max_length=max_length,
        head_dim=head_dim,
        causal=causal,
        dropout=dropout,
        grid=grid,
    )
    return spec.build(spec.config.from_dict(options or {}), dims)


def is_known(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Say whether `get_variant` would import no file of a reference: a record is no reason to run one.

    Args:
        name: Of the variant.
        options: Its options, which may name a variant that it is built around.
    """
    return all(":" not in text or normalise(text) in _referenced for text in _texts([name, options]))


def _refer(reference: str) -> VariantSpec:
    if reference not in _referenced:
        try:
            found = load(reference)
        except ForeignError as error:
            raise RegistrationError(f"{reference}: {error}") from error
        except (Exception, SystemExit) as error:
            raise RegistrationError(f"{reference} cannot be imported: {fault_line(error)}") from error
        remember_imports()
        for spec in _registered.values():
            if spec.mixer is found.mixer:  # the file registers it, with traits
                if spec.name in {*_builtin_names(), *_plugins()}:
                    raise RegistrationError(f"{reference} is the variant {spec.name}; one run has one name: take that")
                return spec
        _referenced[reference] = VariantSpec(
            name=reference,
            title=found.title,
            mixer=found.mixer,
            config=found.config or _config_of(found.mixer),
            traits=Traits(memory="not stated", complexity="not stated", permutation_equivariant=None),
            paper=reference,
            program=found.program,
            whole_model=found.whole_model,
            origin=found.origin,
        )
    return _referenced[reference]


def _import(name: str, importer: Callable[[], object]) -> None:
    """Import what registers a variant.

    Raises:
        RegistrationError: It raises an error, whatever it is.
    """
    try:
        importer()
    except (Exception, SystemExit) as error:
        raise RegistrationError(f"variant {name!r} cannot be imported: {fault_line(error)}") from error
    if not is_own(name):
        remember_imports()


def is_own(name: str, options: Mapping[str, Any] = MappingProxyType({})) -> bool:
    """Say whether a variant is part of this project, so that the numerics version covers its program.

    Args:
        name: Of the variant.
        options: Its options, which may name a variant that it is built around. That has to be ours as well.
    """
    key = normalise(name)
    own = key in _builtin_names() or (key in _plugins() and _is_ours(_plugins()[key]))
    others = {name for name, point in _plugins().items() if not _is_ours(point)}
    return own and not any(":" in text or normalise(text) in others for text in _texts(options))


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a plain value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts(list(value.values()))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _is_ours(point: EntryPoint) -> bool:
    return point.dist is not None and _distribution_name(point.dist) == OWN_DISTRIBUTION


@functools.cache  # each look parses the metadata of the distribution
def _distribution_name(distribution: Distribution) -> str:
    return distribution.name


def plugin_origin(name: str) -> str:
    """Return the distribution and version that announce a variant of a third party; empty for our own variants."""
    point = _plugins().get(normalise(name))
    if point is None or point.dist is None or _is_ours(point):
        return ""
    return f"{point.dist.name} {point.dist.version}"


def program_origin(name: str, config: VariantConfig, sizes: Mapping[str, Any] | None = None) -> str:
    """Name the program of a third party that a variant with these options runs; empty for our own variants.

    Our own variants are identified by the numerics version of the harness, which a release does not change. A variant
    of a third party is identified by its distribution and version, if it has any, and by the digest of its source: see
    `attention_zoo.source_digest`. A variant that is built around another one has the program of that one too.

    Args:
        name: Of the variant.
        config: Its options.
        sizes: Those of the run, see `attention_zoo.program.program_text`.

    Raises:
        UnknownVariantError: There is no such variant.
        RegistrationError: The source of the variant cannot be found.
    """
    spec = get_variant(name)
    origins = [program_origin(base, inner, sizes) for base, inner in config.inner_variants().items()]
    if spec.origin:
        origins.insert(0, spec.origin)
    elif not is_own(name):
        origins.insert(0, _third_party(normalise(name), spec, config, sizes))
    return "; ".join(filter(None, origins))


def _third_party(name: str, spec: VariantSpec, config: VariantConfig, sizes: Mapping[str, Any] | None) -> str:
    point, maker = _plugins().get(spec.name), spec.program or spec.mixer
    place, _, thing = name.rpartition(":")
    if place:
        label, modules, tried = f"{PurePath(place).name}:{thing}", [place], name
    elif point is not None:
        label, modules, tried = plugin_origin(spec.name), [point.module, maker.__module__], spec.name
    else:
        label, modules, tried = maker.__module__, [spec.registered_in, maker.__module__], spec.name
    try:
        return program_text(label, modules, tried, config.to_dict(), sizes=sizes)
    except ProgramError as error:
        raise RegistrationError(
            f"{name}: its source cannot be found, so its runs could not be told from those of a changed program; "
            f"put it into a file that can be imported ({error})"
        ) from error


def _home(name: str) -> str:
    """Return the module, or for a plug-in the package, to which a name belongs; empty if the name is free."""
    if name in _builtin_names():
        return f"{variants.__name__}.{name}"
    point = _plugins().get(name)
    return "" if point is None else point.module.partition(".")[0]


@functools.cache
def _builtin_names() -> frozenset[str]:
    return frozenset(module.name for module in pkgutil.iter_modules(variants.__path__))


def _plugins() -> dict[str, EntryPoint]:
    """Return the entry points by name; one that has the name of a built-in variant is left out with a warning."""
    return _plugins_on(tuple(sys.path))


@functools.cache
def _plugins_on(_path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """Read the entry points of all distributions on a path, which takes 50 ms where there are 200 of them."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name in _builtin_names():
            warnings.warn(f"plug-in {point.value!r} may not replace the built-in {point.name!r}; ignored", stacklevel=3)
        else:
            found[point.name] = point
    return found


def _config_of(mixer: type[SequenceMixer]) -> type[VariantConfig]:
    constructor = list(inspect.signature(mixer.__init__).parameters)
    call = list(inspect.signature(mixer.forward).parameters)
    if constructor != ["self", "config", "dims"] or call != ["self", "x", "mask"]:
        raise RegistrationError(
            f"{_where(mixer)}: expected __init__(self, config, dims) and forward(self, x, mask=None), "
            f"got {constructor} and {call}"
        )
    config = typing.get_type_hints(mixer.__init__).get("config")
    if not (isinstance(config, type) and issubclass(config, VariantConfig)):
        raise RegistrationError(f"{_where(mixer)}: annotate `config` with its VariantConfig subclass")
    return config


def _where(mixer: type[SequenceMixer]) -> str:
    return f"{mixer.__module__}.{mixer.__qualname__}"
