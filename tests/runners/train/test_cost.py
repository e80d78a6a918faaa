"""What a record says of the cost of its run."""

import pytest
import torch

import runners.train.cost
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import PretrainConfig
from lra.tasks import get_task
from runners.train.cost import examples_to_score, flops_of_example

CPU = torch.device("cpu")
LENGTH, DIM, MLP, HIDDEN = 24, 16, 32, 128


def config(layers, variant="full"):
    sizes = {
        "data.min_length": 4, "data.max_length": LENGTH, "model.max_length": LENGTH, "model.dim": DIM,
        "model.mlp_dim": MLP, "model.num_heads": 2, "model.num_layers": layers, "model.head_hidden": HIDDEN,
    }  # fmt: skip
    return resolve(
        task="listops", variant=variant, profile=load_profile("quick"), seed=0, track="open", overrides=sizes
    )


@pytest.mark.parametrize("layers", [1, 3])
def test_flops_of_full_attention_are_those_of_its_matrix_products(layers):
    linear = layers * 2 * LENGTH * (4 * DIM * DIM + 2 * DIM * MLP) + 2 * (DIM * HIDDEN + HIDDEN * 10)
    attention = layers * 2 * 2 * LENGTH * LENGTH * DIM
    # Two products in the backward pass for one of the forward pass; the fused kernel has five for its two.
    assert flops_of_example(config(layers), get_task("listops").info, CPU) == 3 * linear + attention + attention * 5 / 2


def test_pooling_costs_something_and_is_counted():
    info = get_task("listops").info
    full, pooled = (flops_of_example(config(1, name), info, CPU) for name in ("full", "contextpool"))
    assert full < pooled < 1.5 * full


def test_a_count_that_fails_is_missing_not_zero(monkeypatch):
    def refuse(run):
        run()
        raise NotImplementedError("no formula, no kernel")

    monkeypatch.setattr(runners.train.cost, "count_flops", refuse)
    assert flops_of_example(config(1), get_task("listops").info, CPU) is None


@pytest.mark.parametrize(
    ("steps", "eval_every", "step", "validations"),
    [(10, 5, 0, 2), (10, 5, 5, 2), (10, 5, 6, 1), (10, 5, 10, 1), (12, 5, 0, 3), (12, 5, 11, 1), (12, 5, 12, 1)],
)
def test_examples_to_score_are_the_validations_due_the_check_and_the_test(steps, eval_every, step, validations):
    train = config(1).train.model_copy(update={"steps": steps, "eval_every": eval_every})
    run = config(1).model_copy(update={"train": train})
    assert examples_to_score(run, step, 1000, 7) == (validations + 1) * 1000 + 7


@pytest.mark.parametrize(("step", "validations"), [(0, 4), (4, 4), (5, 3), (6, 2), (10, 2), (11, 1), (12, 1)])
def test_the_end_of_pretraining_is_scored_too(step, validations):
    train = config(1).train.model_copy(update={"steps": 12, "eval_every": 5})
    own = PretrainConfig(share=0.33, mask_rate=0.1, loss="cross_entropy")  # 4 of 12 steps
    run = config(1).model_copy(update={"train": train, "pretrain": own})
    assert examples_to_score(run, step, 1000, 7) == (validations + 1) * 1000 + 7
