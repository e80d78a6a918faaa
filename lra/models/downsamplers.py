# SPDX-License-Identifier: Apache-2.0
"""Layers that make a feature map smaller, by name: built-in ones, and plug-ins found by entry point."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points

import torch
from torch import nn

from attention_zoo.program import ProgramError, program_text, remember_imports, remembering_reads
from attention_zoo.registry import OWN_DISTRIBUTION
from lra.names import suggest

ENTRY_POINT_GROUP = "lra.downsamplers"
TRIAL_SIDE = 32
"""Most rows and columns of the images with which a layer is tried."""

Downsampler = Callable[[int, int], nn.Module]
"""(channels, stride) -> a layer from (batch, channels, rows, columns) to (batch, channels, ceil(rows / stride),
ceil(columns / stride)). A plug-in's entry point loads one of these."""


class UnknownDownsamplerError(LookupError):
    """No layer has this name."""


def _max(channels: int, stride: int) -> nn.Module:  # noqa: ARG001 - a pooling has no channels of its own
    return nn.MaxPool2d(3, stride, padding=1)


def _average(channels: int, stride: int) -> nn.Module:  # noqa: ARG001
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


def _strided(channels: int, stride: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 3, stride, padding=1)


BUILT_IN: dict[str, Downsampler] = {"max": _max, "average": _average, "stride": _strided}
"""Maximum and mean of 3 by 3 pixels, and a 3 by 3 convolution; all around the pixels at multiples of the stride."""


def available_downsamplers() -> list[str]:
    """List the names of all layers, built-in ones first."""
    plugins = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    return [*BUILT_IN, *sorted(plugins - BUILT_IN.keys())]


def get_downsampler(name: str) -> Downsampler:
    """Find what makes a layer; a built-in name always wins over a plug-in's.

    Raises:
        UnknownDownsamplerError: With the closest names.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        with remembering_reads(point.module):
            plugin: Downsampler = point.load()
        if point.dist is None or point.dist.name != OWN_DISTRIBUTION:
            remember_imports()
        return plugin
    raise UnknownDownsamplerError(f"unknown downsampler {name!r}; {suggest(name, available_downsamplers())}")


def is_own(name: str) -> bool:
    """Say whether a layer is part of this project, so that no code of others is loaded for it."""
    if name in BUILT_IN:
        return True
    points = entry_points(group=ENTRY_POINT_GROUP, name=name)
    ours = [point.dist is not None and point.dist.name == OWN_DISTRIBUTION for point in points]
    return bool(ours) and all(ours)


@functools.cache  # as for variants: the code that was imported, once per process
def downsampler_origin(name: str, channels: int, grid: tuple[int, int] | None) -> str:
    """Name the program of a third party's layer: its distribution, version, place and source; empty for our own layers.

    Args:
        name: Of the layer.
        channels: The fewest that a run has it for,
        grid: and rows and columns of its images; None for a task without images.

    Raises:
        UnknownDownsamplerError: There is no such layer, or its source cannot be found.
    """
    made = get_downsampler(name)
    for point in () if name in BUILT_IN else entry_points(group=ENTRY_POINT_GROUP, name=name):
        if point.dist is None or point.dist.name == OWN_DISTRIBUTION:
            return ""
        try:
            label = f"{point.dist.name} {point.dist.version} {point.module}:{point.attr}"
            modules = [point.module, made.__module__]
            given = {"reference": point.value, "channels": channels, "side": min(TRIAL_SIDE, *(grid or [TRIAL_SIDE]))}
            return program_text(label, modules, "", given, trial="lra.models.downsamplers:try_layer")
        except ProgramError as error:
            raise UnknownDownsamplerError(f"downsampler {name!r}: its source cannot be told: {error}") from error
    return ""


def try_layer(reference: str, channels: int, side: int) -> None:
    """Build the layers that a function gives, as a model does, and train them for a moment: see `program_text`.

    Args:
        reference: The function (channels, stride), as `module:name`.
        channels: Those of the first layer of a run; each later one has twice as many,
        side: and images of half as many rows and columns.
    """
    torch.set_num_threads(1)
    make = EntryPoint(name="layer", value=reference, group="").load()
    for width, stride, rows in ((8, 1, 8), (8, 2, 8), (channels, 2, side), (2 * channels, 2, (side + 1) // 2)):
        with contextlib.suppress(Exception):
            module = make(width, stride)
            for training in (True, False):
                module.train(training)
                with torch.set_grad_enabled(training):
                    result = module(torch.randn(2, width, rows, rows, requires_grad=training))
                if training:
                    result.sum().backward()
