"""Names of variants and what stands behind them: built-in files, and plug-ins found by entry point."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import typing
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from attention_zoo import variants
from attention_zoo.base import LayerDims, SequenceMixer, Traits, VariantConfig

ENTRY_POINT_GROUP = "attention_zoo.variants"
OWN_DISTRIBUTION = "lra-harness"
"""The distribution of this project; it announces ContextPool by entry point, as a third party would."""

M = TypeVar("M", bound=type[SequenceMixer])


class UnknownVariantError(LookupError):
    """No variant has this name."""


class RegistrationError(TypeError):
    """A class cannot be registered as it stands."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantSpec:
    """A registered variant."""

    name: str
    title: str
    """How tables and figures call it."""
    mixer: type[SequenceMixer]
    config: type[VariantConfig]
    traits: Traits
    paper: str
    """The source in one line: authors, year, identifier."""

    def build(self, config: VariantConfig, dims: LayerDims) -> SequenceMixer:
        """Build one mixer.

        Raises:
            ValueError: A causal mixer is asked of a variant that does not claim causality.
        """
        if dims.causal and not self.traits.causal:
            raise ValueError(f"variant {self.name!r} has no causal form")
        return self.mixer(config, dims)


_registered: dict[str, VariantSpec] = {}


def register_variant(name: str, *, traits: Traits, paper: str, title: str = "") -> Callable[[M], M]:
    """Register a mixer class under a name; the class of its options is read off the constructor.

    Raises:
        RegistrationError: The name is taken, be it by a variant not imported yet, or is not lower snake case, or a
            signature departs from the contract.
    """

    def register(mixer: M) -> M:
        if name != normalise(name) or not name.isidentifier():
            raise RegistrationError(f"{name!r}: a variant's name is lower snake case")
        home = _home(name)
        if home and mixer.__module__ != home and not mixer.__module__.startswith(f"{home}."):
            raise RegistrationError(f"{name!r} is a variant of {home}; refused: {_where(mixer)}")
        present = _registered.get(name)
        if present is not None and present.mixer is not mixer:
            raise RegistrationError(f"{name!r} is registered by {_where(present.mixer)}; refused: {_where(mixer)}")
        shown = title or name.replace("_", " ").capitalize()
        spec = VariantSpec(name=name, title=shown, mixer=mixer, config=_config_of(mixer), traits=traits, paper=paper)
        _registered[name] = spec
        return mixer

    return register


def normalise(name: str) -> str:
    """Fold case and `-` so that `Adaptive-Span` on a command line finds `adaptive_span`."""
    return name.strip().lower().replace("-", "_")


def available() -> list[str]:
    """List the names of all variants, sorted, without importing any of them."""
    return sorted({*_builtin_names(), *_plugins(), *_registered})


def get_variant(name: str) -> VariantSpec:
    """Find a variant, importing the one file or plug-in that registers it.

    Raises:
        UnknownVariantError: With the closest names.
        RegistrationError: The file or plug-in of this name registers no variant of this name.
    """
    key = normalise(name)
    if key not in _registered:
        if key in _builtin_names():
            importlib.import_module(f"{variants.__name__}.{key}")
        elif key in _plugins():
            _plugins()[key].load()
        else:
            close = difflib.get_close_matches(key, available(), n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"known: {', '.join(available())}"
            raise UnknownVariantError(f"unknown variant {name!r}; {hint}")
    if key not in _registered:
        raise RegistrationError(f"nothing registers the name {key!r} where it was announced")
    return _registered[key]


def plugin_origin(name: str) -> str:
    """Return the distribution, with its version, that announces a variant of a third party; empty for our own.

    Our own variants go by the numerics version of the harness instead, so that a release leaves their identity alone.
    """
    point = _plugins().get(normalise(name))
    if point is None or point.dist is None or point.dist.name == OWN_DISTRIBUTION:
        return ""
    return f"{point.dist.name} {point.dist.version}"


def _home(name: str) -> str:
    """Return the module, or for a plug-in the package, to which a name belongs; empty for a free one."""
    if name in _builtin_names():
        return f"{variants.__name__}.{name}"
    point = _plugins().get(name)
    return "" if point is None else point.module.partition(".")[0]


def _builtin_names() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(variants.__path__)}


def _plugins() -> dict[str, EntryPoint]:
    """Entry points by name. A built-in name always wins, and the attempt is reported."""
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
