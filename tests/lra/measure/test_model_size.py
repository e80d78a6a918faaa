"""The operations of one example, counted on a model of a configuration."""

import pytest
import torch

import lra.measure.model_size
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.measure.model_size import flops_of_example
from lra.tasks import get_task

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

    monkeypatch.setattr(lra.measure.model_size, "count_flops", refuse)
    assert flops_of_example(config(1), get_task("listops").info, CPU) is None
