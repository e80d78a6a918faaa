"""Unknown keys are answered with the names of the section that they stand in."""

import pickle
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from pydantic import Field

from attention_zoo import available, get_variant, program
from attention_zoo.program import program_of
from attention_zoo.registry import is_own
from lra.config import schema
from lra.config.profiles import Profile, load_profile
from lra.config.resolve import resolve
from lra.config.schema import ADDED_LATER, ModelConfig, RunConfig, Section, TrainConfig, plain, validate_section
from lra.errors import UsageError
from lra.tasks import TASKS, get_task


class Leaf(Section):
    height: Annotated[int, Field(ge=0)] = 0


class Tree(Section):
    leaf: Leaf | None = None
    leaves: list[Leaf] | None = None
    named: dict[str, Leaf] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"leafs": 1}, "tree.leafs: unknown key; did you mean 'leaf'"),
        ({"leaf": {"hight": 1}}, "tree.leaf.hight: unknown key; did you mean 'height'?"),
        ({"leaves": [{}, {"hight": 1}]}, "tree.leaves.1.hight: unknown key; did you mean 'height'?"),
        ({"named": {"oak": {"hight": 1}}}, "tree.named.oak.hight: unknown key; did you mean 'height'?"),
        ({"leaf": {"height": -1}}, "tree.leaf.height: input should be greater than or equal to 0 (got -1)"),
    ],
)
def test_names_of_the_section_at_hand_are_suggested(values, line):
    built, problems = validate_section(Tree, values, "tree")
    assert built is None
    assert len(problems) == 1
    assert problems[0].startswith(line)


@pytest.mark.parametrize(
    ("section", "values", "line"),
    [
        (RunConfig, {"train": {"stepz": 3}}, "file.train.stepz: unknown key; did you mean 'steps'?"),
        (RunConfig, {"model": {"dimm": 3}}, "file.model.dimm: unknown key; did you mean 'dim'?"),
        (RunConfig, {"variant": {"nam": "full"}}, "file.variant.nam: unknown key; did you mean 'name'?"),
        (Profile, {"tasks": {"text": {"trian": {}}}}, "file.tasks.text.trian: unknown key; did you mean 'train'"),
    ],
)
def test_mistakes_in_configurations_and_profiles(section, values, line):
    _, problems = validate_section(section, values, "file")
    assert any(problem.startswith(line) for problem in problems)


FROZEN = Path(__file__).parent / "hashed_settings.txt"
"""The settings of the first records, one path per line. Nothing is ever added to it: see `ADDED_LATER`."""


def settings() -> dict[str, object]:
    """Return the default of every setting that is hashed, by its path in `ADDED_LATER`."""
    found: dict[str, object] = {}

    def add(prefix: str, section: type[Section]) -> None:
        found.update(
            {
                f"{prefix}{name}": field.get_default(call_default_factory=True)
                for name, field in section.model_fields.items()
            }
        )

    add("", RunConfig)
    add("variant.", schema.VariantChoice)
    add("model.", ModelConfig)
    add("train.", TrainConfig)
    for task in TASKS:
        add(f"data.{task}.", get_task(task).options)
    for name in available():
        spec = get_variant(name)
        if is_own(name):
            found |= {f"variant.{name}.{option}": default for option, _, default, _ in spec.config.describe()}
    return found


def problems(now: dict[str, object], frozen: set[str], later: dict[str, object]) -> list[str]:
    """Say what would give the runs of old records another id, one line per setting."""
    own_tasks = {path.split(".")[1] for path in frozen if path.startswith("data.")}
    own_variants = {path.split(".")[1] for path in frozen if path.startswith("variant.") and path.count(".") == 2}
    found = [f"{path}: records have it, and it is gone" for path in sorted(frozen - set(now))]
    for path in sorted(set(now) - frozen):
        section, _, owner = path.rpartition(".")[0].partition(".")
        if owner and owner not in (own_tasks if section == "data" else own_variants):
            continue  # a task or variant that no old record has
        if path not in later:
            found.append(f"{path}: new; enter it in ADDED_LATER of lra/config/schema.py with the value as before")
        elif plain(now[path]) != plain(later[path]):
            found.append(f"{path}: its default is not its value in ADDED_LATER, with which old records are read")
    return found + [f"{path}: in ADDED_LATER, and no setting" for path in sorted(set(later) - set(now))]


