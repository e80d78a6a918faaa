# SPDX-License-Identifier: Apache-2.0
"""ListOps trees, drawn level by level for whole batches at once.

The distribution is that of the benchmark's script (Tay et al., 2021, after Nangia and Bowman, 2018): a node above the
depth limit is an operator with a fixed probability, has a uniform number of arguments and a uniform kind; other nodes
are uniform digits; a tree is kept if its length is within bounds. There is no loop over trees or nodes: all nodes of
one depth are a few flat arrays, in which the arguments of an operator stand together, in the order of their parents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lra.errors import LraError
from lra.tasks.listops.evaluator import tree_values
from lra.tasks.listops.vocabulary import CLOSE, DIGIT_0, MAX, MED, MIN, OPERATORS, SM

VERSION = 1
"""Raised when the same seed gives other examples."""
CHUNK_TREES = 4096
"""Trees that are drawn together; fits the caches, and is part of what a seed means."""

Bytes = npt.NDArray[np.uint8]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grammar:
    """The parameters of the distribution; the defaults are the benchmark's."""

    min_length: int = 501
    """Fewest tokens of a tree that is kept: operators, digits and closing brackets."""
    max_length: int = 1999
    max_depth: int = 10
    """Levels of a tree, the root's included; the nodes of the last one are digits."""
    max_args: int = 10
    """Most arguments of an operator; the fewest are 2."""
    operator_probability: float = 0.25

    def longest_possible(self) -> int:
        """Return the length of the largest tree of the grammar."""
        length = 1
        for _ in range(self.max_depth - 1):
            length = 2 + self.max_args * length
        return length


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Trees as token sequences, with their values."""

    tokens: Bytes
    """(total tokens,)."""
    offsets: Integers
    """(trees + 1,)."""
    labels: Bytes
    """(trees,), 0 to 9."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """All nodes of one depth."""

    tokens: Bytes
    """(nodes,), an operator or a digit."""
    is_operator: Flags
    """(nodes,)."""
    num_args: Integers
    """(operators,); the arguments themselves are the nodes of the next level."""


def generate_chunk(seed: int, chunk: int, grammar: Grammar) -> Examples:
    """Draw one chunk of trees and return those of acceptable length: a pure function of its arguments.

    Every label is computed twice, from the tree and from the finished tokens.

    Raises:
        LraError: The two evaluations of a tree differ, which is a fault of this program.
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, chunk])))
    levels, lengths = _draw(generator, grammar)
    accepted = (lengths >= grammar.min_length) & (lengths <= grammar.max_length)
    levels = _select(levels, accepted)
    offsets = np.concatenate([[0], np.cumsum(lengths[accepted])])
    examples = Examples(tokens=_lay_out(levels, offsets), offsets=offsets, labels=_evaluate(levels))
    if not np.array_equal(tree_values(examples.tokens, offsets), examples.labels):
        raise LraError(f"ListOps chunk {chunk} of seed {seed}: two evaluations of a tree differ")
    return examples


def _draw(generator: np.random.Generator, grammar: Grammar) -> tuple[list[Level], Integers]:
    """Draw trees from the root down; return their levels and their lengths: (trees,).

    A tree that is a lone digit is never kept, so roots are drawn as operators. A tree that is already too long stops
    growing; its exact length is then unknown.
    """
    lengths = np.ones(CHUNK_TREES, dtype=np.int64)  # (trees,), of what is drawn so far
    tree = np.arange(CHUNK_TREES, dtype=np.int32)  # (nodes,), the tree of each node of this level
    levels = []
    for depth in range(1, grammar.max_depth + 1):
        if depth == 1:
            is_operator = np.ones(len(tree), dtype=np.bool_)
        elif depth == grammar.max_depth:
            is_operator = np.zeros(len(tree), dtype=np.bool_)
        else:
            is_operator = generator.random(len(tree), dtype=np.float32) < grammar.operator_probability
        tokens = generator.integers(DIGIT_0, DIGIT_0 + 10, len(tree), dtype=np.uint8)
        operators = np.flatnonzero(is_operator)
        tokens[operators] = generator.integers(MIN, MIN + len(OPERATORS), len(operators), dtype=np.uint8)
        num_args = generator.integers(2, grammar.max_args, len(operators), endpoint=True)
        owner = tree[operators]  # (operators,)
        # An operator adds its closing bracket and its arguments; its own token is counted by its parent.
        lengths += np.bincount(owner, weights=num_args + 1, minlength=CHUNK_TREES).astype(np.int64)
        # Operators of trees that are too long get no children. The trees are not kept, so what they look like is
        # irrelevant, but nearly all the work of a chunk would go into them.
        alive = lengths[owner] <= grammar.max_length
        is_operator[operators[~alive]] = False
        num_args = num_args[alive]
        levels.append(Level(tokens=tokens, is_operator=is_operator, num_args=num_args))
        tree = np.repeat(owner[alive], num_args)
        if not len(tree):
            break
    return levels, lengths


