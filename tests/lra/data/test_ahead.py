"""Batches made ahead by a thread: the same ones, and nothing of the thread is left or lost."""

import itertools
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch

from lra.data.ahead import DEPTH, Ahead, BatchesAhead, BatchesInTurn
from lra.data.augment import Augmentation
from lra.data.batching import TrainingBatches
from tests.lra.data.test_batching import CPU, make_split


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "batches ahead"]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "never"
        time.sleep(0.001)


def test_items_come_in_order_and_only_a_few_are_made_ahead():
    made = []
    with Ahead(made.append(number) or number for number in range(20)) as items:
        assert next(items) == 0
        wait_for(lambda: len(made) == DEPTH + 1)
        time.sleep(0.05)
        assert len(made) == DEPTH + 1
        assert list(items) == list(range(1, 20))
        assert list(items) == []
    assert threads() == []


def test_an_error_of_the_thread_is_raised_where_its_item_would_have_come():
    def broken():
        yield from (1, 2)
        raise OSError("the disk is gone")

    with Ahead(broken()) as items:
        assert [next(items), next(items)] == [1, 2]
        for _ in range(2):
            with pytest.raises(OSError, match="the disk is gone"):
                next(items)
    assert threads() == []


def test_an_item_may_be_an_error():
    with Ahead([error := ValueError()]) as items:
        assert next(items) is error


def test_an_error_of_the_step_ends_the_thread_at_once():
    with pytest.raises(KeyError), Ahead(itertools.count()):
        raise KeyError
    assert threads() == []


def test_a_signal_ends_the_wait_for_a_thread_that_hangs():
    hangs, began = threading.Event(), time.monotonic()

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt), Ahead(hangs.wait() for _ in range(1)) as items:
            next(items)
        assert time.monotonic() - began < 30
        (thread,) = threads()
        assert thread.daemon  # so the end of the process does not wait for it
    finally:
        signal.signal(signal.SIGALRM, before)
        hangs.set()
    wait_for(lambda: threads() == [])


@pytest.mark.parametrize(("documents", "offset"), [(1, 0), (1, 300)])
def test_batches_are_the_same_bits_whoever_makes_them_and_wherever_they_begin(documents, offset):
    split = make_split(np.random.default_rng(1).integers(1, 64, 300))
    split = type(split)(tokens=split.tokens, offsets=split.offsets, labels=split.labels, token_offset=offset)

    def stream():
        return TrainingBatches(split, batch_size=4, seed=0, padded_length=None, limit=64)

    direct = stream()
    with BatchesAhead(stream(), CPU) as ahead:
        for step in (*range(70), 3, 4, 150, 151):
            ours, theirs = ahead.batch(step, CPU), direct.batch(step, CPU)
            for name in ("tokens", "mask", "labels"):
                one, other = getattr(ours, name), getattr(theirs, name)
                assert (one is None) == (other is None)
                assert one is None or (one.dtype == other.dtype and torch.equal(one, other))
            assert np.array_equal(ours.lengths, theirs.lengths)
        assert len(threads()) == 1
    assert threads() == []


def test_a_change_that_draws_from_the_generators_of_the_process_is_a_function_of_its_step():
    split = make_split(np.random.default_rng(1).integers(8, 64, 100))

    def change(tokens, generator):
        order = list(range(len(tokens)))
        random.shuffle(order)
        return np.roll(tokens[order], np.random.randint(64))  # noqa: NPY002

    def stream():
        augmentation = Augmentation(change=change)
        return TrainingBatches(split, batch_size=4, seed=0, padded_length=None, limit=64, augmentation=augmentation)

    first, again = BatchesInTurn(stream(), 0), BatchesInTurn(stream(), 0)
    wanted = [first.batch(step, CPU).tokens for step in range(4)]
    random.random()
    assert torch.equal(again.batch(3, CPU).tokens, wanted[3])
    assert torch.equal(again.batch(1, CPU).tokens, wanted[1])
    assert not torch.equal(BatchesInTurn(stream(), 1).batch(3, CPU).tokens, wanted[3])
