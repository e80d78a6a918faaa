# SPDX-License-Identifier: Apache-2.0
"""Shared by the checks: small mixers with perturbed parameters, inputs, masks, and comparisons."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import field, fields, make_dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attention_zoo.base import LayerDims, SequenceMixer, VariantConfig
from attention_zoo.registry import VariantSpec

SHORT, LONG = 11, 150
"""Lengths below and above the usual sizes of windows and blocks; neither is a multiple of one."""
FAR = 1100
"""A length above the usual sizes of wide windows."""
DIM, HEADS = 16, 2
EXACT = 1e-7
"""Largest difference between two float64 computations of one result, relative to the largest entry."""
NOISE = 0.1
SEED = 20220717


def make_dims(max_length: int = LONG, *, causal: bool = False, num_prefix: int = 0, dropout: float = 0.0) -> LayerDims:
    """Return small dimensions."""
    return LayerDims(
        dim=DIM, num_heads=HEADS, max_length=max_length, causal=causal, num_prefix=num_prefix, dropout=dropout
    )


def forms(spec: VariantSpec) -> dict[str, LayerDims]:
    """Return the dimensions of the forms of a variant, by name: plain, with a prefix token, causal if claimed."""
    found = {"plain form": make_dims(), "form with a prefix token": make_dims(num_prefix=1)}
    return found | ({"causal form": make_dims(causal=True)} if spec.traits.causal else {})


def with_options(spec: VariantSpec, options: Mapping[str, Any]) -> VariantSpec:
    """Return the variant with other defaults, such as a small window, so that the checks run with them.

    Raises:
        OptionError: See `VariantConfig.from_dict`.
    """
    chosen = spec.config.from_dict(options)
    hints = typing.get_type_hints(spec.config)
    changed = [
        (f.name, hints[f.name], field(default_factory=partial(getattr, chosen, f.name), metadata=f.metadata))
        for f in fields(spec.config)
    ]
    config = make_dataclass(spec.config.__name__, changed, bases=(spec.config,), frozen=True, kw_only=True, slots=True)
    return replace(spec, config=config)


def build(
    spec: VariantSpec,
    dims: LayerDims | None = None,
    config: VariantConfig | None = None,
    *,
    dtype: torch.dtype = torch.float64,
    seed: int = SEED,
) -> SequenceMixer:
    """Build a mixer in evaluation mode on the default device, with a little seeded noise added to every parameter.

    The noise moves parameters away from zeros and ones, at which a gradient may vanish and a leak may not show.
    """
    on_cpu = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")  # which takes longer
    with torch.random.fork_rng(), on_cpu:
        torch.default_generator.manual_seed(seed)  # all is drawn here; `torch.manual_seed` takes much longer
        mixer = spec.build(spec.config() if config is None else config, make_dims() if dims is None else dims)
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.add_(NOISE * torch.randn(parameter.shape, generator=noise))
    mixer.after_step()
    return mixer.to(device=torch.get_default_device(), dtype=dtype).eval()


def tokens(length: int, *, batch: int = 3, seed: int = SEED, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw an input, (batch, length, dim)."""
    drawn = torch.randn(batch, length, DIM, generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    return drawn.to(device=torch.get_default_device(), dtype=dtype)


def suffix_mask(length: int) -> Tensor:
    """Return (3, length): a full sequence, one cut short by a third, and one of two tokens or fewer."""
    real = torch.tensor([length, max(1, 2 * length // 3), min(2, length)])
    return torch.arange(length) < real[:, None]


def scattered_mask(length: int) -> Tensor:
    """Return (3, length): random holes, with the first token of sequence 1 and the last of sequence 2 masked."""
    draw = torch.rand(3, length, generator=torch.Generator("cpu").manual_seed(SEED), device="cpu") > 0.4
    draw[1, 0], draw[2, -1] = False, False
    draw[:, length // 2] = True
    return draw.to(torch.get_default_device())


def mix(mixer: SequenceMixer, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Run `transform_stream`, then the bare `forward`, which must leave masked positions out by itself.

    A call of the mixer sets them to zero first; then one that counts a masked position as a token would not show.
    """
    out = mixer.forward(mixer.transform_stream(x, mask), mask)
    found = type(out).__name__ if not isinstance(out, Tensor) else str(tuple(out.shape))
    assert found == str(tuple(x.shape)), f"forward must return one tensor shaped like x, {tuple(x.shape)}, not {found}"
    return out


def weighted_sum(out: Tensor, where: Tensor | None = None) -> Tensor:
    """Sum (batch, length, dim), or its positions `where`, with a random weight for each entry."""
    draw = torch.randn(out.shape, generator=torch.Generator("cpu").manual_seed(SEED + 1), device="cpu")
    weighted = out * draw.to(out)
    return (weighted if where is None else weighted[where]).sum()


def input_gradient(mixer: SequenceMixer, x: Tensor, mask: Tensor | None, where: Tensor) -> Tensor:
    """Return the gradient of the outputs at the positions `where`, (batch, length) bool, by the inputs."""
    leaf = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(
        weighted_sum(mix(mixer, leaf, mask), where), leaf, allow_unused=True, materialize_grads=True
    )
    return gradient


def difference(actual: Tensor, expected: Tensor, scale: float | None = None) -> float:
    """Return the largest difference relative to `scale`, by default the largest expected entry; infinite for NaN."""
    if not (actual.isfinite().all() and expected.isfinite().all()):
        return math.inf
    if actual.numel() == 0:
        return 0.0
    actual, expected = actual.detach(), expected.detach()
    unit = max(float(expected.abs().max()), 1e-12) if scale is None else scale
    return float((actual - expected).abs().max()) / unit


def assert_close(
    actual: Tensor, expected: Tensor, what: str, *, tolerance: float = EXACT, scale: float | None = None
) -> None:
    """Assert that two tensors agree; see `difference`.

    Raises:
        AssertionError: They do not; the message starts with `what`.
    """
    apart = difference(actual, expected, scale)
    assert apart <= tolerance, f"{what}: differs by {apart:.1e} of the largest entry, allowed {tolerance:.0e}"
