# SPDX-License-Identifier: Apache-2.0
"""State tracking: the product of a sequence of elements of a group. Parity is that of the group of two elements.

S3 is solvable and A5 is not; what that means for models is in Merrill et al., 2024 (arXiv:2404.08819).
"""

from __future__ import annotations

import functools
import itertools
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from lra.tasks.base import TaskInfo, TaskOptions
from lra.tasks.generated import Tokens
from lra.tasks.probes.base import Length, Probe, ProbeOptions, Share

FILLER = 1


class GroupOptions(ProbeOptions):
    """Which sequences."""

    length: Length = 16
    shortest: Annotated[int, Field(ge=1)] | None = 1
    noise: Share = 0.0
    """Share of fillers, which do not count; the last token is none."""


@functools.cache
def product_table(points: int, *, even: bool) -> npt.NDArray[np.int64]:
    """Return the products of all permutations of some points, or of the even ones: (elements, elements).

    The entry [a, b] is the permutation that applies a, then b. Element 0 is the identity.
    """
    elements = [each for each in itertools.permutations(range(points)) if not (even and _is_odd(each))]
    number = {element: index for index, element in enumerate(elements)}
    products = [[number[tuple(b[point] for point in a)] for b in elements] for a in elements]
    return np.asarray(products, dtype=np.int64)


def _is_odd(element: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(element, 2)) % 2 == 1


class GroupProbe(Probe[GroupOptions]):
    """Elements of a group, whose product in reading order is the label; with fillers in between."""

    options: ClassVar[type[TaskOptions]] = GroupOptions
    points: ClassVar[int]
    """How many points the permutations of the group move,"""
    even: ClassVar[bool]
    """and whether only the even ones belong to it."""

    @property
    def table(self) -> npt.NDArray[np.int64]:
        """The products: (elements, elements)."""
        return product_table(self.points, even=self.even)

    def certified_distance(self, options: GroupOptions, length: int) -> int:  # noqa: ARG002
        """Return the distance of the last token, without which every product is equally likely."""
        return length - 1

    def example(self, options: GroupOptions, length: int, generator: np.random.Generator) -> tuple[Tokens, int]:
        """Draw elements, and fillers in place of some."""
        tokens = (FILLER + 1 + generator.integers(0, len(self.table), length)).astype(np.uint8)
        if options.noise:
            tokens[:-1][generator.random(length - 1) < options.noise] = FILLER
        return tokens, self.answer(options, tokens)

    def answer(self, options: GroupOptions, tokens: Tokens) -> int:  # noqa: ARG002
        """Return the product."""
        product, table = 0, self.table
        for token in tokens.tolist():
            if token != FILLER:
                product = int(table[product, token - FILLER - 1])
        return product

    def other_answer(
        self,
        options: GroupOptions,
        tokens: Tokens,
        answer: int,
        generator: np.random.Generator,  # noqa: ARG002
    ) -> Tokens:
        """Change the last element."""
        before = self.answer(options, tokens[:-1])
        tokens[-1] = FILLER + 1 + int(np.flatnonzero(self.table[before] == answer)[0])
        return tokens

    def same_answer(self, options: GroupOptions, tokens: Tokens, generator: np.random.Generator) -> Tokens:
        """Draw all elements but one anew, and mend that one."""
        answer = self.answer(options, tokens)
        redrawn, _ = self.example(options, len(tokens), generator)
        return self.other_answer(options, redrawn, answer, generator)


class Parity(GroupProbe):
    """Bits, whose parity is the label."""

    info: ClassVar[TaskInfo] = TaskInfo(name="parity", title="Parity", version=1, vocab_size=4, num_classes=2)
    points, even = 2, False


class GroupS3(GroupProbe):
    """The six permutations of three points."""

    info: ClassVar[TaskInfo] = TaskInfo(name="group_s3", title="Group S3", version=1, vocab_size=8, num_classes=6)
    points, even = 3, False


class GroupA5(GroupProbe):
    """The sixty even permutations of five points."""

    info: ClassVar[TaskInfo] = TaskInfo(name="group_a5", title="Group A5", version=1, vocab_size=62, num_classes=60)
    points, even = 5, True
