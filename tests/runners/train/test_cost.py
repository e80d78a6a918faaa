"""What is left to score of a run."""

import pytest

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import PretrainConfig
from runners.train.cost import examples_to_score

CONFIG = resolve(task="listops", variant="full", profile=load_profile("quick"), seed=0, track="open", overrides={})


@pytest.mark.parametrize(
    ("steps", "eval_every", "step", "validations"),
    [(10, 5, 0, 2), (10, 5, 5, 2), (10, 5, 6, 1), (10, 5, 10, 1), (12, 5, 0, 3), (12, 5, 11, 1), (12, 5, 12, 1)],
)
def test_examples_to_score_are_the_validations_due_the_check_and_the_test(steps, eval_every, step, validations):
    train = CONFIG.train.model_copy(update={"steps": steps, "eval_every": eval_every})
    run = CONFIG.model_copy(update={"train": train})
    assert examples_to_score(run, step, 1000, 7) == (validations + 1) * 1000 + 7


@pytest.mark.parametrize(("step", "validations"), [(0, 4), (4, 4), (5, 3), (6, 2), (10, 2), (11, 1), (12, 1)])
def test_the_end_of_pretraining_is_scored_too(step, validations):
    train = CONFIG.train.model_copy(update={"steps": 12, "eval_every": 5})
    own = PretrainConfig(share=0.33, mask_rate=0.1, loss="cross_entropy")  # 4 of 12 steps
    run = CONFIG.model_copy(update={"train": train, "pretrain": own})
    assert examples_to_score(run, step, 1000, 7) == (validations + 1) * 1000 + 7
