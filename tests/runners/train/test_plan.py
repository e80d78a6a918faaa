"""`--config` reads what `--dry-run` prints, as the same run."""

import pytest
import yaml
from click.testing import CliRunner

from lra.config.builtin import profile_names
from lra.config.profiles import load_profile
from lra.errors import UsageError
from runners.cli.run import command
from runners.train.plan import describe, plan, read_config


def dry_run(*words, text=None):
    done = CliRunner().invoke(command, [*words, "--dry-run", "--device", "cpu"], input=text)
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("LRA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.mark.parametrize("profile", profile_names())
def test_every_run_that_a_dry_run_describes_can_be_read_back(profile, home, tmp_path):
    configs = plan(
        attn="full,contextpool", task="all", profile=load_profile(profile), seeds=[0, 7], track="matched", overrides={}
    )
    assert len(configs) == 4 * len(load_profile(profile).tasks)
    for config in configs[::4] + configs[3::4]:
        path = tmp_path / "run.yaml"
        path.write_text(describe(config, home))
        assert read_config(str(path)) == config


@pytest.mark.parametrize("more", [[], ["--set", "variant.base_options={window: 8}", "--set", "variant.base=local"]])
def test_a_dry_run_goes_in_again_as_a_file_or_as_input(tmp_path, more):
    printed = dry_run("--attn", "contextpool", "--task", "listops", "--profile", "quick", "--seeds", "3", *more)
    (tmp_path / "run.yaml").write_text(printed)
    assert dry_run("--config", str(tmp_path / "run.yaml")) == printed
    assert dry_run("--config", "-", text=printed) == printed
    assert [line.split(":")[0] for line in printed.splitlines() if line.startswith("#")] == [
        "# data",
        "# parameters",
        "# run id",
    ]


def test_several_runs_are_documents_and_config_says_that_it_wants_one(tmp_path):
    printed = dry_run("--attn", "full,local", "--task", "listops", "--profile", "quick")
    assert [each["variant"]["name"] for each in yaml.safe_load_all(printed)] == ["full", "local"]
    path = tmp_path / "two.yaml"
    path.write_text(printed)
    with pytest.raises(UsageError, match=r"two.yaml: several runs; --config runs one"):
        read_config(str(path))
    for part in printed.split("---\n"):
        assert dry_run("--config", "-", text=part) == part