def _select(levels: list[Level], keep: Flags) -> list[Level]:
    """Keep the trees whose roots are flagged."""
    selected = []
    for level in levels:
        keep_operator = keep[level.is_operator]  # (operators,); arguments are kept with their operator
        selected.append(
            Level(
                tokens=level.tokens[keep],
                is_operator=level.is_operator[keep],
                num_args=level.num_args[keep_operator],
            )
        )
        keep = np.repeat(keep_operator, level.num_args)
    return selected


def _lay_out(levels: list[Level], offsets: Integers) -> Bytes:
    """Write the trees in depth-first order: each node at its position, and closing brackets in all positions left over.

    Args:
        levels: The trees.
        offsets: (trees + 1,), where each tree begins.

    Returns:
        (total tokens,).
    """
    tokens = np.full(offsets[-1], CLOSE, dtype=np.uint8)
    places = offsets[:-1]  # (nodes,), positions of the nodes of this level
    lengths = _subtree_lengths(levels)
    for level, argument_lengths in zip(levels, [*lengths[1:], np.empty(0, np.int64)], strict=True):
        tokens[places] = level.tokens
        if len(level.num_args):
            # An argument stands behind its operator and behind the subtrees of earlier arguments of that operator.
            # `before` sums the subtrees of all earlier arguments of the level; less its value at the operator's first
            # argument, it is the sum over that operator's alone.
            before = np.cumsum(argument_lengths) - argument_lengths  # (arguments,)
            first_place = places[level.is_operator] + 1
            places = before + np.repeat(first_place - before[_first_arguments(level)], level.num_args)
    return tokens


def _subtree_lengths(levels: list[Level]) -> list[Integers]:
    """Return the tokens that each node's subtree takes, by level: a digit 1, an operator 2 and its arguments."""
    lengths: list[Integers] = []
    for level in reversed(levels):
        of_level = np.ones(len(level.tokens), dtype=np.int64)
        if len(level.num_args):
            of_level[level.is_operator] = 2 + np.add.reduceat(lengths[-1], _first_arguments(level))
        lengths.append(of_level)
    return lengths[::-1]


def _evaluate(levels: list[Level]) -> Bytes:
    """Return the value of every root: (trees,)."""
    values = np.empty(0, dtype=np.uint8)
    for level in reversed(levels):
        # Right for digits; operators, which wrap around below zero, are overwritten.
        arguments, values = values, level.tokens - np.uint8(DIGIT_0)
        if len(level.num_args):
            values[level.is_operator] = _apply(level.tokens[level.is_operator], level, arguments)
    return values


def _apply(kinds: Bytes, level: Level, arguments: Bytes) -> Bytes:
    """Apply each operator to its arguments: (operators,)."""
    # `reduceat` reduces from one index to the next: arguments of an operator stand together, with nothing in between.
    # Each reduction runs over all operators, and those of its kind take the result.
    first = _first_arguments(level)
    results = np.minimum.reduceat(arguments, first)
    is_kind = kinds == MAX
    results[is_kind] = np.maximum.reduceat(arguments, first)[is_kind]
    is_kind = kinds == SM
    results[is_kind] = np.add.reduceat(arguments, first, dtype=np.uint16)[is_kind] % 10  # sums exceed uint8
    is_kind = kinds == MED
    if is_kind.any():
        results[is_kind] = _medians(arguments, first[is_kind], level.num_args[is_kind])
    return results


def _medians(arguments: Bytes, first: Integers, num_args: Integers) -> Bytes:
    """Return int(median) of each run of arguments; of an even count, the mean of the middle two, cut to an integer."""
    # A table (operators, most arguments) with 255 behind the arguments, where sorting leaves it. Indices past the end
    # of the level are clipped; what they read is masked.
    column = np.arange(num_args.max())
    places = np.minimum(first[:, None] + column, len(arguments) - 1)
    table = np.where(column < num_args[:, None], arguments[places], np.uint8(255))
    table.sort(axis=1)
    row = np.arange(len(first))
    # The sum of two digits does not exceed uint8.
    return (table[row, (num_args - 1) // 2] + table[row, num_args // 2]) // 2


def _first_arguments(level: Level) -> Integers:
    """Return where the arguments of each operator begin on the next level: (operators,)."""
    return np.cumsum(level.num_args) - level.num_args
