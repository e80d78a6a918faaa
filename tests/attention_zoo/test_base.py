"""Options of a variant and dimensions of a layer: what is accepted, refused and reported."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any, Literal

import pytest
import torch

from attention_zoo import LayerDims, OptionError, VariantConfig, get_variant, option


@dataclass(frozen=True, kw_only=True, slots=True)
class Config(VariantConfig):
    window: int = option(64, "tokens on each side", least=1)
    ramp: float = option(0.5, "width of the ramp", above=0.0, most=9.0)
    shared: bool = option(False, "one span for all heads")
    kind: Literal["static", "dynamic"] = option("static", "how spans are found")
    rank: int | None = option(None, "None takes the window", least=2, below=8, parity="even")


def test_plain_values_become_options():
    options = {"window": 8, "ramp": 1, "shared": True, "kind": "dynamic", "rank": 4}
    config = Config.from_dict(options)
    assert config == Config(window=8, ramp=1.0, shared=True, kind="dynamic", rank=4)
    assert isinstance(config.ramp, float)
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict({}) == Config()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("window", 1.5, "int"),
        ("window", True, "int"),
        ("window", "8", "int"),
        ("ramp", "0.5", "float"),
        ("ramp", True, "float"),
        ("ramp", float("nan"), "float"),
        ("ramp", float("inf"), "float"),
        ("ramp", 10**400, "float"),
        ("shared", 1, "bool"),
        ("kind", "statically", "'static' or 'dynamic'"),
        ("kind", None, "'static' or 'dynamic'"),
        ("rank", "x", "int | None"),
    ],
)
def test_a_wrong_type_is_refused(name, value, expected):
    with pytest.raises(OptionError) as caught:
        Config.from_dict({name: value})
    assert str(caught.value) == f"{name}: expected {expected}, got {value!r}"


def test_an_unknown_name_comes_with_the_closest_one():
    with pytest.raises(OptionError, match="widnow: unknown option; did you mean 'window'"):
        Config.from_dict({"widnow": 8})
    with pytest.raises(OptionError, match="zzz: unknown option; known: kind, ramp, rank, shared, window"):
        Config.from_dict({"zzz": 8})


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(OptionError) as caught:
        Config.from_dict({"widnow": 8, "ramp": "wide", "shared": True, "kind": 3})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["widnow", "ramp", "kind"]


def test_a_refusal_of_the_configuration_itself_is_an_option_error():
    with pytest.raises(OptionError, match="window must be at least 1, got 0"):
        Config.from_dict({"window": 0})


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [
        ("window", 0, "at least 1"),
        ("ramp", 0.0, "above 0.0"),
        ("ramp", 9.1, "at most 9.0"),
        ("ramp", math.nan, "above 0.0"),
        ("rank", 0, "at least 2"),
        ("rank", 8, "below 8"),
        ("rank", 3, "even"),
    ],
)
def test_a_value_out_of_its_range_is_refused(name, value, limit):
    with pytest.raises(ValueError, match=f"^{name} must be {limit}, got {value!r}$"):
        Config(**{name: value})


def test_the_ends_of_a_range_and_none_are_accepted():
    for options in ({"window": 1}, {"ramp": 9.0}, {"rank": 2}, {"rank": 6}, {"rank": None}):
        assert Config(**options).to_dict().items() >= options.items()
    assert get_variant("nystrom").config.from_dict({"conv_kernel": 0}).conv_kernel == 0  # odd, or 0 for none


def test_options_describe_themselves():
    assert Config.describe() == [
        ("window", "int", 64, "tokens on each side"),
        ("ramp", "float", 0.5, "width of the ramp"),
        ("shared", "bool", False, "one span for all heads"),
        ("kind", "'static' or 'dynamic'", "static", "how spans are found"),
        ("rank", "int | None", None, "None takes the window"),
    ]


def test_the_width_of_a_head_follows_from_the_dimensions():
    assert LayerDims(dim=12, num_heads=3, max_length=5).head_dim == 4
    assert LayerDims(dim=12, num_heads=5, max_length=5, head_dim=7).head_dim == 7


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 0},
        {"num_heads": 0},
        {"max_length": 0},
        {"num_heads": 5},
        {"head_dim": -1},
        {"num_prefix": -1},
        {"dropout": 1.0},
        {"dropout": -0.1},
    ],
    ids=str,
)
def test_impossible_dimensions_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be|not a multiple"):
        LayerDims(**{"dim": 12, "num_heads": 3, "max_length": 5, **wrong})


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (torch.zeros(2, 3), None, "x must be"),
        (torch.zeros(2, 3, 9), None, "x must be"),
        (torch.zeros(2, 6, 8), None, "exceeds max_length 5"),
        (torch.zeros(2, 3, 8), torch.ones(2, 4, dtype=torch.bool), "mask must be"),
        (torch.zeros(2, 3, 8), torch.ones(2, 3), "mask must be"),
    ],
)
def test_inputs_against_the_contract_are_refused(x, mask, message):
    full = get_variant("full")
    mixer = full.build(full.config(), LayerDims(dim=8, num_heads=2, max_length=5))
    with pytest.raises(ValueError, match=message):
        mixer(x, mask)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wide(VariantConfig):
    share: float = option(0.5, "a share")
    maybe: float | None = option(None, "a share or none")
    either: int | float = option(1, "a number")
    sizes: tuple[int, ...] = option((1,), "sizes")
    pair: tuple[int, float] = option((1, 1.0), "two numbers")
    rates: list[float] = field(default_factory=list, metadata={"help": "rates"})
    named: Mapping[str, float] = field(default_factory=dict, metadata={"help": "rates by name"})
    anything: Any = field(default=None, metadata={"help": "anything"})
    bare: list | dict | None = field(default=None, metadata={"help": "a list or a dict of whatever"})
    plain: tuple = field(default=(), metadata={"help": "a tuple of whatever"})
    real: Real = field(default=0, metadata={"help": "a number"})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("share", [1, 1.0]),
        ("share", [0, 0.0, -0.0]),
        ("maybe", [1, 1.0]),
        ("either", [1, 1.0]),
        ("sizes", [[1, 2], (1, 2)]),
        ("pair", [[1, 1], (1, 1.0)]),
        ("rates", [[1, -0.0], [1.0, 0.0]]),
        ("named", [{"a": 1}, {"a": 1.0}]),
        ("anything", [1, 1.0]),
        ("bare", [[0, [1]], [-0.0, [1.0]]]),
        ("bare", [{"a": 1}, {"a": 1.0}]),
        ("plain", [[1], (1.0,)]),
        ("real", [1, 1.0]),
        ("anything", [10**18, 1e18]),
        ("anything", [0, -0.0]),
        ("anything", [{"a": [1, (2, 3)]}, {"a": [1.0, (2.0, 3)]}]),
    ],
)
def test_equal_values_are_one_value(name, values):
    assert len({repr(Wide.from_dict({name: value})) for value in values}) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sizes", [1.5]),
        ("sizes", [True]),
        ("pair", [1]),
        ("rates", ["1"]),
        ("named", {"a": "b"}),
        ("named", {1: 1.0}),
        ("sizes", "12"),
    ],
)
def test_a_wrong_type_inside_is_refused(name, value):
    with pytest.raises(OptionError, match=f"{name}: expected "):
        Wide.from_dict({name: value})


def test_true_is_not_the_default_1_of_a_configuration_that_resolves_something():
    @dataclass(frozen=True, kw_only=True)
    class Scaled(VariantConfig):
        scale: bool | float = option(True, "a scale, or the usual one")
        width: int = option(0, "0 is the dimension")

        def resolved(self, dims):
            return replace(self, width=self.width or dims.dim)

    dims = LayerDims(dim=16, num_heads=2, max_length=5)
    for scale in (1.0, True):
        assert repr(Scaled.from_dict({"scale": scale, "width": 16}).in_one_form(dims)) == repr(Scaled(scale=scale))


def test_any_takes_anything():
    for value in ([1, "a"], 0.5, True, 1e300, float("inf")):
        assert repr(Wide.from_dict({"anything": value}).anything) == repr(value)
