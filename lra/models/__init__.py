# SPDX-License-Identifier: Apache-2.0
"""The models around a mixer: a transformer encoder for every task, and a small ConvNet for pixels."""

from lra.models.convnet import ConvNet
from lra.models.downsamplers import available_downsamplers, get_downsampler
from lra.models.transformer import Classifier, build_model, count_parameters, mixers

__all__ = [
    "Classifier",
    "ConvNet",
    "available_downsamplers",
    "build_model",
    "count_parameters",
    "get_downsampler",
    "mixers",
]
