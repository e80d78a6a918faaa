"""Segments: what is drawn is what is said, and the baselines lie in their order."""

import numpy as np
import pytest

from lra.tasks import PROBES
from lra.tasks.probes.segments import FIRST, MARK, Scores, SegmentsOptions, draw


@pytest.fixture(scope="module")
def options():
    return SegmentsOptions(train=300, validation=300, test=400)


def test_marks_stand_in_segments_of_the_label_one_of_each_scale(options):
    generator = np.random.default_rng(0)
    lengths, starts = set(), set()
    for _ in range(50):
        drawn = draw(options, options.length, generator)
        assert len(drawn.tokens) <= options.length
        assert (np.flatnonzero(drawn.tokens == MARK) == np.sort(drawn.marks)).all()
        assert len(set(drawn.segments[drawn.marks].tolist())) == 3
        sizes = np.bincount(drawn.segments)[drawn.segments[drawn.marks]]
        for size, scale in zip(sizes, options.scales, strict=True):
            assert 0.7 * scale - 1 <= size <= 1.25 * scale + 1
        lengths.add(len(drawn.tokens))
        starts.add(int(np.flatnonzero(np.diff(drawn.segments))[5] % 3))
    assert len(lengths) > 5
    assert len(starts) == 3, "borders lie on a grid"


def test_baselines_lie_in_their_order_and_a_bag_of_tokens_is_near_chance(tmp_path, options):
    data = PROBES["segments"].build(options, tmp_path / "data", source=None, workers=None, progress=False)
    found = data.manifest.baselines
    assert found["oracle"] > found["oracle of scales"] + 5 > found["fixed width"] + 8
    assert found["fixed width"] > 50
    assert found["bag of tokens"] < 25 + 5 * 100 * np.sqrt(0.25 * 0.75 / 400)


def test_scores_are_counts_around_marks(options):
    drawn = draw(options, options.length, np.random.default_rng(3))
    scores = Scores.of(options, [drawn])
    kinds = (drawn.tokens.astype(int) - FIRST) // 3
    for scale, mark in enumerate(drawn.marks):
        window = [kinds[place] for place in range(mark - 2, mark + 3) if 0 <= place < len(kinds)]
        expected = [sum(kind == each for kind in window) for each in range(4)]
        assert scores.counts[0, scale, 1].tolist() == expected
    assert scores.accuracy(np.eye(4)[[drawn.label]]) == 100.0
    assert scores.accuracy(np.ones((1, 4))) == 25.0


def test_classes_are_balanced_at_each_scale(options):
    """Counting tokens says nothing, since each scale has equally many segments of each class."""
    generator = np.random.default_rng(1)
    shares = np.zeros((2, 4))
    for _ in range(300):
        drawn = draw(options, options.length, generator)
        kinds = (drawn.tokens[drawn.tokens != MARK].astype(int) - FIRST) // 3
        counts = np.bincount((kinds - drawn.label) % 4, minlength=4) / len(kinds)
        shares += [counts, counts**2]
    mean, square = shares / 300
    spread = np.sqrt((square - mean**2) / 300)
    assert abs(mean[0] - 0.25) < 5 * spread[0] + 0.005