def test_no_setting_changes_the_ids_of_older_records():
    frozen = set(FROZEN.read_text().split())
    assert len(frozen) > 150
    assert problems(settings(), frozen, ADDED_LATER) == []


@pytest.mark.parametrize(
    ("new", "later", "line"),
    [
        ({"train.ema": 0.0}, {}, "train.ema: new; enter it in ADDED_LATER"),
        ({"train.ema": 0.9}, {"train.ema": 0.0}, "train.ema: its default is not its value in ADDED_LATER"),
        ({}, {"train.ema": 0.0}, "train.ema: in ADDED_LATER, and no setting"),
        ({"variant.full.sinks": 0}, {}, "variant.full.sinks: new"),
        ({"data.text.lower": False}, {}, "data.text.lower: new"),
    ],
)
def test_a_new_setting_without_a_right_entry_is_caught(new, later, line):
    found = problems(settings() | new, set(FROZEN.read_text().split()), ADDED_LATER | later)
    assert len(found) == 1
    assert found[0].startswith(line)


def test_a_setting_that_is_gone_is_caught_and_a_new_variant_needs_no_entry():
    frozen, now = set(FROZEN.read_text().split()), settings()
    assert problems(now | {"variant.brand_new.window": 3}, frozen, ADDED_LATER) == []
    del now["train.lr"]
    assert problems(now, frozen, ADDED_LATER) == ["train.lr: records have it, and it is gone"]


def quick(**overrides) -> RunConfig:
    return resolve(
        task="listops", variant="linformer", profile=load_profile("quick"), seed=0, track="open", overrides=overrides
    )


def test_a_later_setting_changes_the_id_only_if_it_is_not_as_before(monkeypatch):
    config, before = quick(), quick().run_id("d")
    other = quick(**{"train.clip_norm": 0.5, "variant.rank": 3})
    for path, value in (("train.clip_norm", 1.0), ("variant.linformer.rank", config.variant.options["rank"])):
        assert path in settings()
        monkeypatch.setattr(schema, "ADDED_LATER", {path: value})
        assert config.run_id("d") not in (before, other.run_id("d"))  # left out, as before the setting came
        assert other.hashed() == other.model_dump() | {"model": other.hashed()["model"]}
        monkeypatch.setattr(schema, "ADDED_LATER", {path: "another value"})
        assert config.key() == schema.canonical_json(config.model_dump())


@pytest.mark.parametrize("path", ADDED_LATER)
def test_a_record_from_before_a_setting_has_the_id_of_one_with_it(path):
    section, _, name = path.rpartition(".")
    section, _, owner = section.partition(".")
    task, variant = (owner if section == kind else other for kind, other in (("data", "listops"), ("variant", "full")))
    config = resolve(task=task, variant=variant, profile=load_profile("modern"), seed=0, overrides={})
    values = config.model_dump()
    sections = values | {"": values, "variant": values["variant"]["options"]}
    del sections[section][name]
    assert RunConfig.model_validate(values).run_id("d") == config.run_id("d")


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("train.lr", [1, 1.0]),
        ("train.weight_decay", [0, 0.0, -0.0]),
        ("train.betas", [[0, 0.9], [-0.0, 0.9], (0.0, 0.9)]),
        ("model.dropout", [0, -0.0]),
        ("train.clip_norm", [1, 1.0]),
        ("model.head_dim", [0, 16]),
        ("model.embedding_rows", [None, 16]),
    ],
)
def test_equal_settings_are_one_run(path, values):
    assert len({quick(**{path: value}).run_id("d") for value in values}) == 1


def test_an_option_without_a_type_is_passed_as_it_is_hashed(tmp_path, monkeypatch):
    """A module can tell 0.0 from -0.0, and 1 from 1.0, which have one id."""
    monkeypatch.chdir(tmp_path)
    source = "from torch import nn\nclass M(nn.Linear):\n    def __init__(self, dim, a=None): ...\n"
    (tmp_path / "any.py").write_text(source)

    def given(value):
        overrides = {"variant.a": value}
        made = resolve(
            task="listops", variant="any.py:M", profile=load_profile("quick"), seed=0, track="open", overrides=overrides
        )
        return made.run_id("d"), repr(made.variant.typed.a)

    for one, other in ((0.0, -0.0), ([0.0], (-0.0,)), ({"b": 0.0}, {"b": -0.0})):
        assert given(one) == given(other)
    assert given(1) == given(1.0) != given(1.5)


