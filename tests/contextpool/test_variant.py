"""The variants `contextpool` and `contextpool_conv_only`, beyond the checks that every variant passes."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from attention_zoo import LayerDims, OptionError, VariantSpec, get_variant
from attention_zoo.checks import contract_checks
from attention_zoo.checks.helpers import with_options

DIMS = LayerDims(dim=16, num_heads=2, max_length=80)
POOL, CONTROL = get_variant("contextpool"), get_variant("contextpool_conv_only")


class SecondBlock(VariantSpec):
    """A variant whose checks build it as the second block of a model."""

    def build(self, config, dims):
        return VariantSpec.build(self, config, replace(dims, layer=1))


def build(spec, options=None, dims=DIMS, seed=0):
    torch.manual_seed(seed)
    return spec.build(spec.config.from_dict(options or {}), dims).double().eval()


def tokens(length=80):
    return torch.randn(2, length, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def second_block(spec):
    return SecondBlock(
        name=spec.name, mixer=spec.mixer, config=spec.config, traits=spec.traits, title=spec.title, paper=spec.paper
    )


SETTINGS = {
    "stream": with_options(second_block(POOL), {"placement": "stream"}),
    "control-stream": with_options(second_block(CONTROL), {"placement": "stream"}),
    "bare-sum": with_options(POOL, {"normalized": False, "weights": "sigmoid", "kernel_size": 5}),
    "over-conv": with_options(POOL, {"base": "conv", "base_options": {"kernel_size": 3}}),
}
NIGHTLY = {"control-stream", "bare-sum", "over-conv"}
SLOW = {"backends", "exact_limit"}  # do not depend on these settings
CASES = [
    pytest.param(run, id=f"{setting}-{name}", marks=pytest.mark.nightly if setting in NIGHTLY else ())
    for setting, spec in SETTINGS.items()
    for name, run in contract_checks(spec)
    if name not in SLOW
]


@pytest.mark.parametrize("run", CASES)
def test_contract_in_other_settings(run: Callable[[], None]):
    run()


def test_the_cases_were_found():
    assert len(CASES) == 92


@pytest.mark.parametrize("options", [{}, {"placement": "stream"}, {"hidden": 8, "kernel_size": 5}, {"base": "local"}])
@pytest.mark.parametrize("layer", [0, 1])
def test_control_has_the_same_parameters(options, layer):
    dims = replace(DIMS, layer=layer)
    shapes = [
        {name: tuple(p.shape) for name, p in build(spec, options, dims).named_parameters()} for spec in (POOL, CONTROL)
    ]
    assert shapes[0] == shapes[1]
    pooled = not (options.get("placement") == "stream" and layer == 0)
    assert any(name.startswith("front.predictor.") for name in shapes[0]) == pooled


def test_branch_pools_what_the_base_reads_and_leaves_the_stream():
    mixer, x = build(POOL), tokens()
    assert mixer.transform_stream(x, None) is x
    assert torch.equal(mixer(x), mixer.base(mixer.front(x)))
    assert not torch.allclose(mixer(x), mixer.base(x))


def test_stream_pools_the_stream_before_every_block_but_the_first():
    x = tokens()
    first = build(POOL, {"placement": "stream"})
    assert first.front is None
    assert first.transform_stream(x, None) is x
    assert first.statistics() == {}
    second = build(POOL, {"placement": "stream"}, replace(DIMS, layer=1))
    assert torch.equal(second.transform_stream(x, None), second.front(x))
    assert not torch.allclose(second.transform_stream(x, None), x)
    assert torch.equal(second(x), second.base(x))


@pytest.mark.parametrize("base", ["full", "local", "conv", "mlp_only"])
@pytest.mark.parametrize("placement", ["branch", "stream"])
def test_a_vanishing_width_leaves_the_base(base, placement):
    options = {"sigma": "fixed", "initial_sigma": 0.05, "base": base, "placement": placement}
    mixer, x = build(POOL, options, replace(DIMS, layer=1)), tokens()
    mask = torch.rand(2, 80, generator=torch.Generator().manual_seed(0)) > 0.3
    assert torch.allclose(mixer(mixer.transform_stream(x, mask), mask)[mask], mixer.base(x, mask)[mask], atol=1e-12)


def test_hooks_of_the_base_are_passed_on():
    for spec in (POOL, CONTROL):
        options = {"base": "adaptive_span", "base_options": {"initial_span": 0.5}}
        mixer = build(spec, options, replace(DIMS, dropout=0.1)).train()
        mixer(tokens())
        assert torch.equal(mixer.auxiliary_loss(), mixer.base.auxiliary_loss())
        groups = mixer.parameter_groups()
        assert groups
        assert groups.keys() <= dict(mixer.named_parameters()).keys()
        assert "span_mean" in mixer.statistics()
        assert ("sigma_mean" in mixer.statistics()) == (spec is POOL)
        with torch.no_grad():
            mixer.base.span.fraction.fill_(2.0)
        mixer.after_step()
        assert mixer.base.span.fraction.max() == 1.0
        assert "banded" in mixer.resolved_backend(torch.device("cpu"))


def test_the_record_names_both_implementations():
    mixer = build(POOL, {"backend": "dense", "base_options": {"backend": "blockwise"}})
    assert mixer.resolved_backend(torch.device("cpu")) == "dense + blockwise"


@pytest.mark.parametrize(("num_prefix", "pooling"), [(0, "pyramid"), (1, "dense")])
def test_the_record_names_the_pooling_of_the_tokens_without_the_prefix(num_prefix, pooling):
    mixer = build(POOL, dims=replace(DIMS, max_length=385, num_prefix=num_prefix))
    assert mixer.resolved_backend(torch.device("cpu")).startswith(f"{pooling} + ")


def test_options_reach_the_base():
    mixer = build(POOL, {"base": "local", "base_options": {"window": 8}, "rotary": True})
    assert (mixer.base.config.window, mixer.base.config.rotary) == (8, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "ful"}, "did you mean 'full'"),
        ({"base_options": {"windw": 3}}, "base_options of full: windw: unknown option"),
        ({"base": "local", "base_options": {"windw": 3}}, "did you mean 'window'"),
        ({"base": "mlp_only", "rotary": True}, "rotary: mlp_only has no"),
        ({"kernel_size": 4}, "odd"),
        ({"placement": "middle"}, "placement: expected"),
        ({"sigmaa": "fixed"}, "did you mean 'sigma'"),
    ],
)
def test_wrong_options_are_one_clear_line(options, message):
    with pytest.raises(OptionError, match=message):
        POOL.config.from_dict(options)


def test_causal_needs_a_causal_base():
    with pytest.raises(ValueError, match="causal"):
        build(POOL, {"base": "linformer"}, replace(DIMS, causal=True))


def test_control_passes_on_no_features_of_neighbours():
    """A gate mixes two numbers about the neighbours into a token, pooling mixes in all their features."""
    ranks = {}
    x = tokens(12)[:1]
    for spec in (POOL, CONTROL):
        front = build(spec, {"initial_sigma": 3.0, "sigma_fraction": 1.0} if spec is POOL else {}).front
        with torch.no_grad():
            for parameter in front.parameters():
                parameter += 0.1
        jacobian = torch.autograd.functional.jacobian(front, x)[0, 5, :, 0, 6]
        ranks[spec.name] = int(torch.linalg.matrix_rank(jacobian, rtol=1e-9))
    assert ranks == {"contextpool": 16, "contextpool_conv_only": 2}


def test_control_starts_near_the_identity():
    front, x = build(CONTROL).front, tokens()
    assert (front(x) / x - 1.0).abs().max() < 0.5
    torch.nn.init.zeros_(front.predictor.outer.weight)
    assert torch.equal(front(x), x)


@pytest.mark.parametrize("spec", [POOL, CONTROL], ids=lambda spec: spec.name)
def test_grid_is_used_only_on_request(spec):
    dims = LayerDims(dim=16, num_heads=2, max_length=81, grid=(8, 10), num_prefix=1)
    x = tokens(81)
    flat, planar = build(spec, {}, dims), build(spec, {"grid": "auto"}, dims)
    assert flat.front.predictor.inner.weight.dim() == 3
    assert planar.front.predictor.inner.weight.dim() == 4
    gradient = {}
    for name, mixer in (("flat", flat), ("planar", planar)):
        leaf = x.clone().requires_grad_()
        mixer.front(leaf)[:, 1 + 35].sum().backward()
        gradient[name] = leaf.grad[0, 1:].abs().sum(dim=1).view(8, 10)
    assert gradient["planar"][2, 5] > 1e-6  # the pixel above
    assert gradient["flat"][2, 5] < 1e-6
    assert "dense" in planar.resolved_backend(x.device) or spec is CONTROL
    assert build(spec, {"grid": "auto"}).front.predictor.inner.weight.dim() == 3  # no image, no grid


@pytest.mark.parametrize("spec", [POOL, CONTROL], ids=lambda spec: spec.name)
def test_one_seed_gives_the_base_the_weights_it_has_alone(spec):
    alone = build(get_variant("full"), seed=3).state_dict()
    assert alone
    inside = build(spec, seed=3).base.state_dict()
    assert all(torch.equal(inside[name], value) for name, value in alone.items())


@pytest.mark.parametrize(
    "same",
    [
        [{"base": "local"}, {"base": "Local"}, {"base": "local", "base_options": {"window": 50}}],
        [{"rotary": True}, {"base_options": {"rotary": True}}, {"rotary": True, "base_options": {"rotary": False}}],
        [
            {"base": "adaptive_span", "base_options": {"penalty": 1}},
            {"base": "adaptive_span", "base_options": {"penalty": 1.0}},
        ],
    ],
)
def test_one_model_has_one_set_of_options(same):
    config = get_variant("contextpool").config
    written = [json.dumps(config.from_dict(options).to_dict(), sort_keys=True) for options in same]
    assert len(set(written)) == 1
    assert written[0] != json.dumps(config().to_dict(), sort_keys=True)


def test_a_default_of_a_base_in_a_file_that_is_written_out_is_no_second_run(tmp_path):
    """Whatever the annotation makes of a list, which is what a file or an option of a command gives."""
    (tmp_path / "my.py").write_text(
        "from collections.abc import Sequence\nfrom dataclasses import dataclass\nfrom typing import Any\n"
        "from attention_zoo import SequenceMixer, VariantConfig, option\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Config(VariantConfig):\n"
        "    widths: Sequence[int] = option((8, 16), '')\n    others: Any = option((1, (2, 3)), '')\n"
        "    switch: Any = option((1, 2), '')\n"
        "class A(SequenceMixer):\n"
        "    def __init__(self, config: Config, dims):\n        super().__init__(config, dims)\n"
        "    def forward(self, x, mask=None):\n        return x\n"
    )
    config = get_variant("contextpool").config
    written = {"widths": [8, 16], "others": [1, [2, 3]]}
    found = [config.from_dict({"base": f"{tmp_path}/my.py:A", "base_options": given}) for given in ({}, written)]
    assert [each.to_dict()["base_options"] for each in found] == [{}, {}]
    for other in ([True, 2], {"a": True}):  # True equals 1 in Python
        options = config.from_dict({"base": f"{tmp_path}/my.py:A", "base_options": {"switch": other}}).to_dict()
        assert repr(options["base_options"]) == repr({"switch": other})


def test_an_option_of_a_base_that_is_called_rotary_and_is_no_switch_keeps_its_value(tmp_path):
    (tmp_path / "my.py").write_text(
        "from torch import nn\nclass A(nn.Identity):\n    def __init__(self, dim, rotary=None):\n"
        "        super().__init__()\n"
    )
    config = get_variant("contextpool").config
    found = config.from_dict({"base": f"{tmp_path}/my.py:A", "base_options": {"rotary": 32}})
    assert (found.rotary, found.base_options) == (False, {"rotary": 32})
    with pytest.raises(OptionError, match="has no rotary positions"):
        config.from_dict({"base": f"{tmp_path}/my.py:A", "rotary": True})
    (tmp_path / "on.py").write_text((tmp_path / "my.py").read_text().replace("rotary=None", "rotary=True"))
    off = config.from_dict({"base": f"{tmp_path}/on.py:A", "base_options": {"rotary": False}})
    assert (off.rotary, off.base_config().rotary) == (False, False)
    assert config.from_dict({"base": f"{tmp_path}/on.py:A"}).base_config().rotary is True
