"""Unknown keys are answered with the names of the section that they stand in."""

from typing import Annotated

import pytest
from pydantic import Field

from lra.config.profiles import Profile
from lra.config.schema import RunConfig, Section, validate_section


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
        (Profile, {"tasks": {"text": {"trian": {}}}}, "file.tasks.text.trian: unknown key; did you mean 'train'?"),
    ],
)
def test_mistakes_in_configurations_and_profiles(section, values, line):
    _, problems = validate_section(section, values, "file")
    assert line in problems
