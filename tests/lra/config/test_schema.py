"""Unknown keys are answered with the names of the section that they stand in."""

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field

from attention_zoo import available, get_variant
from attention_zoo.registry import is_own
from lra.config import schema
from lra.config.profiles import Profile, load_profile
from lra.config.resolve import resolve
from lra.config.schema import ADDED_LATER, ModelConfig, RunConfig, Section, TrainConfig, plain, validate_section
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
    config = resolve(task=task, variant=variant, profile=load_profile("quick"), seed=0, overrides={})
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
    """A module can tell 0.0 from -0.0, which have one id; 1 and 1.0 have two."""
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
    assert given(1)[0] != given(1.0)[0]


def test_a_variant_by_its_file_is_the_same_run_in_every_folder_and_no_other_name_is_cut():
    def named(name):
        return quick().model_copy(update={"variant": schema.VariantChoice(name=name, options={})}).run_id("d")

    assert named("a/my.py:Mine") == named("my.py:Mine") != named("my.py:Other")
    assert named("a/b") != named("b")
    assert named("a/b: c") != named("b: c")
