# SPDX-License-Identifier: Apache-2.0
"""Image: what a small gray photograph shows, pixel by pixel, 10 classes (CIFAR-10, Krizhevsky 2009)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import numpy as np

from lra.data.augment import Change, flips
from lra.data.dataset import PreparedData
from lra.data.parquet import PARQUET_ORDER, source_files
from lra.data.pickled_rows import Ids
from lra.data.raw_files import missing, steady
from lra.data.split import Split, SplitName
from lra.errors import DataError
from lra.tasks import pickles
from lra.tasks.base import Task, TaskInfo, TaskOptions
from lra.tasks.baselines import Features, pixels, token_counts
from lra.tasks.image.reader import SIDE, VERSION, Bytes, GrayLevels, halve, read_images
from lra.tasks.image_preview import shade
from lra.tasks.splits import (
    Count,
    ReadOptions,
    held_out_count,
    hold_out,
    sample,
    sample_limits,
)

TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000
GRAY_MEAN, GRAY_STD = 0.4809, 0.2390
"""Of value / 255 over the gray training images."""
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class PixelOptions(ReadOptions):
    """Which images; the defaults are 45,000 / 5,000 / 10,000."""

    train_images: Count = TRAIN_IMAGES
    """Images that the archive must hold for training, held-out ones included."""
    test_images: Count = TEST_IMAGES
    side: Literal[32, 16] = 32
    """Rows and columns of an image; 16 takes the mean of each 2 x 2 pixels, see `halve`."""


class ImageOptions(PixelOptions):
    """Which Image."""

    source: Literal["archive", "nystromformer"] = "archive"
    """`nystromformer` reads the pickles that the code of Nystromformer makes, and says so in every table."""
    legacy_zero_mask: bool = False
    """Tokens are the raw levels and black is hidden like padding, as in the original code; else levels count from 1."""
    gray_levels: GrayLevels = "nearest"
    """How colours become gray levels: `nearest` rounds the weighted sum, `tensorflow` gives what the original code
    reads. They differ in a quarter of the pixels, by one level."""


OptionsT = TypeVar("OptionsT", bound=PixelOptions)


def _size(options: PixelOptions) -> list[str]:
    images = (options.train_images, options.test_images)
    whole = [] if images == (TRAIN_IMAGES, TEST_IMAGES) else [f"archive of {images[0]:,} + {images[1]:,} images"]
    return whole if options.side == SIDE else [*whole, f"{options.side} x {options.side} pixels"]


class _Pixels(Task[OptionsT]):
    """What the token and the real-valued task share: the same arrays, read by the model in two ways."""

    def info_for(self, options: OptionsT) -> TaskInfo:
        """Return the facts with the size of the images."""
        return replace(self.info, grid=(options.side, options.side))

    def augmentation(self, options: OptionsT) -> Change | None:
        """Swap left and right."""
        return flips((options.side, options.side), axes=(1,))

    def max_length(self, options: OptionsT) -> int:
        """Return the number of pixels."""
        return options.side**2

    def small(self, options: OptionsT, train: int) -> dict[str, int]:
        """Sample every split."""
        held_out = held_out_count(options.train_images)
        full: dict[SplitName, int] = {
            "train": options.train_images - held_out,
            "validation": held_out,
            "test": options.test_images,
        }
        return sample_limits(full, train)

    def source_key(self, options: OptionsT) -> str:  # noqa: ARG002
        """Return `image`: both tasks are read from one archive."""
        return "image"

    def baseline_features(self) -> Mapping[str, Features]:
        """Return how often each level comes, and the levels themselves."""
        return {"pixel histogram": token_counts, "linear on pixels": pixels}

    def describe_example(self, examples: Split, index: int) -> str:
        """Draw the image with characters."""
        label, tokens = int(examples.labels[index]), examples.tokens_of(index)
        side = math.isqrt(len(tokens))
        head = f"{side} x {side} pixels, label {label} ({CLASSES[label]})"
        return f"{head}\n{shade(tokens.reshape(side, side))}"

    def _prepare(
        self, options: OptionsT, target: Path, source: Path | None, levels: GrayLevels, *, offset: int, progress: bool
    ) -> PreparedData:
        if source is None:
            raise missing(self.info.name, "the CIFAR-10 archive, python or binary version,", target.parent)
        files = source_files(source)
        with steady(files) as sources:
            train, train_labels, test, test_labels = read_images(source, files, levels, progress=progress)
        for what, count, expected in (
            ("train", len(train), options.train_images),
            ("test", len(test), options.test_images),
        ):
            if count != expected:
                hint = f"--set {what}_images={count} admits them"
                raise DataError(f"{source}: {count} {what} images, expected {expected}; {hint}")
        stay, held_out = hold_out(len(train), held_out_count(len(train)), options.seed)
        everything: dict[SplitName, tuple[Bytes, Bytes]] = {
            "train": (train[stay], train_labels[stay]),
            "validation": (train[held_out], train_labels[held_out]),
            "test": (test, test_labels),
        }
        splits: dict[SplitName, Split] = {}
        for name, (images, labels) in everything.items():
            kept = sample(len(labels), options.limits[name], options.seed, name)
            pixels_kept = images[kept] if options.side == SIDE else halve(images[kept])
            splits[name] = Split(
                tokens=pixels_kept.reshape(-1),
                offsets=np.arange(len(kept) + 1, dtype=np.int64) * options.side**2,
                labels=labels[kept],
                token_offset=offset,
            )
        return self.write(
            options,
            target,
            splits,
            generated_by=f"CIFAR-10 reader {VERSION}, {source.name}",
            sources=sources,
            dataset=f"{self.dataset_name(options)}, {PARQUET_ORDER}" if files != [source] else None,
        )


class Image(_Pixels[ImageOptions]):
    """The Image task: gray levels as tokens."""

    info: ClassVar[TaskInfo] = TaskInfo(
        name="image",
        title="Image",
        version=VERSION,
        vocab_size=257,
        num_classes=10,
        grid=(SIDE, SIDE),
        mask_rate=0.5,
        advice="more steps, model.positions=rotary, pretrain.share=0.4",
    )
    options: ClassVar[type[TaskOptions]] = ImageOptions

    def dataset_name(self, options: ImageOptions) -> str:
        """Say whose gray levels they are, whether black is padding, and whether splits are samples."""
        if options.source == pickles.SOURCE:
            return f"gray CIFAR-10, {pickles.NAME}" + (", black as padding" if options.legacy_zero_mask else "")
        levels = ["levels of the original code"] if options.gray_levels == "tensorflow" else []
        black = ["black as padding"] if options.legacy_zero_mask else []
        return ", ".join(["gray CIFAR-10", *_size(options), *levels, *black, *options.sample_phrase()])

    def short_name(self, options: ImageOptions) -> str:
        """Return `legacy` where black is padding."""
        return "legacy" if options.legacy_zero_mask else "levels"

    def source_key(self, options: ImageOptions) -> str:
        """Return `image` for the archive, which the continuous task shares."""
        return "image" if options.source == "archive" else f"image-{options.source}"

    def decode_pickled(self, ids: Ids, options: ImageOptions) -> bytes:  # noqa: ARG002
        """Return the gray levels of an image."""
        return pickles.decode_pixels(ids, count=SIDE * SIDE)

    def pickle_offset(self, options: ImageOptions) -> int:
        """Return 1, so that black is a token; 0 where it passes for padding."""
        return 0 if options.legacy_zero_mask else 1

    def build(
        self,
        options: ImageOptions,
        target: Path,
        *,
        source: Path | None,
        workers: int | None,  # noqa: ARG002 - an archive is one stream
        progress: bool,
    ) -> PreparedData:
        """Read the CIFAR-10 archive."""
        offset = self.pickle_offset(options)
        return self._prepare(options, target, source, options.gray_levels, offset=offset, progress=progress)


class ImageContinuous(_Pixels[PixelOptions]):
    """The Image task with real-valued input, as state-space models have it; its numbers are not those of Image."""

    info: ClassVar[TaskInfo] = TaskInfo(
        name="image_continuous",
        title="Image (continuous)",
        version=VERSION,
        vocab_size=256,
        num_classes=10,
        grid=(SIDE, SIDE),
        normalisation=(GRAY_MEAN, GRAY_STD),
        mask_rate=0.5,
        denoising_loss="l1",
        advice="more steps, pretrain.share=0.4",
    )
    options: ClassVar[type[TaskOptions]] = PixelOptions

    def dataset_name(self, options: PixelOptions) -> str:
        """Say that values are real, and whether splits are samples."""
        return ", ".join(["gray CIFAR-10", *_size(options), "normalised values", *options.sample_phrase()])

    def short_name(self, options: PixelOptions) -> str:  # noqa: ARG002 - there is one dataset variant
        """Return `values`."""
        return "values"

    def build(
        self,
        options: PixelOptions,
        target: Path,
        *,
        source: Path | None,
        workers: int | None,  # noqa: ARG002 - an archive is one stream
        progress: bool,
    ) -> PreparedData:
        """Read the CIFAR-10 archive."""
        return self._prepare(options, target, source, "nearest", offset=0, progress=progress)
