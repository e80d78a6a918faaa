"""Modules that were not written for the zoo: found by file and class, wrapped, checked, identified by their source."""

import re
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from attention_zoo import LayerDims, RegistrationError, available, foreign, get_variant, program
from attention_zoo.checks import CHECKS, run_contract
from attention_zoo.foreign import ForeignError, import_place
from attention_zoo.functional import attention
from attention_zoo.program import ProgramError, check_programs
from attention_zoo.registry import program_origin
from attention_zoo.source_digest import Program
from runners.cli.zoo import main as lra_zoo

FILE = str(Path(__file__).with_name("foreign_modules.py"))
DIMS = LayerDims(dim=16, num_heads=2, max_length=40, dropout=0.1)
ESSENTIAL = ("shape", "batch_independence", "scattered_padding", "padding_gradient", "empty_rows", "dtypes", "lengths")


def build(name, dims=DIMS, **options):
    spec = get_variant(f"{FILE}:{name}")
    return spec.build(spec.config.from_dict(options), dims)


@pytest.mark.parametrize("name", ["Heads", "Tokens", "PaddingIsTrue"])
def test_a_sound_module_keeps_the_essence_of_the_contract(name):
    spec = get_variant(f"{FILE}:{name}")
    for check in ESSENTIAL:
        CHECKS[check](spec)


@pytest.mark.nightly
@pytest.mark.parametrize("reference", [f"{FILE}:Heads", f"{FILE}:Tokens", "torch.nn:MultiheadAttention"])
def test_a_sound_module_keeps_the_contract(reference):
    assert run_contract(get_variant(reference)) == {}


@pytest.mark.parametrize(
    ("name", "start", "message"),
    [
        ("IgnoresTheMask", "FAIL  suffix_padding: ", "the content of padding at the end changes real positions"),
        ("MixesTheBatch", "FAIL  batch_independence: ", "the result of sequence 0 depends on the rest of the batch"),
        (
            "WrongShape",
            "FAIL  shape: ForeignError: WrongShape.forward gave ",
            "gave (2, 15, 16) for an input of (2, 16, 16)",
        ),
    ],
)
def test_a_planted_mistake_is_named_in_the_first_line(name, start, message):
    done = CliRunner().invoke(lra_zoo, ["check", f"{FILE}:{name}"])
    assert done.exit_code == 1
    first = done.stdout.splitlines()[0]
    assert first.startswith(start)
    assert message in first


def test_heads_come_from_projections_of_the_zoo_and_equal_its_attention():
    mixer = build("Heads").eval()
    x, mask = torch.randn(3, 20, 16), torch.rand(3, 20) > 0.3
    q, k, v = mixer.projections.split(x * mask.unsqueeze(-1))
    expected = mixer.projections.merge(attention(q, k, v, mask), mask)
    torch.testing.assert_close(mixer(x, mask), expected)


def test_dropout_without_an_argument_for_it_falls_on_the_output():
    mixer = build("Tokens")
    x = torch.randn(2, 20, 16)
    assert not torch.equal(mixer(x), mixer(x))
    assert torch.equal(mixer.eval()(x), mixer(x))
    assert build("Heads").dropout.p == 0.0  # it has an argument, and drops weights itself
    assert build("Heads").inner.drop.p == 0.1


def test_the_trial_of_the_layout_draws_nothing():
    torch.manual_seed(1)
    build("Heads", layout="auto")
    after = torch.rand(3)
    torch.manual_seed(1)
    build("Heads", layout="heads")
    assert torch.equal(after, torch.rand(3))


def test_arguments_become_options_and_dimensions_do_not():
    options = {name: default for name, _, default, _ in get_variant(f"{FILE}:Tokens").config.describe()}
    assert options == {"layout": "auto", "mask": "auto", "temperature": 1.0}
    assert build("Tokens", temperature=2.0).inner.temperature == 2.0
    with pytest.raises(
        ForeignError, match="Gate needs 'width', which is no dimension of the layer: give --set variant"
    ):
        build("Gate")
    assert build("Gate", width=8)(torch.randn(2, 5, 16)).shape == (2, 5, 16)
    assert build("build_gate")(torch.randn(2, 5, 16)).shape == (2, 5, 16)


@pytest.mark.parametrize("future", ["", "from __future__ import annotations"])
@pytest.mark.parametrize(
    ("argument", "kind"),
    [
        ("a: float", "float | None"),
        ("a: float | None = None", "float | None"),
        ("a: Optional[int] = None", "int | None"),
        ("a: float = 1", "float"),
        ("a: int | float = 1", "int | float"),
        ("a: int = 0.5", "float"),
        ("a: list[int] = None", "Any"),
        ("a: Literal[1, 2] = 1", "int"),
        ("a: missing.Type = True", "bool"),
        ("a=None", "Any"),
        ("a", "Any"),
    ],
)
def test_an_option_has_the_annotation_of_its_argument(tmp_path, future, argument, kind):
    """So that 1 and 1.0 are one value, and one run, where a float is wanted."""
    if "missing" in argument and not future:
        pytest.skip("such an annotation has to be a text")
    module = tmp_path / "mine.py"
    module.write_text(f"""{future}
from typing import Literal, Optional
from torch import nn

class Mine(nn.Module):
    def __init__(self, dim: int, *, {argument}):
        super().__init__()

    def forward(self, x):
        return x
""")
    config = get_variant(f"{module}:Mine").config
    (found,) = (shown for name, shown, *_ in config.describe() if name == "a")
    assert found == kind
    if "float" in kind or kind == "Any":
        assert repr(config.from_dict({"a": 1})) == repr(config.from_dict({"a": 1.0}))


