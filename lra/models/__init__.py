# SPDX-License-Identifier: Apache-2.0
"""The models: a transformer encoder around a mixer, a small ConvNet for pixels, and whole models of others."""

from lra.models.convnet import ConvNet
from lra.models.downsamplers import available_downsamplers, get_downsampler
from lra.models.foreign import ForeignModel
from lra.models.transformer import Classifier, build_model, count_parameters, mixers

__all__ = [
    "Classifier",
    "ConvNet",
    "ForeignModel",
    "available_downsamplers",
    "build_model",
    "count_parameters",
    "get_downsampler",
    "mixers",
]