def test_a_variant_by_its_file_is_the_same_run_in_every_folder_and_no_other_name_is_cut():
    def named(name):
        return quick().model_copy(update={"variant": schema.VariantChoice(name=name, options={})}).run_id("d")

    assert named("a/my.py:Mine") == named("my.py:Mine") != named("my.py:Other")
    assert named("a/b") != named("b")
    assert named("a/b: c") != named("b: c")


def run_of(task="listops", profile="quick", variant="full", **overrides):
    return resolve(task=task, variant=variant, profile=load_profile(profile), seed=0, track="open", overrides=overrides)


@pytest.mark.parametrize(
    ("of", "path", "values", "kept"),
    [
        ({"task": "recall", "data.length": 16}, "data.test_length", [None, [], [16], 16], []),
        ({"task": "recall", "profile": "probes"}, "data.test_length", [[64], []], [64]),
        ({"task": "pathfinder", "profile": "official"}, "data.side", [None, 32], None),
        ({"task": "pathfinder", "profile": "official"}, "data.contour_length", [None, 14], None),
        ({"task": "pathfinder", "profile": "official"}, "data.distractors", [None, 5], None),
        ({"task": "pathx", "profile": "official", "data.contour_length": 3}, "data.distractors", [None, 35], None),
        ({"pretrain.share": 0.5, "train.warmup_steps": 7}, "pretrain.warmup", [None, 7], None),
        ({"profile": "spt"}, "pretrain.warmup", [2000, None], 2000),
        ({"task": "text"}, "train.crop", [None, 512, 5000], None),
        ({"train.lr": 0.5}, "train.state_space_lr", [None, 0.5], None),
    ],
)
def test_what_a_setting_says_anyway_is_spelt_as_in_the_recipe(of, path, values, kept):
    found = [run_of(**of, **({} if value is None and path.startswith("data.") else {path: value})) for value in values]
    assert len({config.run_id("d") for config in found}) == 1
    section, name = path.split(".")
    assert found[0].model_dump()[section][name] == kept


@pytest.mark.parametrize("family", ["transformer", "convnet"])
def test_a_width_that_a_profile_writes_out_is_the_same_run(family):
    """A convnet does not read it and takes what its profile says, in whichever spelling."""
    profile, found = load_profile("quick"), set()
    recipe = profile.tasks["image"]
    for width in (0, recipe.model["dim"] // recipe.model["num_heads"]):
        spelt = recipe.model_copy(update={"model": recipe.model | {"head_dim": width}})
        own = profile.model_copy(update={"tasks": profile.tasks | {"image": spelt}})
        overrides = {"model.family": family}
        variant = "conv" if family == "convnet" else "full"
        config = resolve(task="image", variant=variant, profile=own, seed=0, track="open", overrides=overrides)
        assert config.model.head_dim == 0
        found.add(config.run_id("d"))
    assert len(found) == 1


@pytest.mark.parametrize(
    ("of", "path", "values", "kept"),
    [
        ({"variant": "mega"}, "key_dim", [None, 0, 16], 0),
        ({"variant": "mega"}, "value_dim", [None, 40], 0),
        ({"variant": "mega"}, "chunk", [None, 64, 65], None),
        ({"variant": "hgrn", "variant.kind": "rg_lru"}, "state_size", [None, 0, 72], 0),
        ({"variant": "longformer", "model.pooling": "cls"}, "num_global", [None, 1], 0),
        ({"variant": "performer", "variant.kernel": "softmax"}, "num_features", [None, 0, 256], 0),
        ({"variant": "performer", "profile": "nystromformer"}, "num_features", [None, 0, 256], 256),
        ({"variant": "contextpool"}, "hidden", [None, 16], 0),
        ({"variant": "contextpool", "model.causal": True}, "reference_length", [None, 64], 0),
        ({"variant": "contextpool", "variant.base": "lru"}, "base_options", [None, {"state_size": 21}], {}),
    ],
)
def test_a_default_written_out_is_the_same_run(of, path, values, kept):
    found = [run_of(**of, **({} if value is None else {f"variant.{path}": value})) for value in values]
    assert len({config.run_id("d") for config in found}) == 1
    assert found[-1].variant.options[path] == kept
    others = run_of(**of, **{f"variant.{path}": {"state_size": 22} if path == "base_options" else 32})
    assert others.run_id("d") != found[0].run_id("d")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"model.positions": "none", "variant.rotary": True}, "--set model.positions=rotary"),
        ({"model.positions": "rotary", "variant.rotary": False}, "--set model.positions=none"),
        ({"model.positions": "none", "variant.bias": "t5"}, "--set model.positions=t5"),
        (
            {"model.positions": "alibi", "variant.rotary": True},
            "--set model.positions=rotary --set variant.bias=alibi",
        ),
        ({"pretrain.share": 0.5, "model.causal": True, "pretrain.mask_rate": 0.5}, "a causal model hides nothing"),
        ({"train.denoise": 0.5, "model.causal": True, "pretrain.mask_span": 2}, "a causal model hides nothing"),
        (
            {"task": "image", "variant": "conv", "model.family": "convnet", "model.num_heads": 1},
            "model.num_heads: a convnet does not read it",
        ),
    ],
)
def test_what_would_be_a_second_id_of_one_run_is_refused(given, line):
    with pytest.raises(UsageError) as told:
        run_of(**given)
    assert str(told.value).endswith(line)


