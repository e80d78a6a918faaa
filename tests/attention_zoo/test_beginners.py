"""A broken first variant is told in one line what to do, whatever is wrong with it, and nothing else suffers."""

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from attention_zoo import RegistrationError, available, get_variant, registry
from attention_zoo.checks import ADVICE, CHECKS, contract_checks, run_contract, verdict
from lra.results.records import Store
from runners.cli import variant_docs
from runners.cli.run import command
from runners.cli.zoo import main
from runners.train.run import RunError
from tests.attention_zoo.beginners import MISTAKES, SOUND, Mistake
from tests.runners.tiny_runs import execute, tiny, tiny_data

NO_LINE = {"no forward", "option without a default", "output detached"}
"""Mistakes that raise an error outside of their file."""
SLOW = {"endless recursion"}


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that installs the text of a file as the plug-in `beginner`."""
    for name in available():  # a file registers once, when it is imported: import none under the copy
        get_variant(name)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    monkeypatch.syspath_prepend(str(tmp_path))
    info = tmp_path / "beginner-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: beginner\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[attention_zoo.variants]\nbeginner = first_variant\n")

    def install(text: str) -> Path:
        monkeypatch.delitem(sys.modules, "first_variant", raising=False)
        (tmp_path / "first_variant.py").write_text(text)
        return tmp_path / "first_variant.py"

    return install


def line_of(mistake: Mistake) -> str:
    """Return the line that `lra-zoo check` prints of a mistake."""
    if not mistake.check:
        with pytest.raises(RegistrationError) as caught:
            get_variant("beginner")
        return str(caught.value)
    if mistake.check == "waivers":
        with pytest.raises(ValueError, match="waives") as refused:
            contract_checks(get_variant("beginner"))
        return str(refused.value)
    return verdict(mistake.check, dict(contract_checks(get_variant("beginner")))[mistake.check])


@pytest.mark.nightly
def test_the_sound_variant_passes_all_checks(plug_in):
    plug_in(SOUND)
    assert run_contract(get_variant("beginner")) == {}


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(each, marks=pytest.mark.nightly if each.name in SLOW else ()) for each in MISTAKES],
    ids=lambda mistake: mistake.name,
)
def test_a_beginners_mistake_is_one_line_that_says_what_to_do(plug_in, mistake):
    file = plug_in(SOUND.replace(mistake.old, mistake.new, 1))
    line = line_of(mistake)
    assert mistake.said in line
    assert "\n" not in line
    if "Error: " in line and mistake.name not in NO_LINE:
        assert f"{file}:" in line


def test_every_check_has_advice():
    assert ADVICE.keys() == CHECKS.keys()
    assert len(MISTAKES) >= 50


@pytest.mark.nightly
@pytest.mark.parametrize("mistake", [each for each in MISTAKES if each.check], ids=lambda mistake: mistake.name)
def test_the_command_prints_a_line_for_each_check_whatever_is_wrong(plug_in, mistake):
    plug_in(SOUND.replace(mistake.old, mistake.new, 1))
    done = CliRunner().invoke(main, ["check", "beginner"])
    assert "Traceback" not in done.output
    if mistake.check == "waivers":
        assert done.exit_code == 2
        return
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + len(contract_checks(get_variant("beginner")))
    assert any(line.startswith("FAIL") and mistake.said in line for line in lines)


@pytest.mark.parametrize(
    "mistake",
    [
        each
        for each in MISTAKES
        if each.name in ("syntax error", "error in the constructor", "no decorator", "no super")
    ],
    ids=lambda mistake: mistake.name,
)
def test_a_broken_plug_in_takes_no_other_variant_from_the_list(plug_in, mistake, monkeypatch):
    monkeypatch.setattr(variant_docs, "available", lambda: ["full", "beginner", "mlp_only"])
    plug_in(SOUND.replace(mistake.old, mistake.new, 1))
    done = CliRunner().invoke(main, ["list"])
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["full", "mlp_only"]
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("Warning: beginner (beginner 0.1) cannot be ")
    for verb in ("check", "describe"):
        done = CliRunner().invoke(main, [verb, "beginner"])
        assert "Traceback" not in done.output
        assert done.exit_code in (1, 2)


def test_a_run_shows_the_line_that_fails_and_no_folder(plug_in, tmp_path):
    file = plug_in(SOUND.replace("        value = self.value(x)\n", "        value = self.value(x)[0] / 'a'\n"))
    data = tiny_data(tmp_path / "data")
    with pytest.raises(RunError) as caught:
        execute(tiny("beginner"), data, Store(tmp_path / "store"))
    line = str(caught.value)
    assert f"{file}:" in line
    assert "`value = self.value(x)[0] / 'a'`: TypeError" in line
    assert "attempts" not in line


@pytest.mark.parametrize("words", [["--dry-run"], []])
def test_a_run_of_a_variant_that_cannot_be_built_or_imported_is_one_line(plug_in, words, tmp_path):
    plug_in(SOUND.replace("def forward(self, x", "def forward(self x"))
    arguments = ["--attn", "beginner", "--task", "listops", "--store", str(tmp_path), "--device", "cpu", *words]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 2
    assert "first_variant.py:" in done.stderr
    assert "SyntaxError" in done.stderr.splitlines()[-1]
