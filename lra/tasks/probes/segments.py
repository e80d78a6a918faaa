# SPDX-License-Identifier: Apache-2.0
"""Segments: how widely a token has to look differs from token to token, and is only partly shown.

A sequence is cut into segments of several scales, in random order, with drawn lengths. A segment has a class, and each
of its tokens shows that class with a probability that is smaller for wider segments. Some tokens are marks, one in a
segment of each scale, and all marked segments have one class: the label. To read it at a mark, the neighbourhood must
be as wide as the segment: a narrower one is noise, and a wider one has strangers in it. Each scale has equally many
segments of each class, so counting tokens says nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from lra.data.split import Split, SplitName
from lra.seeding import numpy_generator
from lra.tasks.base import TaskInfo, TaskOptions
from lra.tasks.generated import GeneratedTask, Tokens
from lra.tasks.probes.base import Length, ProbeOptions, Share

MARK, FIRST = 1, 2
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
"""Tokens on each side of a mark that the baselines look at."""
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class SegmentsOptions(ProbeOptions):
    """Which segments."""

    length: Length = 256
    vocabulary: Annotated[int, Field(ge=2, le=20)] = 4
    """Classes."""
    scales: Annotated[list[Annotated[int, Field(ge=2)]], Field(min_length=1, max_length=5)] = Field(default=[3, 9, 27])
    """Mean lengths of segments, in tokens."""
    spread: Share = 0.25
    """Lengths are drawn within this share of the mean."""
    shown: list[Annotated[float, Field(gt=0.0, lt=1.0)]] = Field(default=[0.8, 0.45, 0.33])
    """Probability that a token shows the class of its segment, by scale; else it shows one of the others."""
    hint: Share = 0.5
    """Probability that a token shows the scale of its segment; else it shows any scale."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.shown) != len(self.scales):
            raise ValueError(f"shown has {len(self.shown)} probabilities for {len(self.scales)} scales")
        if self.extremes[0] < self.least:
            raise ValueError(
                f"length {self.extremes[0]}: one segment of each scale and class may take {self.least} tokens"
            )
        return self

    @property
    def widest(self) -> list[int]:
        """The longest segment of each scale."""
        return [round(scale * (1 + self.spread)) for scale in self.scales]

    @property
    def least(self) -> int:
        """The most tokens that one segment of each scale and class may take."""
        return self.vocabulary * sum(self.widest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """An example with what a model does not see."""

    tokens: Tokens
    """(length,)."""
    segments: Ints
    """(length,), the segment of each token."""
    marks: Ints
    """(scales,), the place of the mark of each scale."""
    label: int


class Segments(GeneratedTask[SegmentsOptions]):
    """The class of the marked segments."""

    info: ClassVar[TaskInfo] = TaskInfo(name="segments", title="Segments", version=2, vocab_size=14, num_classes=4)
    options: ClassVar[type[TaskOptions]] = SegmentsOptions

    def info_for(self, options: SegmentsOptions) -> TaskInfo:
        """Return a token for each class and scale, and the mark."""
        size = FIRST + options.vocabulary * len(options.scales)
        return replace(self.info, vocab_size=size, num_classes=options.vocabulary)

    def example(self, options: SegmentsOptions, length: int, generator: np.random.Generator) -> tuple[Tokens, int]:
        """Draw segments, their tokens and the marks."""
        drawn = draw(options, length, generator)
        return drawn.tokens, drawn.label

    def baselines(self, options: SegmentsOptions, splits: Mapping[SplitName, Split]) -> dict[str, float]:
        """Return what counting classes around the marks gives.

        `oracle` counts in the marked segments, weighted by what a token of each scale says. `oracle of scales` takes
        the best neighbourhood for each scale, weighted alike. `fixed width` looks at one neighbourhood for all. Widths
        are chosen on the validation split.
        """
        del splits  # drawn again, with the segments
        validation = self._scores(options, "validation", options.length)
        found: dict[str, float] = {}
        for length in options.lengths("test"):
            test = self._scores(options, "test", length)
            suffix = f" at {length}" if len(options.lengths("test")) > 1 else ""
            found[f"oracle{suffix}"] = test.accuracy(test.inside)
            for name, widths in (
                (
                    "oracle of scales",
                    list(itertools.combinations_with_replacement(range(len(WIDTHS)), len(options.scales))),
                ),
                ("fixed width", [(width,) * len(options.scales) for width in range(len(WIDTHS))]),
            ):
                weighted = name != "fixed width"
                best = max(widths, key=lambda each: validation.accuracy(validation.around(each, weighted=weighted)))
                found[f"{name}{suffix}"] = test.accuracy(test.around(best, weighted=weighted))
        return found

    def _scores(self, options: SegmentsOptions, name: SplitName, length: int) -> Scores:
        generator = numpy_generator(options.seed, self.info.name, name, length)
        examples = [draw(options, length, generator) for _ in range(options.counts[name])]
        return Scores.of(options, examples)


def draw(options: SegmentsOptions, length: int, generator: np.random.Generator) -> Drawn:
    """Draw one example."""
    classes, scales = options.vocabulary, len(options.scales)
    # (segments,): of each scale, one set of all classes, and as many more as fit its share of the rest.
    sets = [1 + (length - options.least) // (scales * classes * widest) for widest in options.widest]
    scale = np.repeat(np.arange(scales), [classes * count for count in sets])
    kind = np.concatenate([np.tile(np.arange(classes), count) for count in sets])
    order = generator.permutation(len(scale))
    scale, kind = scale[order], kind[order]
    shortest = np.asarray([max(2, round(each * (1 - options.spread))) for each in options.scales])
    size = generator.integers(shortest[scale], np.asarray(options.widest)[scale] + 1)
    segments = np.repeat(np.arange(len(scale)), size)  # (tokens,)
    count = len(segments)
    is_true = generator.random(count) < np.asarray(options.shown)[scale[segments]]
    shown = (kind[segments] + np.where(is_true, 0, generator.integers(1, classes, count))) % classes
    hint = np.where(generator.random(count) < options.hint, scale[segments], generator.integers(0, scales, count))
    tokens = FIRST + shown * scales + hint
    label = int(generator.integers(classes))
    chosen = [generator.choice(np.flatnonzero((scale == each) & (kind == label))) for each in range(scales)]
    marks = np.asarray([generator.choice(np.flatnonzero(segments == each)) for each in chosen])
    tokens[marks] = MARK
    return Drawn(tokens=tokens.astype(np.uint8), segments=segments, marks=marks, label=label)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Counts of classes at the marks of many examples, and what follows from them."""

    labels: Ints
    """(examples,)."""
    counts: Floats
    """(examples, scales, widths, classes): tokens that show each class around the mark of each scale."""
    inside: Floats
    """(examples, classes): the logarithm of the likelihood, but for a constant, given the marked segments."""
    weights: Floats
    """(scales,): what a token in a segment of each scale adds to that logarithm."""

    @classmethod
    def of(cls, options: SegmentsOptions, examples: list[Drawn]) -> Scores:
        """Count."""
        classes, scales = options.vocabulary, len(options.scales)
        shown = np.asarray(options.shown)
        weights = np.log(shown * (classes - 1) / (1 - shown))
        counts = np.zeros((len(examples), scales, len(WIDTHS), classes))
        inside = np.zeros((len(examples), classes))
        for number, drawn in enumerate(examples):
            kinds = (drawn.tokens.astype(int) - FIRST) // scales  # (length,), negative at marks
            for scale, mark in enumerate(drawn.marks.tolist()):
                own = kinds[drawn.segments == drawn.segments[mark]]
                inside[number] += weights[scale] * np.bincount(own[own >= 0], minlength=classes)
                for index, width in enumerate(WIDTHS):
                    near = kinds[max(0, mark - width) : mark + width + 1]
                    counts[number, scale, index] = np.bincount(near[near >= 0], minlength=classes)
        return cls(
            labels=np.asarray([drawn.label for drawn in examples]), counts=counts, inside=inside, weights=weights
        )

    def around(self, widths: tuple[int, ...], *, weighted: bool) -> Floats:
        """Return the counts for one width for each scale, added over the scales: (examples, classes)."""
        chosen = np.stack([self.counts[:, scale, width] for scale, width in enumerate(widths)], axis=1)
        weights = self.weights if weighted else np.ones_like(self.weights)
        return np.asarray(np.einsum("esc,s->ec", chosen, weights))

    def accuracy(self, scores: Floats) -> float:
        """Return the accuracy in % of the class with the best score; equal ones share."""
        best = np.isclose(scores, scores.max(axis=1, keepdims=True))
        right = best[np.arange(len(self.labels)), self.labels]
        return float(100.0 * (right / best.sum(axis=1)).mean())
