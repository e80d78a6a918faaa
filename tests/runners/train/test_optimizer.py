"""The optimiser has every parameter, and the settings of the run."""

import pytest
import torch

from lra.models.transformer import build_model
from runners.train.optimizer import build_optimizer
from tests.runners.train.test_loop import tiny


@pytest.fixture
def model():
    return build_model(tiny("adaptive_span"), 16, 10)


def test_every_parameter_is_trained_once_and_has_its_rate(model):
    optimizer = build_optimizer(model, tiny("adaptive_span"))
    held = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(held)
    assert held.keys() == {id(p) for p in model.parameters()}
    fast = [name for name, p in model.named_parameters() if held[id(p)] == 10.0]
    assert fast == ["blocks.0.mixer.span.fraction"]
    assert set(held.values()) == {1.0, 10.0}


def test_weights_and_biases_decay_alike(model):
    """As in the benchmark's own trainer. Without a gradient, a step is the decay alone: p (1 - lr * decay)."""
    config = tiny("adaptive_span", **{"train.weight_decay": 0.25, "train.lr": 0.1})
    for parameter in model.parameters():
        torch.nn.init.uniform_(parameter, 1.0, 2.0)
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    build_optimizer(model, config).step()
    assert sum(parameter.dim() == 1 for parameter in model.parameters()) >= 6
    for parameter, old in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), old * (1 - 0.1 * 0.25), rtol=1e-6, atol=0)


def test_the_settings_are_those_of_the_run(model):
    config = tiny("adaptive_span", **{"train.betas": [0.8, 0.95], "train.eps": 1e-6, "train.weight_decay": 0.3})
    optimizer = build_optimizer(model, config)
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.95), 1e-6, 0.3)
