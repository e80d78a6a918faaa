"""ListOps by plain recursion, to hold the real generator and evaluators against."""

import random

import numpy as np

from lra.tasks.listops.generator import Level, generate_chunk
from lra.tasks.listops.vocabulary import CLOSE, DIGIT_0, MAX, MED, MIN, SM

# A tree is a digit, or a tuple (operator, [trees]).


def naive_tree(rng, grammar, depth=1):
    if depth == grammar.max_depth or rng.random() > grammar.operator_probability:
        return rng.randrange(10)
    arguments = [naive_tree(rng, grammar, depth + 1) for _ in range(rng.randint(2, grammar.max_args))]
    return (rng.choice([MIN, MAX, MED, SM]), arguments)


def naive_tokens(tree):
    if isinstance(tree, int):
        return [DIGIT_0 + tree]
    return [tree[0], *(token for argument in tree[1] for token in naive_tokens(argument)), CLOSE]


def naive_value(tree):
    if isinstance(tree, int):
        return tree
    values = [naive_value(argument) for argument in tree[1]]
    return {MIN: min, MAX: max, MED: lambda v: int(np.median(v)), SM: lambda v: sum(v) % 10}[tree[0]](values)


def naive_examples(grammar, count, seed):
    rng, examples = random.Random(seed), []
    while len(examples) < count:
        tree = naive_tree(rng, grammar)
        if isinstance(tree, tuple):
            tokens = naive_tokens(tree)
            if grammar.min_length <= len(tokens) <= grammar.max_length:
                examples.append((tokens, naive_value(tree)))
    return examples


def our_examples(grammar, chunks, seed=0):
    examples = []
    for number in range(chunks):
        chunk = generate_chunk(seed, number, grammar)
        pieces = np.split(chunk.tokens, chunk.offsets[1:-1])
        examples += [(piece.tolist(), int(label)) for piece, label in zip(pieces, chunk.labels, strict=True)]
    return examples


def levels_of(trees):
    """Lay trees out as the generator does: one `Level` per depth."""
    levels, nodes = [], list(trees)
    while nodes:
        operators = [node for node in nodes if isinstance(node, tuple)]
        levels.append(
            Level(
                tokens=np.array([n[0] if isinstance(n, tuple) else DIGIT_0 + n for n in nodes], dtype=np.uint8),
                is_operator=np.array([isinstance(node, tuple) for node in nodes]),
                num_args=np.array([len(node[1]) for node in operators], dtype=np.int64),
            )
        )
        nodes = [argument for node in operators for argument in node[1]]
    return levels


def flat(sequences):
    offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in sequences])])
    return np.array([token for tokens in sequences for token in tokens], dtype=np.uint8), offsets