def test_torchs_own_attention_is_found_in_its_package():
    spec = get_variant("torch.nn:MultiheadAttention")
    mixer = spec.build(spec.config(), LayerDims(dim=16, num_heads=2, max_length=40)).eval()
    x, mask = torch.randn(2, 9, 16), torch.rand(2, 9) > 0.3
    expected, _ = mixer.inner(*[x * mask.unsqueeze(-1)] * 3, key_padding_mask=~mask)
    torch.testing.assert_close(mixer(x, mask)[mask], expected[mask])


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (f"{FILE}:Headz", "has no 'Headz'; did you mean 'Heads'"),
        (f"{FILE}:NOT_A_MODULE", "expected a class of nn.Module, or a function that builds one"),
        (f"{FILE}x.py:Heads", "no such file; did you mean 'foreign_modules.py'"),
        ("torch.nope:Heads", "No module named 'torch.nope'; a file is named with its ending .py"),
        (f"{FILE}:", "has no 'name after the colon'"),
    ],
)
def test_a_reference_that_leads_nowhere_is_one_sentence(reference, message):
    with pytest.raises(RegistrationError, match=re.escape(message)):
        get_variant(reference)


def test_a_program_is_identified_by_its_source_and_not_by_its_folder(tmp_path):
    origins = []
    for number, change in enumerate(("", "# a comment\n", "UNUSED = 1\n")):
        copy = tmp_path / str(number) / "mine.py"
        copy.parent.mkdir()
        copy.write_text(Path(FILE).read_text() + change)
        spec = get_variant(f"{copy}:Tokens")
        origins.append(program_origin(spec.name, spec.config()))
    assert origins[0] == origins[1] != origins[2]
    assert re.fullmatch(r"mine.py:Tokens source [0-9a-f]{16}", origins[0])


@pytest.mark.parametrize("line", ["Made = Tokens", "Tokens.scale = {}; Made = Tokens", "Made = make({})"])
def test_an_edit_of_the_file_that_is_named_counts_whatever_it_imports(tmp_path, line):
    origins = []
    for number in (0, 1):
        folder = tmp_path / f"{number}_{abs(hash(line)):x}"
        folder.mkdir()
        helper = f"theirs_{abs(hash(line)):x}"
        make = "\n\ndef make(c):\n    return type('Made', (Tokens,), {'c': c, '__module__': __name__})\n"
        (folder / f"{helper}.py").write_text(Path(FILE).read_text() + make)
        text = f"from {helper} import Tokens, make\n{line.format(number)}\nEDIT = {number}\n"
        (folder / "mine.py").write_text(text)
        spec = get_variant(f"{folder / 'mine.py'}:Made")
        origins.append(program_origin(spec.name, spec.config()))
    assert origins[0] != origins[1]


def test_a_helper_of_another_folder_never_stands_in_for_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    for folder, scale in (("a", 2), ("b", 3), ("same", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "helper_of_two.py").write_text(f"SCALE = {scale}\n")
        (tmp_path / folder / "plug.py").write_text("from helper_of_two import SCALE\n")
    assert import_place(str(tmp_path / "a" / "plug.py")).SCALE == 2
    assert import_place(str(tmp_path / "same" / "plug.py")).SCALE == 2
    with pytest.raises(ForeignError, match=r"b/helper_of_two.py: a helper of this name is loaded from .*a/"):
        import_place(str(tmp_path / "b" / "plug.py"))


def test_a_helper_that_is_imported_in_a_function_is_compared_before_a_number_is_published(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(foreign, "_FOLDERS", {})
    monkeypatch.setattr(program, "_asked", {"p": Program("digest", {})})
    for folder, scale in (("a", 2), ("b", 3)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "late_helper.py").write_text(f"SCALE = {scale}\n")
        (tmp_path / folder / "plug.py").write_text("def f():\n    from late_helper import SCALE\n    return SCALE\n")
    first, second = (import_place(str(tmp_path / folder / "plug.py")) for folder in "ab")
    check_programs("p")
    assert first.f() == second.f() == 2
    with pytest.raises(ProgramError, match=r"b/late_helper.py: a helper of this name is loaded from .*a/"):
        check_programs("p")


def test_the_program_of_a_file_is_found_without_the_folders_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(foreign, "_added", set())
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "plug.py").write_text("X = 1\n")
        import_place(str(tmp_path / folder / "plug.py"))
    assert {str(tmp_path / folder) for folder in "ab"} <= set(sys.path)
    assert foreign.search_path() == tuple(entry for entry in sys.path if not entry.startswith(str(tmp_path)))


def test_a_reference_is_not_listed():
    get_variant(f"{FILE}:Heads")
    assert [name for name in available() if ":" in name] == []
