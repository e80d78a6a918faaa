# SPDX-License-Identifier: Apache-2.0
"""What a probe is, and the check of its certified distance.

The answer to a probe is asked for at the first token. Its certified distance is D when the tokens nearer than D to that
one, itself included, leave all classes equally likely. A model whose first token sees no token at D or farther is then
at chance, whatever else it does. `model.pooling: first` reads that token.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from lra.seeding import numpy_generator
from lra.tasks.generated import GeneratedOptions, GeneratedTask, Tokens

Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Length = Annotated[int, Field(ge=4, le=16_384)]


class ProbeOptions(GeneratedOptions):
    """Options of every probe."""

    length: Length = 64


class DistanceOptions(ProbeOptions):
    """Options of a probe whose distance can be chosen."""

    distance: Annotated[int, Field(ge=1)] | None = None
    """Nearest place of the tokens that decide, counted from the first token; None: half the length of the example."""

    @model_validator(mode="after")
    def _distance_in_one_form(self) -> Self:
        """Write the distance as if it was not given where it is half of every length."""
        if all(length // 2 == self.distance for length in self.extremes):
            object.__setattr__(self, "distance", None)  # frozen: nobody has it yet
        return self

    def nearest(self, length: int) -> int:
        """Return the nearest place of the tokens that decide in an example of a length."""
        return length // 2 if self.distance is None else self.distance


OptionsT = TypeVar("OptionsT", bound=ProbeOptions)


class Probe(GeneratedTask[OptionsT]):
    """A task with a certified distance, and what is needed to check it."""

    @abstractmethod
    def certified_distance(self, options: OptionsT, length: int) -> int:
        """Return the certified distance of examples of a length."""

    @abstractmethod
    def answer(self, options: OptionsT, tokens: Tokens) -> int:
        """Work out the label from the tokens alone."""

    @abstractmethod
    def other_answer(self, options: OptionsT, tokens: Tokens, answer: int, generator: np.random.Generator) -> Tokens:
        """Change only tokens at the certified distance or farther so that the label is `answer`."""

    @abstractmethod
    def same_answer(self, options: OptionsT, tokens: Tokens, generator: np.random.Generator) -> Tokens:
        """Change tokens that do not matter, near and far."""


class CertificateError(AssertionError):
    """A probe does not keep what its certified distance promises."""


def check_certificate(probe: Probe[OptionsT], options: OptionsT, examples: int = 20) -> None:
    """Check the certified distance of a probe on examples of each of its test lengths.

    Raises:
        CertificateError: A label is not what follows from the tokens; a class cannot be had by changing far tokens
            only; or tokens that should not matter do.
    """
    classes = probe.info_for(options).num_classes
    for length in options.lengths("test"):
        generator = numpy_generator(options.seed, probe.info.name, "certificate", length)
        distance = probe.certified_distance(options, length)
        for number in range(examples):
            drawn, label = probe.example(options, length, generator)
            tokens = np.asarray(drawn, dtype=np.uint8)
            where = f"{probe.info.name}, example {number} of length {length}"
            if probe.answer(options, tokens) != label:
                raise CertificateError(f"{where}: its label is {label}, the tokens say {probe.answer(options, tokens)}")
            for answer in range(classes):
                changed = probe.other_answer(options, tokens.copy(), answer, generator)
                if probe.answer(options, changed) != answer:
                    raise CertificateError(f"{where}: far tokens do not lead to class {answer}")
                near = np.flatnonzero(changed[:distance] != tokens[:distance])
                if len(near) or len(changed) != len(tokens):
                    raise CertificateError(f"{where}: class {answer} needs token {near[:1]}, nearer than {distance}")
            redrawn = probe.same_answer(options, tokens.copy(), generator)
            if probe.answer(options, redrawn) != label or len(redrawn) != len(tokens):
                raise CertificateError(f"{where}: tokens that should not matter change the label")
