# SPDX-License-Identifier: Apache-2.0
"""Another expression of the same value: the arguments of each operator in another order.

All operators of ListOps are symmetric, so no value changes.
"""

from __future__ import annotations

import numpy as np

from lra.data.augment import Tokens
from lra.tasks.listops.vocabulary import CLOSE


def shuffle_arguments(tokens: Tokens, generator: np.random.Generator) -> Tokens:
    """Shuffle the arguments of every operator of one tree: (length,) to (length,)."""
    open_nodes: list[list[list[int]]] = [[]]  # operators that are not closed, each with the arguments so far
    for token in tokens.tolist():
        if token < CLOSE:  # an operator opens its bracket
            open_nodes.append([[token]])
        elif token > CLOSE:
            open_nodes[-1].append([token])
        else:
            operator, *arguments = open_nodes.pop()
            order = generator.permutation(len(arguments)).tolist()
            open_nodes[-1].append([*sum((arguments[number] for number in order), operator), CLOSE])
    ((tree,),) = open_nodes
    return np.array(tree, dtype=tokens.dtype)
