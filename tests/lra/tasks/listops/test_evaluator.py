"""The two evaluators of ListOps, and the layout of tokens, against plain recursion."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lra.tasks.listops import generator
from lra.tasks.listops.evaluator import MALFORMED, tree_values
from lra.tasks.listops.vocabulary import MAX, MED, MIN, SM, WORDS
from tests.lra.tasks.listops.naive import flat, levels_of, naive_tokens, naive_value

trees = st.recursive(
    st.integers(0, 9),
    lambda inner: st.tuples(st.sampled_from([MIN, MAX, MED, SM]), st.lists(inner, min_size=2, max_size=10)),
    max_leaves=60,
)


@settings(deadline=None, max_examples=50)
@given(st.lists(trees, min_size=1, max_size=6))
def test_both_evaluators_and_the_layout_agree_with_recursion(some_trees):
    tokens, offsets = flat([naive_tokens(tree) for tree in some_trees])
    expected = [naive_value(tree) for tree in some_trees]
    levels = levels_of(some_trees)
    np.testing.assert_array_equal(tree_values(tokens, offsets), expected)
    np.testing.assert_array_equal(generator._evaluate(levels), expected)
    np.testing.assert_array_equal(generator._lay_out(levels, offsets), tokens)


@pytest.mark.parametrize(
    ("arguments", "median"),
    [
        ([1, 2], 1),
        ([9, 0], 4),
        ([0, 1, 1, 9], 1),
        ([3, 4, 5, 6], 4),
        ([7, 1, 8], 7),
        ([2, 9, 9, 3, 8, 8], 8),
        ([5, 5], 5),
    ],
)
def test_median_of_an_even_count_is_cut_to_an_integer(arguments, median):
    tree = (MED, arguments)
    tokens, offsets = flat([naive_tokens(tree)])
    assert tree_values(tokens, offsets).tolist() == generator._evaluate(levels_of([tree])).tolist() == [median]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "]",
        "[MIN ]",
        "[MIN 1",
        "[MIN 1 ] 2",
        "[MIN 1 ] ]",
        "1 2",
        "[MAX 1 2 ] [MAX 1 2 ]",
        "] [MIN 1 2",
        "[MIN 1 ] 2 [MAX 3 ]",
        "[MAX 1 [MIN ] ]",
        "<pad> [MIN 1 2 ]",
    ],
)
def test_what_is_not_one_tree_is_malformed_and_spoils_no_neighbour(text):
    words = [WORDS.index(word) for word in text.split()] or [0]
    tokens, offsets = flat([naive_tokens((SM, [8, 7])), words, naive_tokens((MAX, [2, (MIN, [6, 9])]))])
    assert tree_values(tokens, offsets).tolist() == [5, MALFORMED, 6]
