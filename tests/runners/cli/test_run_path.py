"""The way from the command to the attention kernel is short, and the configuration is parsed once on it."""

import traceback
from pathlib import Path

import pytest
import torch.nn.functional as F
from click.testing import CliRunner

from attention_zoo import VariantConfig
from runners.cli import run as run_command
from tests.runners.tiny_runs import TINY

ROOT = Path(__file__).resolve().parents[3]
OURS = ("runners", "lra", "attention_zoo", "contextpool")
PLAIN = TINY | {"model.dropout": 0.0, "model.attention_dropout": 0.0}
WORDS = ["--attn", "full", "--task", "listops", "--profile", "quick", "--device", "cpu"]


def own_frames():
    """Return the frames of the stack that are in our packages, from the outermost on."""
    paths = [(Path(frame.filename), frame.name) for frame in traceback.extract_stack()]
    inside = [(path.relative_to(ROOT), name) for path, name in paths if path.is_relative_to(ROOT)]
    return [f"{path}:{name}" for path, name in inside if path.parts[0] in OURS]


def test_there_are_at_most_nine_own_frames_from_main_to_the_kernel(tmp_path, monkeypatch):
    stacks, kernel = [], F.scaled_dot_product_attention

    def recorded(*tensors, **settings):
        stacks.append(own_frames())
        return kernel(*tensors, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    monkeypatch.setattr(run_command.signals, "install", lambda: None)
    folders = ["--data-dir", str(tmp_path / "home"), "--store", str(tmp_path / "store"), "--track", "open"]
    settings = [f"--set={key}={value}" for key, value in PLAIN.items()]
    monkeypatch.setattr("sys.argv", ["lra-run", *WORDS, *folders, *settings, "--quiet"])
    with pytest.raises(SystemExit) as ended:
        run_command.main()
    assert ended.value.code == 0
    stack = stacks[0]
    assert stack[0] == "runners/cli/run.py:main"
    assert stack[-1] == "attention_zoo/kernels/softmax.py:attend"
    assert "runners/train/loop.py:train" in stack
    assert len(stack) <= 9, "\n".join(stack)


@pytest.mark.parametrize("source", ["words", "file"])
def test_one_dry_run_parses_the_options_of_a_variant_no_oftener_than_it_has_to(tmp_path, monkeypatch, source):
    words = [*WORDS, "--dry-run", "--data-dir", str(tmp_path)]
    if source == "file":
        path = tmp_path / "run.yaml"
        path.write_text(CliRunner().invoke(run_command.command, words).stdout)
        words = ["--config", str(path), "--dry-run", "--device", "cpu", "--data-dir", str(tmp_path)]
    parsed, parse = [], VariantConfig.from_dict.__func__

    def recorded(section, options):
        parsed.append(section.__name__)
        return parse(section, options)

    monkeypatch.setattr(VariantConfig, "from_dict", classmethod(recorded))
    done = CliRunner().invoke(run_command.command, words)
    assert done.exit_code == 0, done.output
    assert "# parameters: " in done.stdout
    # What was typed, with words also as a record will have it and as the plain values that may leave something out;
    # what is hashed, from which the module is made; and full attention, with which it is compared.
    assert parsed == ["FullConfig"] * (5 if source == "words" else 3)