def test_positions_of_both_kinds_and_beside_others_are_runs_of_their_own():
    ways = [
        {}, {"variant.rotary": True}, {"model.positions": "none"}, {"model.positions": "rotary"},
        {"model.positions": "rotary", "variant.bias": "alibi"}, {"model.positions": "alibi"},
    ]  # fmt: skip
    assert len({run_of(**way).run_id("d") for way in ways}) == len(ways)


def test_a_base_by_its_file_is_the_same_run_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(
        "from torch import nn\nclass A(nn.Linear):\n    def __init__(self, dim):\n        super().__init__(dim, dim)\n"
        "    def forward(self, x, mask=None):\n        return super().forward(x)\n"
    )
    near, far = "my.py:A", f"{tmp_path}/my.py:A"
    assert len({run_of(variant="contextpool", **{"variant.base": base}).run_id("d") for base in (near, far)}) == 1
    inner = [
        run_of(variant="contextpool", **{"variant.base": "contextpool", "variant.base_options": {"base": base}})
        for base in (near, far)
    ]
    assert len({config.run_id("d") for config in inner}) == 1
    assert inner[1].variant.typed.to_dict()["base_options"] == {"base": far}


@pytest.mark.parametrize("base", [{"base": "reformer"}, {"base": "contextpool", "base_options": {"base": "reformer"}}])
def test_a_base_that_changed_with_a_numerics_version_changes_what_it_is_the_base_of(base):
    still = {f"model.{name}": 0.0 for name in ("dropout", "attention_dropout")}
    pooled = run_of(variant="contextpool", **still, **{f"variant.{name}": value for name, value in base.items()})
    assert pooled.numbers_until(1) == 1
    assert run_of(variant="contextpool", **still).numbers_until(1) == 2


WHOLE_IMAGES = """
import torch


class Net(torch.nn.Module):
    def forward(self, tokens, mask):
        tokens.view(-1, 16, 16)
        return open("scale.txt").read()


def build(vocabulary_size, num_classes):
    return Net()
"""
LAYERED = """
from attention_zoo import LayerDims, SequenceMixer, VariantConfig


class Mine(SequenceMixer):
    def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        open(f"{dims.layer}.txt").read()

    def forward(self, x, mask=None):
        return x
"""
WHOLE = """
import pathlib, torch


def build(vocabulary_size, max_length, num_classes):
    name = pathlib.Path(f"{vocabulary_size}-{num_classes}.txt")
    if name.exists():
        name.read_text()
    return torch.nn.Module()
"""


def test_a_program_is_tried_in_each_layer_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "layered.py").write_text(LAYERED)
    origins = []
    for content in "01":
        for layer in range(3):
            (tmp_path / f"{layer}.txt").write_text(content if layer == 2 else "")
        program_of.cache_clear()
        program._hashed.clear()
        origins += [run_of(variant="layered.py:Mine", **{"model.num_layers": n}).variant.origin for n in (2, 3)]
    assert origins[0] == origins[2]
    assert origins[1] != origins[3]


