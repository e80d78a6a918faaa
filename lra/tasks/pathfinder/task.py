# SPDX-License-Identifier: Apache-2.0
"""The Pathfinder family: are two discs joined by a dashed curve? 32, 64, 128 (Path-X) and 256 pixels square."""

from __future__ import annotations

import itertools
import math
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from lra.data.augment import Change, flips
from lra.data.dataset import PreparedData, open_prepared
from lra.data.pickled_rows import Ids
from lra.data.raw_files import untouched
from lra.data.split import Split, SplitName, write_split
from lra.data.work_folder import sole_owner
from lra.errors import DataError, UsageError, refusals_as
from lra.tasks import pickles
from lra.tasks.base import Task, TaskInfo, TaskOptions, in_proportion
from lra.tasks.baselines import Features, Floats, Ints
from lra.tasks.image_preview import shade
from lra.tasks.pathfinder import generator
from lra.tasks.pathfinder.corpus import generate_images
from lra.tasks.pathfinder.discs import find_discs, place_features
from lra.terminal import echo

OFFICIAL_COUNT = 200_000
LEVEL_MEAN, LEVEL_STD = 0.080, 0.200
"""Of value / 255 over the hard images of 32 x 32 pixels."""
GENERATOR_OPTIONS = ("side", "contour_length", "distractors", "balanced_discs")
"""What sets generated images apart from the benchmark's."""
BALANCE_SAMPLE = 10_000
"""So many images must have either label within 1 % of one half."""


class ImageSetOptions(TaskOptions):
    """Which images; the defaults are the benchmark's."""

    source: Literal["generated", "official", "nystromformer"] = "generated"
    """`official` reads the folders of the release, `nystromformer` the pickles that its code makes."""
    difficulty: generator.Difficulty = "hard"
    """Curves of 6, 9 or 14 segments; published results are on `hard`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the generator, not of a run."""
    count: Annotated[int, Field(ge=10)] = OFFICIAL_COUNT
    """Images in all: 80 % for training, 10 % for validation, 10 % for test."""

    touching: Literal["refused", "kept"] = "refused"
    """Pairs of curves that touch or cross are generated anew, or kept as in the original generator."""
    side: Literal[16, 24, 32] | None = None
    """Rows and columns of a generated image; None: those of the task."""
    contour_length: Annotated[int, Field(ge=2, le=14)] | None = None
    """Segments of a generated curve; None: those of the difficulty."""
    distractors: Annotated[int, Field(ge=0, le=100)] | None = None
    """Short curves that a generated image has room for at most; None: as many as the benchmark has."""
    balanced_discs: bool = False
    """Whether each generated image has one of the other label whose discs lie as far apart in the same direction, so
    that the places of the discs say little about the label."""

    @model_validator(mode="after")
    def _only_generated(self) -> Self:
        changed = [name for name in GENERATOR_OPTIONS if getattr(self, name) != type(self).model_fields[name].default]
        if changed and self.source != "generated":
            raise ValueError(f"source {self.source} does not take {', '.join(changed)}, which are for generated images")
        return self

    @property
    def counts(self) -> dict[SplitName, int]:
        """Images of each split."""
        return split_counts(self.count)


def split_counts(count: int) -> dict[SplitName, int]:
    """Cut a number of images into 80, 10 and 10 %, rounding in favour of training."""
    tenth = count // 10
    return {"train": count - 2 * tenth, "validation": tenth, "test": tenth}


class PathfinderOptions(ImageSetOptions):
    """Which Pathfinder of gray levels as tokens."""

    legacy_zero_mask: bool = False
    """Tokens are the raw levels, so that black passes for padding as in the original code; else levels count from 1."""


OptionsT = TypeVar("OptionsT", bound=ImageSetOptions)


