"""`lra-run --set model.family=convnet` without a variant and a track, which have only one value then."""

import json

import pytest
import yaml
from click.testing import CliRunner

from lra import load_results
from lra.config.profiles import load_profile
from lra.tasks import get_task
from reports.cli import command as lra_report
from runners.cli.run import command as lra_run
from runners.train.plan import family_defaults, plan
from tests.lra.data.archive_cases import cifar_members, tar_bytes

BARE = ["--task", "image", "--set", "model.family=convnet", "--set", "model.pool=contextpool"]
BARE_ID = "02606bf109d4b3bfeb75b0538cc9c458b9c644c7ce919224c3a4b617793791e5"
"""Id of `BARE` in profile quick, on data with the digest `digest`."""
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

    # It has no form with full attention, so its parameters are not relative to one.
    cost = CliRunner().invoke(lra_report, ["table", "cost", "--store", str(tmp_path), "--json"], catch_exceptions=False)
    [row] = json.loads(cost.stdout)[0]["rows"]
    assert (row["parameters"], row["parameters (x full)"]) == (f"{record['cost']['parameters']:,}", "-")
    assert load_results(tmp_path)["parameters_full"].isna().all()
    planned = run(place, *BARE, "--dry-run", "--seeds", "0,1").stdout.splitlines()
    assert any(line.split()[0] == "image" and line.split()[-2] == "-" for line in planned if line)


def test_it_is_the_run_of_the_explicit_form(place):
    bare = run(place, *BARE, "--dry-run")
    explicit = run(place, *BARE, "--attn", "conv", "--track", "open", "--dry-run")
    assert bare.exit_code == explicit.exit_code == 0, bare.stderr
    assert "run id: " in bare.stdout
    assert "known once" not in bare.stdout
    assert bare.stdout == explicit.stdout
    assert "model.family" in bare.stderr
    assert "model.family" not in explicit.stderr


FAMILY = {"model.family": "convnet"}


@pytest.mark.parametrize("task", ["image", "image_continuous"])
@pytest.mark.parametrize(
    ("profile", "overrides", "expected"),
    [
        ("quick", {}, (16, 0, 5e-4)),
        ("quick", {"train.lr": 1e-3}, (16, 0, 1e-3)),
        ("quick", {"model.dim": 32, "model.head_hidden": 8}, (32, 8, 5e-4)),
        ("modern", {}, None),
    ],
)
def test_the_recipe_of_a_profile_for_convnets_is_found_by_the_family(task, profile, overrides, expected):
    recipe = load_profile(profile)
    attn, track, line = family_defaults(None, None, FAMILY | overrides, recipe)
    assert (attn, track) == ("conv", "open")
    (config,) = plan(attn=attn, task=task, profile=recipe, seeds=[0], track=track, overrides=FAMILY | overrides)
    own = recipe.recipe(task)
    plain = (own.model["dim"], own.model.get("head_hidden", 0), own.train["lr"])
    assert (config.model.dim, config.model.head_hidden, config.train.lr) == (expected or plain)
    assert plain != expected
    for path, value in {"model.dim": 16, "model.head_hidden": 0, "train.lr": 0.0005}.items():
        assert (f"{path}={value}" in line) == (profile == "quick" and path not in overrides)


def test_the_recipe_changes_no_transformer():
    recipe = load_profile("quick")
    assert family_defaults("full", None, {}, recipe) == ("full", None, None)
    (config,) = plan(attn="full", task="image", profile=recipe, seeds=[0], track="matched", overrides={})
    assert (config.model.dim, config.model.head_hidden, config.train.lr) == (64, 128, 2e-3)


def test_the_bare_command_of_the_readme_is_the_run_that_it_always_was():
    values = FAMILY | {"model.pool": "contextpool"}
    (config,) = plan(
        attn="conv", task="image", profile=load_profile("quick"), seeds=[0], track="open", overrides=values
    )
    assert config.run_id("digest", 1) == BARE_ID  # of numerics version 1
    assert config.run_id("digest") != BARE_ID


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--track", "matched"], "model.family: fixed by the profile on the matched track"),
        (["--attn", "full"], "its variant is 'conv', not 'full'"),
        (["--set", "model.family=transformer"], "given as convnet and as transformer"),
    ],
)
def test_what_does_not_go_with_it_is_still_refused(place, more, message):
    done = run(place, *BARE, "--dry-run", *more)
    assert done.exit_code == 2
    assert message in done.stderr