@pytest.mark.parametrize(("task", "read"), [("image_continuous", "0-10"), ("retrieval", "257-16"), ("image", "257-10")])
def test_a_whole_model_is_tried_with_what_the_run_gives_it(task, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whole.py").write_text(WHOLE)
    origins = []
    for content in "01":
        (tmp_path / f"{read}.txt").write_text(content)
        program_of.cache_clear()
        program._hashed.clear()
        config = resolve(
            task=task, variant="whole.py:build", profile=load_profile("modern"), seed=0, track="open",
            overrides={"model.dim": 16, "model.family": "foreign"},
        )  # fmt: skip
        origins.append(config.variant.origin)
    assert origins[0] != origins[1]


def test_a_configuration_goes_to_another_process_whatever_its_variant(tmp_path, monkeypatch):
    """The class of the options of a plain module is made on the fly, so it cannot be pickled."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain.py").write_text(
        "import torch\n\n\nclass Plain(torch.nn.Linear):\n    def __init__(self, dim, scale=0.5):\n"
        "        super().__init__(dim, dim)\n"
    )
    config = run_of(variant="plain.py:Plain")
    assert config.variant.typed.scale == 0.5
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_whole_model_is_tried_with_whole_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    origins = []
    for content in "01":
        (tmp_path / "whole.py").write_text(WHOLE_IMAGES)
        (tmp_path / "scale.txt").write_text(content)
        program_of.cache_clear()
        program._hashed.clear()
        config = resolve(
            task="pathfinder", variant="whole.py:build", profile=load_profile("mini"), seed=0, track="open",
            overrides={"model.family": "foreign"},
        )  # fmt: skip
        origins.append(config.variant.origin)
    assert origins[0] != origins[1]


def test_a_program_is_tried_at_the_sizes_of_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = LAYERED.replace("{dims.layer}", "{dims.dim}-{dims.max_length}")
    (tmp_path / "sized.py").write_text(source)
    origins = []
    for content in "01":
        (tmp_path / "48-64.txt").write_text(content)
        program_of.cache_clear()
        program._hashed.clear()
        origins += [run_of(variant="sized.py:Mine", **{"model.dim": dim}).variant.origin for dim in (48, 64)]
    assert origins[0] != origins[2]
    assert origins[1] == origins[3]


def test_a_mapping_has_its_keys_in_the_order_in_which_it_is_hashed():
    """What is built from it would differ, and the id would not."""
    orders = [{"parts": {"b": {"y": 1, "x": 2}, "a": 3}}, {"parts": {"a": 3, "b": {"x": 2, "y": 1}}}]
    written = {str(schema.VariantChoice(name="mixer", options=options).options) for options in orders}
    assert written == {"{'parts': {'a': 3, 'b': {'x': 2, 'y': 1}}}"}


def test_an_option_of_a_type_that_is_not_plain_is_built_from_what_is_hashed():
    """Another process reads it from JSON, and one id is one program."""
    gate = Enum("Gate", {"HARD": "hard"}, type=str)
    given = {"gate": gate.HARD, "rates": {1: np.float64(2.0)}, "pair": (1, 2)}
    options = schema.VariantChoice(name="mixer", options=given).options
    assert repr(options) == "{'gate': 'hard', 'rates': {'1': 2.0}, 'pair': [1, 2]}"


def test_a_variant_inside_another_is_the_same_run_however_it_is_written(tmp_path, monkeypatch):
    source = """
from dataclasses import dataclass
from attention_zoo import SequenceMixer, VariantConfig, get_variant, option

class Plain(SequenceMixer):
    def __init__(self, config: VariantConfig, dims): super().__init__(config, dims)
    def forward(self, x, mask=None): return x

@dataclass(frozen=True)
class Around(VariantConfig):
    inner: str = option("full", "the other one")
    rule: str = option("none", "a text that is not the name of a variant")
    def inner_variants(self): return {self.inner: get_variant(self.inner).config()}

class Outer(SequenceMixer):
    def __init__(self, config: Around, dims): super().__init__(config, dims)
    def forward(self, x, mask=None): return x
"""
    (tmp_path / "around.py").write_text(source)
    monkeypatch.chdir(tmp_path)

    def key(inner, rule="none"):
        overrides = {"variant.inner": inner, "variant.rule": rule}
        return resolve(
            task="listops", variant="around.py:Outer", profile=load_profile("quick"), seed=0, overrides=overrides
        ).key()

    assert key("full") == key("Full")
    keys = {key(place) for place in ("around.py:Plain", "./around.py:Plain", str(tmp_path / "around.py:Plain"))}
    assert len(keys) == 1
    assert key("full") not in keys
    assert key("full", rule="x/a.py:f") != key("full", rule="y/a.py:f")  # no program of its own is behind it