class _Family(Task[OptionsT]):
    """What the tasks of the family share, whether the model reads the pixels as tokens or as values."""

    size: ClassVar[int]

    @abstractmethod
    def token_offset(self, options: OptionsT) -> int:
        """Return what is added to a level to get what the model reads."""

    def dataset_name(self, options: OptionsT) -> str:
        """Say where the images come from, how hard they are, and all that sets them apart from the benchmark's."""
        origin = {"generated": "generated", "official": "official files", pickles.SOURCE: pickles.NAME}
        parts = [origin[options.source], options.difficulty]
        units = {"side": "pixels a side", "contour_length": "segments a curve", "distractors": "distractors at most"}
        parts += [
            f"{getattr(options, name)} {unit}" for name, unit in units.items() if getattr(options, name) is not None
        ]
        if options.balanced_discs:
            parts.append("discs balanced")
        if options.touching == "kept":
            parts.append("touching curves kept")
        if options.count != OFFICIAL_COUNT:
            parts.append(f"{' / '.join(map(str, options.counts.values()))} examples")
        return ", ".join(parts)

    def side(self, options: OptionsT) -> int:
        """Return the rows and columns of an image."""
        return options.side or self.size

    def defaults(self, options: OptionsT) -> dict[str, Any]:
        """Return the size of the task, and what its difficulty has in an image of this size."""
        recipe = generator.make_recipe(self.side(options), options.difficulty, contour_length=options.contour_length)
        usual = generator.make_recipe(self.side(options), options.difficulty)
        return {
            "side": self.size,
            "contour_length": usual.contour_length,
            "distractors": recipe.num_distractors,
        }

    def info_for(self, options: OptionsT) -> TaskInfo:
        """Return the facts with the size of the images."""
        return replace(self.info, grid=(self.side(options),) * 2)

    def augmentation(self, options: OptionsT) -> Change | None:
        """Turn upside down, and swap left and right."""
        return flips((self.side(options),) * 2, axes=(0, 1))

    def max_length(self, options: OptionsT) -> int:
        """Return the number of pixels."""
        return self.side(options) ** 2

    def small(self, options: OptionsT, train: int) -> dict[str, int]:
        """Generate fewer; the released folders are read whole."""
        if options.source != "generated":
            raise UsageError(
                "the released Pathfinder images are read whole; a small dataset variant is generated: --generate"
            )
        in_proportion(options.counts, train)
        tens, rest = divmod(train, 8)
        return {"count": 10 * tens + rest}  # the inverse of `split_counts`

    def short_name(self, options: OptionsT) -> str:
        """Return the difficulty, preceded by the source of images that are read."""
        return options.difficulty if options.source == "generated" else f"{options.source}-{options.difficulty}"

    def pickle_stem(self, options: OptionsT) -> str:
        """Return size and difficulty as the release names them."""
        from lra.tasks.pathfinder.reader import FOLDERS

        return f"pathfinder{self.size}-{FOLDERS[options.difficulty]}"

    def decode_pickled(self, ids: Ids, options: OptionsT) -> bytes:  # noqa: ARG002
        """Return the gray levels of an image."""
        return pickles.decode_pixels(ids, count=self.size**2)

    def pickle_offset(self, options: OptionsT) -> int:
        """Return the token offset of all images of the task."""
        return self.token_offset(options)

    def build(
        self, options: OptionsT, target: Path, *, source: Path | None, workers: int | None, progress: bool
    ) -> PreparedData:
        """Generate the images, or read them from an unpacked release; a killed generation is taken up again."""
        work = target.with_name(f".{target.name}.work")
        with sole_owner(work):
            if (
                target.is_dir() and source is None
            ):  # made while this one waited; a folder is read, to see it is the same
                return open_prepared(target, verify=False)
            if options.source == "official":
                splits, sources, generated_by, dataset = self._read(options, work, source, progress=progress)
            else:
                keep_apart = options.touching == "refused"
                recipe = generator.make_recipe(
                    self.side(options),
                    options.difficulty,
                    keep_apart=keep_apart,
                    contour_length=options.contour_length,
                    distractors=options.distractors,
                    balanced_discs=options.balanced_discs,
                )
                examples = generate_images(
                    recipe, options.count, options.seed, work, workers=workers, progress=progress
                )
                splits = self._cut(examples, options.count, work, offset=self.token_offset(options))
                sources, generated_by, dataset = {}, f"generator {generator.VERSION}", None
            data = self.write(options, target, splits, generated_by=generated_by, sources=sources, dataset=dataset)
            shutil.rmtree(work, ignore_errors=True)
            return data

    def baseline_features(self) -> Mapping[str, Features]:
        """Return features of the places of the two discs."""
        return {"discs only": self._discs}

    def _discs(self, split: Split, rows: Ints) -> Floats:
        images = split.tokens.reshape(len(split.labels), -1)[rows]
        side = math.isqrt(images.shape[1])
        radius = generator.make_recipe(side, "hard").marker_radius
        return place_features(find_discs(images.reshape(-1, side, side), radius))

    def describe_example(self, examples: Split, index: int) -> str:
        """Draw the image with characters."""
        label, tokens = int(examples.labels[index]), examples.tokens_of(index)
        side = math.isqrt(len(tokens))
        head = f"{side} x {side} pixels, label {label} ({_MEANING[label]})"
        return f"{head}\n{shade(tokens.reshape(side, side))}"

    def _read(
        self, options: OptionsT, work: Path, source: Path | None, *, progress: bool
    ) -> tuple[dict[SplitName, Split], dict[str, str], str, str | None]:
        """Read the images of a release.

        Returns:
            The splits, the digest of their list, what read them, and what tables call them if not `dataset_name`.
        """
        from lra.tasks.pathfinder import reader as files

        if source is None:
            raise DataError(
                f"{self.info.name}: the official images are in the archive lra_release.gz of the benchmark\n"
                f"Read them with: lra-data prepare {self.info.name} --set source=official --from FOLDER"
            )
        folder = files.find_dataset(source, self.size, options.difficulty)
        with untouched(files.metadata(folder)):
            listed = files.read_entries(folder)
            entries = files.without_empty(folder, listed)
            if options.count not in (len(listed), len(entries)):
                raise DataError(
                    f"{folder}: {len(entries)} images, expected {options.count}; --set count={len(entries)} admits them"
                )
            sources = {f"list of images and labels of {folder.name}": files.labels_digest(entries)}
            entries = [entries[index] for index in files.split_order(len(entries))]
            with untouched(folder / entry.subfolder / entry.name for entry in entries):
                examples = files.read_images(folder, entries, self.size, progress=progress)
                splits = self._cut(examples, len(entries), work, offset=self.token_offset(options))
        test = entries[len(entries) - split_counts(len(entries))["test"] :]
        place, marks = files.name_in_release(self.size, options.difficulty), list[str]()
        if self.size == 128:
            copy = files.copy_in_release(folder)
            place += f", {copy} copy"
            if copy != "inner":
                marks.append(f"{copy} copy of the release")
                told = f"{folder} is {files.COPIES[copy]} of two copies in the release"
                echo(f"Warning: {told}. {files.OUTER_COPY}", err=True)
        if others := " and ".join(files.other_difficulties(entries, options.difficulty)):
            marks.append(f"{others} by the metadata")
            echo(f"Warning: {folder}: by their metadata, images are {others}", err=True)
        if options.count != OFFICIAL_COUNT:
            options = options.model_copy(update={"count": len(entries)})
        dataset = ", ".join([self.dataset_name(options), *marks])
        generated_by = f"official reader {files.VERSION}, {place}, test ids {files.ids_digest(test)}"
        return splits, sources, generated_by, dataset

    def _cut(
        self, examples: Iterator[tuple[int, bytes]], count: int, work: Path, *, offset: int
    ) -> dict[SplitName, Split]:
        splits: dict[SplitName, Split] = {}
        for name, size in split_counts(count).items():
            rows = ((label, [pixels]) for label, pixels in itertools.islice(examples, size))
            with refusals_as(DataError, f"cannot write to {work}"):
                splits[name] = write_split(work / f"{name}.npy", rows, token_offset=offset)
        share = float(np.concatenate([split.labels for split in splits.values()]).mean())
        if count >= BALANCE_SAMPLE and abs(share - 0.5) > 0.01:
            raise DataError(f"{self.info.name}: {share:.1%} of the labels are 1; this is not the benchmark's task")
        return splits


