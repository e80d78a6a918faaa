"""`lra-run --set model.family=convnet` without a variant and a track, which have only one value then."""

import json

import pytest
import yaml
from click.testing import CliRunner

from lra.tasks import get_task
from runners.cli.run import command as lra_run
from runners.train.plan import convnet_defaults
from tests.lra.data.archive_cases import cifar_members, tar_bytes

BARE = ["--task", "image", "--set", "model.family=convnet", "--set", "model.pool=contextpool"]
DATA = {"train_images": 20, "test_images": 4}
PROFILE = {
    "name": "tiny", "title": "For tests", "source": "this test",
    "tasks": {"image": {
        "data": DATA,
        "model": {"dim": 8, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "max_length": 1024},
        "train": {"batch_size": 4, "steps": 3, "eval_every": 3, "lr": 0.001},
    }},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A profile, and tiny images prepared for it."""
    folder = tmp_path_factory.mktemp("convnet")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(PROFILE))
    (folder / "cifar").write_bytes(tar_bytes(cifar_members()))
    task = get_task("image")
    task.prepare(task.options.model_validate(DATA), folder / "home", source=folder / "cifar", progress=False)
    return folder


def run(place, *more):
    words = ["--profile", str(place / "tiny.yaml"), "--data-dir", str(place / "home"), "--device", "cpu", *more]
    return CliRunner().invoke(lra_run, words, catch_exceptions=False)


def test_the_bare_form_trains_and_says_what_it_filled_in(place, tmp_path):
    done = run(place, *BARE, "--store", str(tmp_path), "--threads", "1")
    assert done.exit_code == 0, done.stderr
    first = done.stderr.splitlines()[0]
    assert first.startswith("model.family=convnet: ")
    assert "--attn conv" in first
    assert "--track open" in first
    record = next(json.loads(path.read_text())["record"] for path in tmp_path.glob("results/*/*.json"))
    assert record["status"] == "ok"
    assert record["config"]["track"] == "open"
    assert record["config"]["variant"]["name"] == "conv"
    assert record["config"]["model"]["pool"] == "contextpool"


def test_it_is_the_cell_of_the_explicit_form(place):
    bare = run(place, *BARE, "--dry-run")
    explicit = run(place, *BARE, "--attn", "conv", "--track", "open", "--dry-run")
    assert bare.exit_code == explicit.exit_code == 0, bare.stderr
    assert "cell id: " in bare.stdout
    assert "known once" not in bare.stdout
    assert bare.stdout == explicit.stdout
    assert "model.family" in bare.stderr
    assert "model.family" not in explicit.stderr


BOTH = ("conv", "open")


@pytest.mark.parametrize(
    ("attn", "track", "profile", "overrides", "settings"),
    [
        (None, None, "quick", [], ["model.dim=16", "model.head_hidden=0", "train.lr=5e-4"]),
        (None, None, "quick", ["train.lr=1e-3"], ["model.dim=16", "model.head_hidden=0", "train.lr=1e-3"]),
        (None, None, "modern", [], []),
        (*BOTH, "quick", [], []),
    ],
)
def test_the_bare_form_has_its_own_width_and_rate_in_profile_quick(attn, track, profile, overrides, settings):
    family = ["model.family=convnet"]
    *chosen, filled, line = convnet_defaults(attn, track, [*family, *overrides], profile)
    assert chosen == list(BOTH)
    assert sorted(filled) == sorted([*family, *settings])
    assert (line is None) == (attn is not None)
    if line:
        added = [setting for setting in settings if setting not in overrides]
        assert all(f"--set {setting}" in line for setting in added)
    assert convnet_defaults("full", None, overrides, profile) == ("full", None, overrides, None)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--track", "matched"], "model.family: fixed by the profile on the matched track"),
        (["--attn", "full"], "its variant is 'conv', not 'full'"),
        (["--set", "model.family=transformer"], "--attn and --task are needed"),
    ],
)
def test_what_does_not_go_with_it_is_still_refused(place, more, message):
    done = run(place, *BARE, "--dry-run", *more)
    assert done.exit_code == 2
    assert message in done.stderr
