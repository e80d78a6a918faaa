import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lra.data.batching import MOST_LENGTHS, POOL_BATCHES, TrainingBatches, collate, evaluation_batches
from lra.data.split import Split

CPU = torch.device("cpu")


def make_split(lengths, seed=0):
    rng = np.random.default_rng(seed)
    lengths = np.asarray(lengths)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return Split(
        tokens=rng.integers(1, 16, offsets[-1], dtype=np.uint8),
        offsets=offsets,
        labels=rng.integers(0, 10, len(lengths), dtype=np.uint8),
    )


def batches(split, batch_size=4, seed=0, padded_length=None):
    return TrainingBatches(split, batch_size=batch_size, seed=seed, padded_length=padded_length, limit=64)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 700), batch_size=st.integers(1, 9), seed=st.integers(0, 3), fixed=st.booleans())
def test_every_example_comes_once_per_epoch(n, batch_size, seed, fixed):
    split = make_split(np.random.default_rng(seed).integers(1, 64, n))
    stream = batches(split, batch_size, seed, 64 if fixed else None)
    pools = -(-2 * n // (POOL_BATCHES * batch_size))
    seen = np.concatenate([stream.indices(step) for step in range(pools * POOL_BATCHES)])
    full_epochs, rest = divmod(len(seen), n)
    counts = np.bincount(seen, minlength=n)
    assert full_epochs >= 2
    assert counts.min() >= full_epochs
    assert counts.max() <= full_epochs + (rest > 0)


def test_a_batch_is_a_function_of_seed_and_step_alone():
    split = make_split(np.random.default_rng(1).integers(1, 64, 300))
    in_order = batches(split)
    expected = [in_order.indices(step) for step in range(200)]
    jumping = batches(split)
    for step in (150, 3, 199, 64, 0):
        assert np.array_equal(jumping.indices(step), expected[step])
    assert not np.array_equal(batches(split, seed=1).indices(0), expected[0])
    epochs = [np.concatenate(expected[e * 75 : (e + 1) * 75]) for e in range(2)]
    assert not np.array_equal(epochs[0], epochs[1])


def test_which_examples_share_a_pool_is_drawn_anew_for_every_seed_and_epoch():
    """Not only the order of batches within a pool, which has a stream of its own."""
    size = 4 * POOL_BATCHES
    split = make_split(np.random.default_rng(1).integers(1, 64, 2 * size))

    def pool(seed, number):
        stream = batches(split, seed=seed)
        return {int(i) for step in range(POOL_BATCHES) for i in stream.indices(number * POOL_BATCHES + step)}

    first, of_the_next_epoch, of_another_seed = pool(0, 0), pool(0, 2), pool(1, 0)
    assert len(first) == size
    assert first | pool(0, 1) == set(range(2 * size))
    for other in (of_the_next_epoch, of_another_seed):
        assert 0.4 * size < len(first & other) < 0.6 * size  # half of them by chance


@pytest.mark.parametrize("limit", [16, 64, 100, 4096])
def test_coarse_lengths_are_few_and_either_all_batches_have_a_mask_or_none(limit):
    for shortest in (1, limit):
        split = make_split(np.random.default_rng(2).integers(shortest, limit + 1, 600))
        stream = TrainingBatches(split, batch_size=4, seed=0, padded_length=None, limit=limit, coarse=True)
        made = [stream.batch(step, CPU) for step in range(150)]
        lengths = {batch.tokens.shape[1] for batch in made}
        assert len(lengths) <= MOST_LENGTHS
        assert max(lengths) <= limit
        assert {batch.mask is None for batch in made} == {shortest == limit}
        for step, batch in enumerate(made):
            for row, index in enumerate(stream.indices(step)):
                assert np.array_equal(batch.tokens[row, : batch.lengths[row]].numpy(), split.tokens_of(index))


def test_bucketing_pads_far_less_and_loses_nothing():
    split = make_split(np.random.default_rng(2).integers(1, 64, 4096))
    bucketed, fixed = batches(split, 32), batches(split, 32, padded_length=64)
    padded = {}
    for name, stream in (("bucketed", bucketed), ("fixed", fixed)):
        made = [stream.batch(step, CPU) for step in range(POOL_BATCHES)]
        padded[name] = sum(batch.tokens.numel() for batch in made)
        for step, batch in enumerate(made):
            for row, index in enumerate(stream.indices(step)):
                kept = batch.tokens[row] if batch.mask is None else batch.tokens[row][batch.mask[row]]
                assert np.array_equal(kept.numpy(), split.tokens_of(index))
                assert batch.labels[row] == split.labels[index]
    assert padded["bucketed"] < 0.7 * padded["fixed"]


def test_the_mask_is_dropped_exactly_when_nothing_is_padded():
    split = make_split([8, 8, 5])
    assert collate(split, [0, 1], None, 64, CPU).mask is None
    batch = collate(split, [0, 2], None, 64, CPU)
    assert batch.mask.tolist() == [[True] * 8, [True] * 5 + [False] * 3]
    assert batch.tokens[1, 5:].tolist() == [0, 0, 0]
    assert batch.num_tokens == 13
    assert collate(split, [2], None, 6, CPU).tokens.shape == (1, 6)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_parts_are_the_batch(count):
    batch = collate(make_split([3, 9, 4, 7, 1]), range(5), None, 64, CPU)
    parts = list(batch.parts(count))
    assert len(parts) == min(count, 5)
    assert torch.equal(torch.cat([part.tokens for part in parts]), batch.tokens)
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    assert sum(part.num_tokens for part in parts) == batch.num_tokens == 24


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 200), max_tokens=st.integers(1, 2000), fixed=st.booleans())
def test_evaluation_covers_the_split_once(n, max_tokens, fixed):
    split = make_split(np.random.default_rng(n).integers(1, 64, n))
    seen = []
    for indices, batch in evaluation_batches(
        split, max_tokens=max_tokens, padded_length=64 if fixed else None, limit=64, device=CPU
    ):
        assert len(indices) == 1 or batch.tokens.numel() <= max_tokens
        seen.append(indices)
    assert sorted(np.concatenate(seen)) == list(range(n))