_MEANING = ("the discs are on different curves", "the discs are on one curve")


class PathfinderTask(_Family[PathfinderOptions]):
    """Gray levels as tokens; each size is a task."""

    options: ClassVar[type[TaskOptions]] = PathfinderOptions

    def token_offset(self, options: PathfinderOptions) -> int:
        """Return 1, so that black is a token; 0 where it passes for padding."""
        return 0 if options.legacy_zero_mask else 1

    def dataset_name(self, options: PathfinderOptions) -> str:
        """Say also whether black passes for padding."""
        base = super().dataset_name(options)
        return f"{base}, black as padding" if options.legacy_zero_mask else base


def _info(name: str, title: str, size: int) -> TaskInfo:
    # 256 levels, and one id for padding
    return TaskInfo(
        name=name,
        title=title,
        version=generator.VERSION,
        vocab_size=257,
        num_classes=2,
        grid=(size, size),
        generated=True,
        mask_rate=0.5,
        advice="more steps, pretrain.share=0.4, a start on easier images (--from), or the variants s5 and s4d",
    )


class Pathfinder(PathfinderTask):
    """Pathfinder: 32 x 32 pixels, 1,024 tokens."""

    size: ClassVar[int] = 32
    info: ClassVar[TaskInfo] = _info("pathfinder", "Pathfinder", size)


class PathfinderContinuous(_Family[ImageSetOptions]):
    """Pathfinder with real-valued input, as state-space models have it; its numbers are not those of Pathfinder."""

    size: ClassVar[int] = 32
    options: ClassVar[type[TaskOptions]] = ImageSetOptions
    info: ClassVar[TaskInfo] = replace(
        _info("pathfinder_continuous", "Pathfinder (continuous)", size),
        vocab_size=256,
        normalisation=(LEVEL_MEAN, LEVEL_STD),
    )

    def token_offset(self, options: ImageSetOptions) -> int:  # noqa: ARG002 - values are not ids
        """Return 0."""
        return 0

    def dataset_name(self, options: ImageSetOptions) -> str:
        """Say also that values are real."""
        return f"{super().dataset_name(options)}, normalised values"


class Pathfinder64(PathfinderTask):
    """Pathfinder at 64 x 64 pixels, 4,096 tokens; in no published table."""

    size: ClassVar[int] = 64
    info: ClassVar[TaskInfo] = _info("pathfinder64", "Pathfinder-64", size)


class PathX(PathfinderTask):
    """Path-X: 128 x 128 pixels, 16,384 tokens."""

    size: ClassVar[int] = 128
    info: ClassVar[TaskInfo] = _info("pathx", "Path-X", size)


class PathX256(PathfinderTask):
    """Pathfinder at 256 x 256 pixels, 65,536 tokens."""

    size: ClassVar[int] = 256
    info: ClassVar[TaskInfo] = _info("pathx256", "Path-X-256", size)
