"""`lra-doctor`: what it shows, and that it notices what is broken."""

import re

import pytest
import torch
from click.testing import CliRunner

import contextpool
from runners.cli import doctor
from runners.train import run as run_module


@pytest.fixture
def diagnose(tmp_path):
    def run():
        words = ["--store", str(tmp_path / "store"), "--data-dir", str(tmp_path / "home")]
        return CliRunner().invoke(doctor.command, words)

    return run


def test_a_sound_installation_passes_and_leaves_nothing(diagnose, tmp_path):
    done = diagnose()
    assert done.exit_code == 0, done.output
    assert re.search(rf"^torch +{re.escape(torch.__version__)}$", done.stdout, re.MULTILINE)
    assert done.stdout.count("\nok    ") == 3
    assert "none yet" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_wrong_pooling_and_bits_that_differ_are_noticed(diagnose, monkeypatch):
    pool, seeds = contextpool.context_pool, iter([1, 2])

    def broken(*arguments, backend):
        out = pool(*arguments, backend=backend)
        return out * 1.001 if backend == "auto" else out

    monkeypatch.setattr(contextpool, "context_pool", broken)
    build = run_module.build_model
    other = lambda config, *sizes: build(config.model_copy(update={"seed": next(seeds)}), *sizes)  # noqa: E731
    monkeypatch.setattr(run_module, "build_model", other)
    done = diagnose()
    assert done.exit_code == 1
    assert "FAIL  ContextPool's fast form equals its formula: AssertionError" in done.stdout
    assert "FAIL  a run trains, and its repetition has the same bits: RuntimeError: two runs of one seed" in done.stdout
    assert "All is well" not in done.stdout
