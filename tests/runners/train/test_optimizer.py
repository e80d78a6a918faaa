"""The optimiser has every parameter, and the settings of the run."""

import pytest
import torch

from attention_zoo import ParameterGroup
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


KINDS = ["biases", "embeddings", "norms", "state_space"]


def decays(variant, **overrides):
    """Return the weight decay of each parameter by name."""
    config = tiny(variant, **{"train.weight_decay": 0.25} | overrides)
    model = build_model(config, 16, 10)
    held = {id(p): g["weight_decay"] for g in build_optimizer(model, config).param_groups for p in g["params"]}
    return {name: held[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "ends"),
    [
        ("biases", (".bias",)),
        ("embeddings", ("embedding.tokens.weight", "embedding.positions", "embedding.cls")),
        ("norms", ("norm.weight", "norm.bias")),
        ("state_space", (".log_step", ".log_decay", ".frequency")),
    ],
)
@pytest.mark.parametrize("norm", ["layer", "batch", "rms"])
def test_a_recipe_exempts_kinds_of_parameters_from_weight_decay(kind, ends, norm):
    sizes = {"model.norm": norm, "model.positions": "learned", "model.pooling": "cls"}
    found = decays("s4d", **{"train.undecayed": [kind]} | sizes)
    exempt = {name for name, decay in found.items() if decay == 0.0}
    wanted = {name for name in found if name.endswith(ends)}
    if kind == "biases":  # those of norms are norms
        wanted = {name for name in wanted if "norm" not in name}
    assert wanted
    assert exempt == wanted
    assert {decay for name, decay in found.items() if name not in wanted} == {0.25}


def test_all_kinds_together_leave_the_matrices_and_none_leaves_nothing():
    found = decays("full", **{"train.undecayed": KINDS})
    assert {name for name, decay in found.items() if decay} == {
        name for name in found if name.endswith(".weight") and "norm" not in name and "embedding" not in name
    }
    assert set(decays("s4d").values()) == {0.25}


@pytest.mark.parametrize("variant", ["s4d", "s5", "lru", "mamba", "contextpool"])
def test_the_recurrence_has_the_rate_of_the_recipe(variant):
    options = {"variant.base": "s4d"} if variant == "contextpool" else {}
    config = tiny(variant, **options, **{"train.lr": 1e-2, "train.state_space_lr": 1e-3})
    model = build_model(config, 16, 10)
    held = {id(p): g["lr_scale"] for g in build_optimizer(model, config).param_groups for p in g["params"]}
    slow = {name for name, p in model.named_parameters() if held[id(p)] == pytest.approx(0.1)}
    mixer = model.blocks[0].mixer
    assert slow == {f"blocks.0.mixer.{name}" for name in mixer.parameter_groups()}
    assert 2 <= len(slow) < len(list(mixer.parameters()))
    assert set(held.values()) == {1.0, 1e-3 / 1e-2}


def test_a_variant_may_be_without_decay_and_may_not_name_what_it_has_not(model, monkeypatch):
    group = ParameterGroup(decay=0.0)
    monkeypatch.setattr(type(model.blocks[0].mixer), "parameter_groups", lambda self: {"span.fraction": group})
    config = tiny("adaptive_span", **{"train.weight_decay": 0.25})
    assert {g["weight_decay"] for g in build_optimizer(model, config).param_groups} == {0.0, 0.25}
    monkeypatch.setattr(type(model.blocks[0].mixer), "parameter_groups", lambda self: {"span.fractoin": group})
    with pytest.raises(KeyError, match="fractoin"):
        build_optimizer(model, config)


def test_the_kinds_have_one_order_so_that_equal_runs_have_one_id():
    one, other = (tiny(**{"train.undecayed": kinds}) for kinds in (KINDS, [*KINDS[::-1], "norms"]))
    assert one == other
    assert one.run_id("d") != tiny().run_id("d")
