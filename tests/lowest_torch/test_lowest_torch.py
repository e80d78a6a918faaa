"""What the sources use of torch by name exists in the lowest version that pyproject.toml allows."""

import json
import tomllib

import pytest

from tests.lowest_torch.names import ROOT, TABLE, all_used, missing, used

NAMES = json.loads(TABLE.read_text())
VERSION = NAMES.pop("version")


def test_the_table_is_of_the_lowest_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = [line for line in project["dependencies"] if line.startswith("torch>")]
    assert VERSION.startswith(f"{wanted.removeprefix('torch>=').partition(',')[0]}."), "see tests/lowest_torch/names.py"
    assert f"\ntorch=={VERSION}\n" in (ROOT / "constraints-lowest.txt").read_text()


def test_the_sources_use_no_name_and_no_keyword_that_it_lacks():
    uses = all_used()
    assert len(uses) > 200
    assert missing(uses, NAMES) == [], f"not in torch {VERSION}"


@pytest.mark.parametrize(
    ("source", "refused"),
    [
        ("import torch\n@torch.library.custom_op('a::b', mutates_args=(), tags=())\ndef f(): ...",
         "torch.library.custom_op(tags=)"),
        ("from torch.library import custom_op as op\nop('a::b', tags=())", "torch.library.custom_op(tags=)"),
        ("import torch.nn.functional as F\nF.new_in_3_0(1)", "torch.nn.functional.new_in_3_0"),
        ("import torch.new_in_3_0", "torch.new_in_3_0"),
        ("import torch._dynamo\ntorch._dynamo.config.recompile_limit = 8", "torch._dynamo.config.recompile_limit"),
        ("from torch import nn\nnn.LayerNorm(3, sharp=True)", "torch.nn.LayerNorm(sharp=)"),
    ],
)  # fmt: skip
def test_what_it_lacks_is_found(source, refused):
    assert missing(used(source), NAMES) == [refused]
