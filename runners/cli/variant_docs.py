# SPDX-License-Identifier: Apache-2.0
"""Descriptions of the variants, for `lra-zoo`, docs/variants.md and docs/appendix/variants-details.md."""

from __future__ import annotations

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

This page lists the attention variants and the idea of each. [Details of the variants](appendix/variants-details.md) has
their options, their departures from the papers, and their other forms. `lra-zoo docs` writes both pages.

`lra-zoo describe NAME` explains a variant in the terminal, `--set variant.NAME=VALUE` sets an option, and
`lra-zoo check NAME` runs the contract checks.

Where positions come from is a setting of the model: `--set model.positions=rotary` (RoPE, arXiv:2104.09864) rotates
queries and keys, and `alibi` (arXiv:2108.12409) or `t5` (arXiv:1910.10683) adds a bias of the distance to each score.
`full`, `differential`, `local`, `longformer`, `bigbird`, `sparse`, `adaptive_span` and `contextpool` (for its base)
take a bias. Others have no score for each pair, choose what to attend to by the content (`block_topk`, `mra`,
`reformer`), or have position terms of their own (`gau`, `mega`, `synthesizer`, `tnn`). On short ListOps the form moves
full attention from 32 % (none) to 49 % (rotary); see the [lab
book](appendix/lab-book.md#2026-11-26-position-forms-on-listops-one-seed-announced-before-it-ran).

- **time** is what the paper claims, with n the length.
- **parameters** are those of one layer of the official ListOps model, relative to `full`.
- **state** counts the numbers that such a layer keeps of 2,000 tokens to go on to the next one. A `-` marks a variant
  that has no such form.
"""

_DETAILS = """\
# Details of the variants

This page continues the [list of variants](../variants.md) with their departures from the papers, their other forms, and
their options with the defaults. *Exact* gives the options with which a variant equals full attention at length 2048.
`lra-zoo docs` writes this page from the docstrings.

The option `rotary` rotates queries and keys by their position (RoPE), and `bias` adds a number to each score that
depends on the distance (ALiBi, or T5's buckets). `full`, `differential`, `local`, `longformer`, `bigbird`, `sparse`,
`adaptive_span` and `contextpool` (for its base) take a bias. The others have no scores of single pairs of tokens,
choose what to attend to by the content, or have position terms of their own.

*State* is what a layer keeps of a sequence to go on to the next token: keys and values that a later token may meet, or
the states of a recurrence. The method `state_size` of a mixer gives its size at any length.
"""

SHORT = 40
"""The words after which the first page goes on with no further paragraph of a docstring."""


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
    return _parameters(spec) / _parameters(get_variant("full"))


def _parameters(spec: VariantSpec) -> int:
    return _figures(spec)[0]


def _state(spec: VariantSpec) -> str:
    """Write the numbers that one layer keeps of the longest sequence."""
    size = _figures(spec)[1]
    return "-" if size is None else f"{size:,}"


_known: dict[tuple[type, type], tuple[int, int | None]] = {}
"""Figures of the layers that were built in this process."""


def _figures(spec: VariantSpec) -> tuple[int, int | None]:
    """Return the parameters of one layer, and the size of its state."""
    key = (spec.mixer, spec.config)
    if key not in _known:
        with torch.random.fork_rng(devices=[]):
            layer = spec.build(spec.config(), OFFICIAL_LISTOPS)
        parameters = sum(parameter.numel() for parameter in layer.parameters() if parameter.requires_grad)
        _known[key] = parameters, layer.state_size(OFFICIAL_LISTOPS.max_length)
    return _known[key]


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
    parts = [_INTRODUCTION, _markdown_table(ON_THE_PAGE, rows), _exceptions(specs)]
    for spec in specs:
        link = f"[Details](appendix/variants-details.md#{spec.name})"
        parts += [f"## {spec.name}", *(_same(spec, specs) or split_docstring(_docstring(spec))[0]), link]
    return _joined(parts)


def details(specs: Sequence[VariantSpec]) -> str:
    """Return the text of docs/appendix/variants-details.md."""
    parts = [_DETAILS]
    for spec in specs:
        text = _same(spec, specs) or split_docstring(_docstring(spec))[1]
        parts += [f"## {spec.name}", *text, " ".join(_remarks(spec))]
    return _joined(parts)


def _same(spec: VariantSpec, specs: Sequence[VariantSpec]) -> list[str]:
    """Refer to an earlier variant with the same docstring, if there is one."""
    first = next(each for each in specs if _docstring(each) == _docstring(spec))
    return [] if first.name == spec.name else [f"See [`{first.name}`](#{first.name})."]


def split_docstring(text: str) -> tuple[list[str], list[str]]:
    """Split the paragraphs of a docstring into those for the first page, the idea, and those for the details.

    The idea ends before the departures, or with the paragraph that reaches `SHORT` words. A formula and the
    explanation of its letters stay with the sentence before it. A list comes with the sentence before it, and belongs
    to the idea only if nothing but the title stands before.
    """
    paragraphs = text.split("\n\n")
    end = 1
    while end < len(paragraphs):
        before, here, after = paragraphs[end - 1], paragraphs[end], [*paragraphs, ""][end + 1]
        words = sum(len(each.split()) for each in paragraphs[:end])
        letters = here.startswith(("with ", "where ", "which "))
        goes_on = here.startswith("    ") or (before.startswith("    ") and letters)
        if here.startswith(("Departures", "- ")) or (words >= SHORT and not goes_on):
            break
        if after.startswith("- ") and not goes_on:
            if end == 1:
                end += 2
            break
        end += 1
    return paragraphs[:end], paragraphs[end:]


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _exceptions(specs: Sequence[VariantSpec]) -> str:
    """Return sentences on what few variants have: other memory, results that depend on padding, waived checks."""
    memory = [f"`{spec.name}` ({spec.traits.memory})" for spec in specs if spec.traits.memory != "linear"]
    padding = [f"`{spec.name}`" for spec in specs if not spec.traits.padding_length_invariant]
    waived = [
        f"`{spec.name}` ({name}, because {reason})" for spec in specs for name, reason in spec.traits.waivers.items()
    ]
    said = ["- Memory of a training step grows linearly with the length."]
    if memory:
        said[0] = f"{said[0][:-1]}, except for {', '.join(memory)}."
    said += [f"- The result depends on the amount of padding for {', '.join(padding)}."] if padding else []
    said += [f"- Waived checks: {', '.join(waived)}."] if waived else []
    return "\n".join(said)


def _remarks(spec: VariantSpec) -> list[str]:
    """Return sentences on the options of a variant."""
    claims = dict(_claims(spec))
    options = ", ".join(f"`{name}={default!r}`" for name, _, default, _ in spec.config.describe())
    said = [f"Options: {options}." if options else "No options."]
    if spec.traits.exact_limit is not None and claims[EXACT] != "always":
        said.append(f"Exact: `{claims[EXACT]}`.")
    if spec.mixer.state_size is not SequenceMixer.state_size:
        said.append(f"State: {' '.join((inspect.getdoc(spec.mixer.state_size) or '').split())}")
    return said


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
