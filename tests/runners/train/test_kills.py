"""`kill -9` in training and saving: at every step for every variant, and at random moments.

The machinery of checkpoints does not know the variant: 40 kills for two of them and 2 for each other one try it.
"""

import itertools
import multiprocessing
import os
import random
import signal
import time

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from attention_zoo import available
from lra.results.records import Store
from tests.runners.tiny_runs import execute, tiny, tiny_data

CONTEXT = multiprocessing.get_context("fork")
DROPOUT = {"model.dropout": 0.1, "model.attention_dropout": 0.1}
"""Without it a lost random state would change nothing."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


def run_until_killed(config, data, root, steps):
    """Run the cell in a forked child, with a checkpoint after every step, that dies after so many; None: after none."""

    def run():
        taken = itertools.count(1)

        def die(optimizer, arguments, settings):
            if next(taken) == steps:
                os.kill(os.getpid(), signal.SIGKILL)

        register_optimizer_step_post_hook(die)
        execute(config, data, Store(root), lambda: False, checkpoint_seconds=0.0)

    child = CONTEXT.Process(target=run)
    child.start()
    child.join()
    return child.exitcode


THOROUGH = ("contextpool", "full")
SWEEPS = [
    pytest.param("full", 4),
    *(pytest.param(name, 40, marks=pytest.mark.nightly) for name in THOROUGH),
    *(pytest.param(name, 2, marks=pytest.mark.nightly) for name in available() if name not in THOROUGH),
]


@pytest.mark.parametrize(("variant", "steps"), SWEEPS)
def test_killed_at_each_step_every_variant_ends_with_the_same_bits(data, tmp_path, variant, steps):
    config = tiny(variant, **{"train.steps": steps, "train.eval_every": steps // 2} | DROPOUT)
    expected = execute(config, data, Store(tmp_path / "unbroken"))
    store, kills = Store(tmp_path / "killed"), 0
    # From the second on, a child repeats the step whose state was lost and dies after the next, so that there is one
    # kill at every step. The step in the middle is saved before its evaluation, which the next child makes up for.
    while (code := run_until_killed(config, data, store.root, 2 if kills else 1)) != 0:
        assert code == -signal.SIGKILL
        kills += 1
        assert kills <= steps, "no progress"
    assert kills == steps
    record = store.find(expected.run_id)
    assert record.outcome == expected.outcome
    assert record.cost.resumed == steps - 1  # the first died before anything was saved
    curves = [each.arrays(expected.run_id)["curve.train_loss"] for each in (store, Store(tmp_path / "unbroken"))]
    assert curves[0].tolist() == curves[1].tolist()


def test_all_variants_are_killed():
    assert len(available()) >= 39


def test_a_resume_that_forgets_the_optimiser_is_told_apart(data, tmp_path, monkeypatch):
    """The broken twin of the test above."""
    config = tiny(**{"train.steps": 40, "train.eval_every": 20})
    expected = execute(config, data, Store(tmp_path / "unbroken")).outcome
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, state: None)
    assert run_until_killed(config, data, tmp_path / "killed", 5) == -signal.SIGKILL
    assert run_until_killed(config, data, tmp_path / "killed", None) == 0
    assert Store(tmp_path / "killed").find(config.run_id(data.digest)).outcome != expected


@pytest.mark.nightly
def test_sixty_kills_at_random_moments_of_training_and_saving_change_no_bit(data, tmp_path):
    config = tiny(**{"train.steps": 400, "train.eval_every": 100})
    expected = execute(config, data, Store(tmp_path / "unbroken")).outcome
    store, rng, kills = Store(tmp_path / "killed"), random.Random(11), 0
    folder = store.checkpoint_folder(config.run_id(data.digest))

    def newest():
        return max((path.name for path in folder.glob("step-*.pt")), default="")

    while kills < 60:
        before = newest()
        child = CONTEXT.Process(target=execute, args=(config, data, store), kwargs={"checkpoint_seconds": 0.0})
        child.start()
        while newest() == before and child.is_alive():
            time.sleep(0.0005)
        time.sleep(0.003 * rng.random())  # into a step, a write, a rename or the removal of an old one
        child.kill()
        child.join()
        if child.exitcode == 0:
            break  # it was faster than the kill
        kills += 1
    assert kills >= 20
    assert execute(config, data, store).outcome == expected
