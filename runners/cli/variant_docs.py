# SPDX-License-Identifier: Apache-2.0
"""Descriptions of the variants, for `lra-zoo` and for docs/variants.md."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from importlib.metadata import entry_points

import torch
from tabulate import tabulate

from attention_zoo import LayerDims, RegistrationError, SequenceMixer, VariantSpec, available, get_variant
from attention_zoo.checks.numerics import backends
from attention_zoo.faults import fault_line
from attention_zoo.registry import ENTRY_POINT_GROUP, OWN_DISTRIBUTION, plugin_origin

OFFICIAL_LISTOPS = LayerDims(dim=512, num_heads=8, max_length=2000, qkv_bias=False)
"""One layer of the official ListOps configuration, for which parameters and state are counted."""

COLUMNS = (
    "variant", "display name", "family", "paper", "time", "memory", "parameters", "state", "causal", "backends",
    "options",
)  # fmt: skip
LISTED = ("variant", "display name", "family", "time")
"""The columns of `lra-zoo list`, which fit 100 characters; `lra-zoo describe` has them all."""

EXACT = "equals full attention at length 2048 with"
ON_THE_PAGE = ("variant", "display name", "family", "time", "parameters", "state", "causal")
"""The columns of the table of docs/variants.md."""

_INTRODUCTION = """\
# Variants

This page lists the attention variants: what they compute, and how they depart from their papers.

