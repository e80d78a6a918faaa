# SPDX-License-Identifier: Apache-2.0
"""Image classification from sequences of pixels (CIFAR-10)."""

from lra.tasks.image.task import Image, ImageContinuous

__all__ = ["Image", "ImageContinuous"]
