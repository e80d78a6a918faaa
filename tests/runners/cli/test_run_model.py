"""`lra-run --model`: whole models of somebody else, trained by one command beside `full`."""

import re
import shutil

import pytest
import yaml
from click.testing import CliRunner

from reports.cli import command as lra_report
from runners.cli.run import command as lra_run
from tests.lra.models import foreign_models
from tests.runners.cli.test_run import PROFILE


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with a profile of tiny runs and the file of the models."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(PROFILE))
    shutil.copy(foreign_models.__file__, folder / "mine.py")
    return folder


def call(bench, monkeypatch, *words):
    monkeypatch.chdir(bench)
    common = ["--task", "listops", "--data-dir", "home", "--store", "store", "--device", "cpu", "--threads", "1"]
    return CliRunner().invoke(lra_run, [*common, "--profile", "tiny.yaml", *words], catch_exceptions=False)


def test_a_model_is_trained_by_one_command_and_stands_beside_full(bench, monkeypatch):
    done = call(
        bench, monkeypatch, "--attn", "full", "--model", "mine.py:build", "--set", "variants.mine.py:build.width=4"
    )
    assert done.exit_code == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines() if re.search(r" 0 +\d+\.\d\d ", line)]
    assert rows == ["Full", "mine.build"]
    table = CliRunner().invoke(lra_report, ["table", "accuracy", "--store", "store", "--profile", "tiny"])
    assert table.exit_code == 0, table.output
    assert "mine.build" in table.stdout
    assert "Full attention" in table.stdout
    again = call(bench, monkeypatch, "--attn", "full", "--model", "mine.py:build")
    assert again.stdout.count("mine.build") >= 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "mine.py:buil"), "--model: mine.py:buil: mine.py has no 'buil'; did you mean 'build"),
        (("--model", "full"), "--model full: it has no parameter num_classes; a model is built by a function"),
        (("--model", "mine.py:AMixer"), "and a mixer goes to --attn"),
        (("--attn", "mine.py:build"), "mine.py:build builds a whole model, which no profile has; --track open"),
        (("--model", "mine.py:build", "--track", "matched"), "--track open admits it"),
        (("--model", "mine.py:build", "--set", "model.num_heads=4"), "model.num_heads: a model of your own does not"),
        (
            ("--model", "mine.py:build", "--set", "variant.widht=4"),
            "variant.widht: no option of mine.py:build; did you",
        ),
        (("--model", "mine.py:IgnoresTheMask"), "the answer depends on how far a sequence is padded"),
        (("--model", "mine.py:WrongShape", "--dry-run"), "gave (2, 9), not logits of shape (2, 10)"),
        (("--model", "hf:nowhere.json"), "nowhere.json"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_trained(bench, monkeypatch, words, message):
    done = call(bench, monkeypatch, *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error: ")]) == 1


def test_a_configuration_that_was_printed_is_the_same_run(bench, monkeypatch):
    done = call(bench, monkeypatch, "--model", "mine.py:build", "--dry-run")
    (bench / "run.yaml").write_text(done.stdout)
    words = ["--config", "run.yaml", "--dry-run", "--data-dir", "home"]
    assert CliRunner().invoke(lra_run, words, catch_exceptions=False).stdout == done.stdout


def test_a_suite_may_name_a_model(bench, monkeypatch):
    from runners.cli.sweep import command as lra_sweep

    monkeypatch.chdir(bench)
    suite = {"name": "s", "title": "t", "profile": "tiny.yaml", "tasks": ["listops"], "seeds": [0], "track": "open"}
    (bench / "s.yaml").write_text(yaml.safe_dump(suite | {"variants": {"full": {}, "mine.py:Bag": {}}}))
    done = CliRunner().invoke(lra_sweep, ["plan", "s.yaml", "--store", "store"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "mine.py:Bag" in done.stdout
