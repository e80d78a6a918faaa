"""Chunks and corpora of ListOps: functions of the seed alone, checked as they are made, distinct."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from lra.errors import LraError, UsageError
from lra.tasks.listops import generator
from lra.tasks.listops.corpus import SERIAL_CHUNKS, generate_examples
from lra.tasks.listops.generator import Grammar, generate_chunk
from lra.tasks.listops.vocabulary import CLOSE, DIGIT_0, IDS, MAX, MED, MIN, SM, VOCAB_SIZE, WORDS, render
from tests.lra.tasks.listops.naive import naive_tokens

ROOT = Path(__file__).resolve().parents[4]
OFFICIAL = Grammar()
SHORT = Grammar(min_length=11, max_length=63, max_depth=4, max_args=5)


def test_a_chunk_is_a_function_of_seed_and_number():
    first = generate_chunk(3, 1, SHORT)
    again, other_chunk, other_seed = (
        generate_chunk(3, 1, SHORT),
        generate_chunk(3, 2, SHORT),
        generate_chunk(4, 1, SHORT),
    )
    assert first.tokens.tobytes() == again.tokens.tobytes()
    assert first.tokens.tobytes() not in (other_chunk.tokens.tobytes(), other_seed.tokens.tobytes())


def test_the_bytes_of_a_seed_stay_as_they_are():
    """A change here breaks everybody's prepared data: raise `generator.VERSION` and the task's version with it."""
    chunk = generate_chunk(0, 0, OFFICIAL)
    digest = hashlib.sha256(chunk.tokens.tobytes() + chunk.labels.tobytes()).hexdigest()
    assert (generator.VERSION, digest[:16]) == (1, "bbf849a09b396097")


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("_medians", lambda arguments, first, num_args: arguments[first]),
        ("_subtree_lengths", lambda levels: [np.full(len(level.tokens), 2) for level in levels]),
        ("_evaluate", lambda levels: np.zeros(len(levels[0].tokens), np.uint8)),
    ],
)
def test_a_fault_in_the_generator_is_caught_at_build(monkeypatch, name, broken):
    monkeypatch.setattr(generator, name, broken)
    with pytest.raises(LraError, match="two evaluations of a tree differ"):
        generate_chunk(0, 0, SHORT)


def test_examples_do_not_depend_on_the_number_of_workers():
    per_chunk = len(generate_chunk(5, 0, SHORT).labels)
    total = (SERIAL_CHUNKS + 4) * per_chunk  # enough for worker processes to be started
    corpora = [generate_examples(SHORT, total, 5, workers=workers, progress=False) for workers in (1, 2)]
    assert len(corpora[0].labels) == total
    for kind in ("tokens", "offsets", "labels"):
        np.testing.assert_array_equal(getattr(corpora[0], kind), getattr(corpora[1], kind))


def test_examples_are_distinct_down_to_the_last_one():
    """Two levels of at most two arguments are 4 operators on 100 pairs of digits: 400 trees."""
    tiny = Grammar(min_length=4, max_length=4, max_depth=2, max_args=2)
    examples = generate_examples(tiny, 400, 0, workers=1, progress=False)
    assert len(set(map(bytes, np.split(examples.tokens, examples.offsets[1:-1])))) == 400
    with pytest.raises(UsageError, match="only 400 distinct examples, 401"):
        generate_examples(tiny, 401, 0, workers=1, progress=False)


def test_the_vocabulary_is_written_down():
    expected = "<pad> [MIN [MAX [MED [SM ] 0 1 2 3 4 5 6 7 8 9"
    assert " ".join(WORDS) == expected
    assert VOCAB_SIZE == 16
    assert (IDS["[MIN"], IDS["[MAX"], IDS["[MED"], IDS["[SM"], IDS["]"], IDS["0"]) == (
        MIN,
        MAX,
        MED,
        SM,
        CLOSE,
        DIGIT_0,
    )
    assert render([SM, DIGIT_0 + 4, DIGIT_0, CLOSE]) == "[SM 4 0 ]"


def test_longest_possible_is_reached():
    assert Grammar(max_depth=2, max_args=3).longest_possible() == len(naive_tokens((MIN, [1, 2, 3])))
    assert Grammar(max_depth=3, max_args=2).longest_possible() == len(naive_tokens((MIN, [(MIN, [1, 2])] * 2)))


def test_a_chunk_may_have_no_acceptable_tree():
    narrow = Grammar(min_length=1_998, max_length=1_999, max_depth=3, max_args=60)
    chunks = [generate_chunk(0, number, narrow) for number in range(6)]
    sizes = [len(chunk.labels) for chunk in chunks]
    assert 0 in sizes
    assert [len(chunk.offsets) for chunk in chunks] == [size + 1 for size in sizes]