`lra-zoo describe NAME` explains every option, `--set variant.NAME=VALUE` sets one, and `lra-zoo check NAME` runs the
contract checks. `lra-zoo docs` generates this page. The option `rotary` rotates queries and keys by their position
(RoPE, arXiv:2104.09864), and `bias` adds a number to each score that depends on the distance (ALiBi, arXiv:2108.12409,
or T5's buckets, arXiv:1910.10683). `--set model.positions=rotary`, `alibi` or `t5` sets them, in place of positions
that are added to the embedding. A bias needs a score for each pair of tokens: `full`, `differential`, `local`,
`longformer`, `bigbird`, `sparse`, `adaptive_span` and `contextpool` (for its base) take one. Feature maps, landmarks
and mixtures of tokens have no such scores; `block_topk`, `mra` and `reformer` choose what to attend to by the content,
which a bias would have to change, too; `gau`, `mega`, `synthesizer` and `tnn` have position terms of their own.

- **time** is the claim of the paper, with n the length. Memory of a training step grows linearly with the length unless
  a section says otherwise. A check measures it.
- **parameters** are those of one layer of the official ListOps model relative to `full`.
- **state** counts the numbers that this layer keeps of 2,000 tokens to go on to the next one without reading them
  again: keys and values that a later token may meet, or the states of a recurrence in all its directions. A `-` marks a
  variant without such a form, since each new token changes what all others read (landmarks, Fourier transforms). The
  method `state_size` of a mixer gives the number at other lengths and sizes.
"""


def catalogue(*, own_only: bool = False) -> tuple[list[VariantSpec], list[str]]:
    """Import all variants, or only those of this project; return those that can be used, and the problems of others."""
    specs, problems = [], []
    for name in available():
        origin = plugin_origin(name)
        if own_only and origin:
            continue
        try:
            spec = get_variant(name)
            row(spec)
        except RegistrationError as error:
            problems.append(f"{name}{f' ({origin})' if origin else ''} cannot be used: {error}")
        except Exception as error:  # noqa: BLE001 - whatever a broken variant raises where it is built
            problems.append(f"{name}{f' ({origin})' if origin else ''} cannot be built: {fault_line(error)}")
        else:
            specs.append(spec)
    return specs, problems


def relative_parameters(spec: VariantSpec) -> float:
    """Count the parameters of one layer at the official ListOps size, relative to `full`."""
    return _parameters(spec) / _full_parameters()


@functools.cache
def _full_parameters() -> int:
    return _parameters(get_variant("full"))


def _layer(spec: VariantSpec) -> SequenceMixer:
    with torch.random.fork_rng(devices=[]):
        return spec.build(spec.config(), OFFICIAL_LISTOPS)


def _parameters(spec: VariantSpec) -> int:
    return sum(parameter.numel() for parameter in _layer(spec).parameters() if parameter.requires_grad)


def _state(spec: VariantSpec) -> str:
    """Write the numbers that one layer keeps of the longest sequence."""
    size = _layer(spec).state_size(OFFICIAL_LISTOPS.max_length)
    return "-" if size is None else f"{size:,}"


def row(spec: VariantSpec) -> tuple[str, ...]:
    """Return the table row of a variant, with the columns of `COLUMNS`."""
    return (
        spec.name,
        spec.title,
        spec.family,
        spec.paper,
        spec.traits.complexity,
        spec.traits.memory,
        f"{relative_parameters(spec):.2f}",
        _state(spec),
        "yes" if spec.traits.causal else "no",
        ", ".join(backends(spec.config)) or "torch",
        ", ".join(name for name, *_ in spec.config.describe()) or "none",
    )


def table(specs: Sequence[VariantSpec]) -> str:
    """Format the table of variants for a terminal."""
    rows = [dict(zip(COLUMNS, row(spec), strict=True)) for spec in specs]
    return tabulate([[cells[name] for name in LISTED] for cells in rows], headers=LISTED, disable_numparse=True)


def describe(spec: VariantSpec) -> str:
    """Describe one variant for a terminal: its docstring, claims and options."""
    options = [(name, kind, repr(default), text) for name, kind, default, text in spec.config.describe()]
    claims = _claims(spec)
    parts = [
        f"{spec.name} ({spec.title}): {spec.paper}",
        _docstring(spec),
        tabulate(claims, tablefmt="plain", disable_numparse=True),
    ]
    if options:
        parts.append(tabulate(options, headers=("option", "type", "default", "meaning"), disable_numparse=True))
    else:
        parts.append("No options.")
    return "\n\n".join(parts)


def page(specs: Sequence[VariantSpec]) -> str:
    """Return the text of docs/variants.md."""
    rows = []
    for spec in specs:
        cells = dict(zip(COLUMNS, row(spec), strict=True)) | {"variant": f"[`{spec.name}`](#{spec.name})"}
        rows.append([cells[name] for name in ON_THE_PAGE])
    parts = [_INTRODUCTION, _markdown_table(ON_THE_PAGE, rows)]
    for spec in specs:
        parts.append(f"## {spec.name}\n\n{_docstring(spec)}")
        parts.append(" ".join(_remarks(spec)))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _remarks(spec: VariantSpec) -> list[str]:
    """Return sentences on the options of a variant, and on what not every variant has."""
    claims = dict(_claims(spec))
    options = ", ".join(f"`{name}={default!r}`" for name, _, default, _ in spec.config.describe())
    said = [f"Options: {options}." if options else "No options."]
    if spec.traits.exact_limit is not None and claims[EXACT] != "always":
        said.append(f"Equals full attention at length 2048 with `{claims[EXACT]}`.")
    if spec.traits.memory != "linear":
        said.append(f"Memory: {spec.traits.memory}.")
    if not spec.traits.padding_length_invariant:
        said.append("The result depends on the amount of padding.")
    if spec.mixer.state_size is not SequenceMixer.state_size:
        said.append(f"State: {' '.join((inspect.getdoc(spec.mixer.state_size) or '').split())}")
    return said + [f"Waived check: {name}, because {reason}." for name, reason in spec.traits.waivers.items()]


def _docstring(spec: VariantSpec) -> str:
    """Return the docstring of the module, which lists the departures from the paper, or else that of the class."""
    module = inspect.getmodule(spec.mixer)
    return (module and inspect.getdoc(module)) or inspect.getdoc(spec.mixer) or ""


def _claims(spec: VariantSpec) -> list[tuple[str, str]]:
    """List the claims of a variant, each as a name and a value."""
    traits = spec.traits
    exact = traits.exact_limit
    limit = "" if exact is None else ", ".join(f"{key}={value!r}" for key, value in exact(2048).items()) or "always"
    order = {None: "not stated", True: "no", False: "yes"}[traits.permutation_equivariant]
    claims = [
        ("origin", _origin(spec.name)),
        ("time", traits.complexity),
        ("memory", traits.memory),
        ("parameters against full", f"{relative_parameters(spec):.3f}"),
        ("state at length 2000", _state(spec)),
        ("causal form", "yes" if traits.causal else "no"),
        ("mixes tokens", "yes" if traits.mixes_tokens else "no"),
        ("depends on the order of tokens", order),
        ("depends on the amount of padding", "no" if traits.padding_length_invariant else "yes"),
        (EXACT, limit or "nothing"),
    ]
    return claims + [(f"waived check: {name}", reason) for name, reason in traits.waivers.items()]


def _origin(name: str) -> str:
    """Name where a variant comes from; our own version is left out because every release would change the page."""
    distributions = (point.dist for point in entry_points(group=ENTRY_POINT_GROUP, name=name))
    if any(dist is not None and dist.name == OWN_DISTRIBUTION for dist in distributions):
        return "this project, by entry point"
    return plugin_origin(name) or "built in"


def _markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    escaped = [[value.replace("|", "\\|") for value in row] for row in rows]
    return tabulate(escaped, headers=headers, tablefmt="pipe", disable_numparse=True)
