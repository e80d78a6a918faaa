"""`--config` reads what `--dry-run` prints, as the same run."""

import math
import re

import pytest
import torch
from click.testing import CliRunner

from lra.config.builtin import profile_names
from lra.config.profiles import load_profile
from lra.config.suites import Suite, expand
from lra.errors import DataError, UsageError
from lra.tasks import get_task
from runners.bench.measure import BenchPlan
from runners.bench.workload import minutes_on_cpu
from runners.cli.run import command
from runners.sweep.state import sweep_runs
from runners.train.plan import describe, plan, read_config, shortened, usual_length


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
    recipe = load_profile(profile)
    tasks = ",".join(recipe.tasks)
    configs = plan(attn="full,contextpool", task=tasks, profile=recipe, seeds=[7], track="matched", overrides={})
    assert len(configs) == 2 * len(recipe.tasks)
    for config in configs[::4] + configs[3::4]:  # full attention on one task, ContextPool on the next
        path = tmp_path / "run.yaml"
        path.write_text(describe(config, home))
        assert read_config(str(path))[0] == config


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


def test_a_dry_run_of_several_runs_is_a_table(tmp_path):
    words = ["--attn", "full,linformer", "--task", "text,retrieval", "--profile", "official", "--seeds", "0-2"]
    printed = dry_run(*words)
    rows = [line.split() for line in printed.splitlines()]
    assert [row[:6] for row in rows if row and row[0] in ("text", "retrieval")] == [
        ["text", "full", "20,000", "32", "1,000", "640"],
        ["text", "linformer", "20,000", "32", "1,000", "640"],
        ["retrieval", "full", "5,000", "32", "4,000", "1,280"],
        ["retrieval", "linformer", "5,000", "32", "4,000", "1,280"],
    ]
    assert "12 runs (3 seeds), profile official, matched track." in printed


def test_a_dry_run_estimates_minutes_of_short_steps_and_of_few_rows(monkeypatch, home):
    lengths = []
    monkeypatch.setattr("runners.bench.workload.minutes_on_cpu", lambda config, length: lengths.append(length) or 2.25)
    words = ["--attn", "mlp_only", "--task", "listops,text", "--profile", "mini"]
    assert [line.split()[-1] for line in dry_run(*words).splitlines()[2:4]] == ["2.2", "2.2"]
    assert lengths == [512, 1024]
    monkeypatch.setattr("runners.train.plan.TIMED_ROWS", 1)
    assert [line.split()[-1] for line in dry_run(*words).splitlines()[2:4]] == ["-", "-"]


@pytest.mark.parametrize("profile", ["official", "nystromformer"])  # more tokens and parameters, longer sequences
def test_long_steps_are_not_tried(profile):
    (config,) = plan(
        attn="full", task="text", profile=load_profile(profile), seeds=[0], track="matched", overrides={}
    )  # fmt: skip
    assert minutes_on_cpu(config, 10) is None


def test_the_estimate_is_the_time_of_a_step_times_the_steps(monkeypatch):
    clock = iter([100.0, 101.0])
    monkeypatch.setattr("runners.bench.workload.time.process_time", lambda: next(clock))
    monkeypatch.setattr("runners.bench.workload.torch.get_num_threads", lambda: 2)
    (config,) = plan(
        attn="mlp_only", task="listops", profile=load_profile("mini"), seeds=[0], track="open",
        overrides={"model.dim": 8, "train.steps": 600},
    )  # fmt: skip
    assert minutes_on_cpu(config, 20) == 5.0


def test_the_length_of_the_estimate_is_that_of_the_data_once_it_is_there(home):
    (config,) = plan(
        attn="mlp_only", task="listops", profile=load_profile("quick"), seeds=[0], track="open",
        overrides={"data.train": 20, "data.validation": 5, "data.test": 5},
    )  # fmt: skip
    assert usual_length(config, home) == 64
    task = get_task("listops")
    data = task.prepare(task.options.model_validate(config.data), home, workers=1, progress=False)
    assert usual_length(config, home) == math.ceil(data.split("train").document_lengths.mean()) < 64


def test_all_tasks_are_the_six_of_the_benchmark_and_go_by_the_name_of_their_data_too():
    def tasks(text, profile="mini"):
        configs = plan(attn="full", task=text, profile=load_profile(profile), seeds=[0], track="matched", overrides={})
        return [config.task for config in configs]

    assert tasks("all") == tasks("all", "official") == ["listops", "text", "retrieval", "image", "pathfinder", "pathx"]
    assert tasks("IMDb,cifar10,CIFAR-10,aan,listops") == ["text", "image", "retrieval", "listops"]


def test_config_runs_one_run_of_several(tmp_path):
    parts = [dry_run("--attn", name, "--task", "listops", "--profile", "quick") for name in ("full", "local")]
    path = tmp_path / "two.yaml"
    path.write_text("---\n".join(parts))
    with pytest.raises(UsageError, match=r"two.yaml: several runs; --config runs one"):
        read_config(str(path))


def test_a_trial_is_short_and_on_the_open_track():
    [config] = plan(
        attn="full", task="listops", profile=load_profile("quick"), seeds=[0], track="matched", overrides={}
    )
    short = shortened(config, 20, load_profile("quick"))
    assert (short.track, short.train.steps, short.train.eval_every, short.train.warmup_steps) == ("open", 20, 20, 20)
    assert shortened(config, 10**6, load_profile("quick")) == config.model_copy(update={"track": "open"})
    assert "track: open\n" in dry_run(
        "--attn", "full", "--task", "listops", "--profile", "quick", "--limit-steps", "20"
    )


def edited(tmp_path, old, new, profile="quick"):
    """Write the run of a dry run with a text and the name of the profile replaced."""
    printed = dry_run("--attn", "contextpool", "--task", "listops", "--profile", "quick")
    assert old in printed
    written = printed.replace(old, new).replace("profile: quick", f"profile: {profile}")
    (tmp_path / "run.yaml").write_text(written)
    return str(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("initial_sigma: 1.0", "initial_sigma: 1"),
        ("lr: 0.001", "lr: 1e-3"),
        ("dropout: 0.0", "dropout: -0.0"),
        ("  clip_norm: 1.0", "  clip_norm: 1"),
        ("base: full", "base: Full"),
        ("base_options: {}", "base_options: {backend: auto}"),
        ("  pool_origin: ''\n", ""),  # a file from before this setting
    ],
)
def test_a_configuration_that_is_written_otherwise_is_the_same_run(tmp_path, old, new):
    same = plan(
        attn="contextpool",
        task="listops",
        profile=load_profile("quick"),
        seeds=[0],
        track="matched",
        overrides={},
    )
    config = read_config(edited(tmp_path, old, new))[0]
    assert (config.run_id("d"), config.key()) == (same[0].run_id("d"), same[0].key())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr: 0.001", "lr: 0.002", r"train.lr not as in profile 'quick'; write `track: open`, or another name"),
        ("  test: 2000", "  test: 200", r"data.test not as in profile 'quick'"),
        ("    hidden: 0\n", "", "this one leaves some out"),
        ("  clip_norm: 1.0\n", "", "not a complete configuration"),
        ("origin: ''\nmodel", "origin: theirs 1.0\nmodel", "not 'theirs 1.0': with another program it is another run"),
        ("name: contextpool", "name: ContextPool", "its name is 'contextpool', under which a run has another id"),
        ("task: listops", "task: ListOps", "task 'ListOps': its name is 'listops', under which a run has another id"),
        ("profile: quick", "profile: Quick", "`profile: Quick` could be taken for another one"),
        ("profile: quick", "profile: 'qu-ick '", "could be taken for another one"),
        ("profile: quick", "profile: qu\u0456ck", "could be taken for another one"),
        ("pool_origin: ''", "pool_origin: theirs", "with another program it is another run"),
    ],
)
def test_a_configuration_of_another_run_is_refused(tmp_path, old, new, message):
    with pytest.raises(UsageError, match=message):
        read_config(edited(tmp_path, old, new))


@pytest.mark.parametrize(("old", "new"), [("hidden: 0", "hidden: 16"), ("head_dim: 0", "head_dim: 16")])
def test_a_default_that_a_file_of_ones_own_profile_spells_out_is_no_second_run(tmp_path, old, new):
    with pytest.raises(UsageError, match="means the same as 0; write that"):
        read_config(edited(tmp_path, old, new, profile="mine"))
    assert read_config(edited(tmp_path, "seed: 0", "seed: 0", profile="mine"))[0].profile == "mine"


def test_two_paths_of_one_file_are_one_run(tmp_path, monkeypatch):
    """In all that makes runs of names: else the driver of a sweep starts one twice, and tables have it in two rows."""
    (tmp_path / "my.py").write_text(
        "from torch import nn\nclass A(nn.Identity):\n    def __init__(self, dim):\n        super().__init__()\n"
    )
    monkeypatch.chdir(tmp_path)
    names, profile = ["my.py:A", "./my.py:A", f"{tmp_path}/my.py:A"], load_profile("quick")
    runs = plan(attn=",".join(names), task="listops", profile=profile, seeds=[0], track="matched", overrides={})
    suite = Suite(name="s", profile="quick", tasks=["listops"], variants={name: {} for name in names}, seeds=[0])
    steps = BenchPlan(
        variants=names, task="listops", profile=profile, lengths=[64], batch=2, device=torch.device("cpu"), threads=1
    )
    for configs in (runs, expand(suite), steps.configs()[64]):
        assert [config.variant.name for config in configs] == ["my.py:A"]


def test_two_spellings_of_ones_own_profile_are_one_run(tmp_path):
    shipped = load_profile("quick")
    recipe = shipped.tasks["listops"]
    found = set()
    for written in ({}, {"hidden": 16}):
        changes = {"name": "mine", "variants": {"contextpool": written}, "tasks": {"listops": recipe}}
        own = shipped.model_copy(update=changes)
        (config,) = plan(attn="contextpool", task="listops", profile=own, seeds=[0], track="matched", overrides={})
        found.add((config.run_id("d"), config.variant.options["hidden"]))
    assert len(found) == 1
    assert {hidden for _, hidden in found} == {0}


def test_a_precision_that_the_profile_admits_stays_on_the_matched_track(tmp_path):
    words = ["--attn", "full", "--task", "listops", "--profile"]
    printed = dry_run(*words, "nystromformer", "--set", "train.precision=bfloat16")
    (tmp_path / "run.yaml").write_text(printed)
    config = read_config(str(tmp_path / "run.yaml"))[0]
    assert (config.track, config.train.precision) == ("matched", "bfloat16")
    (tmp_path / "run.yaml").write_text(printed.replace("profile: nystromformer", "profile: paper"))
    with pytest.raises(UsageError, match=r"train\.precision"):
        read_config(str(tmp_path / "run.yaml"))


def test_the_open_track_or_another_name_admits_any_recipe(tmp_path):
    path = edited(tmp_path, "lr: 0.001", "lr: 0.002")
    for old, new in (("track: matched", "track: open"), ("profile: quick", "profile: mine")):
        text = (tmp_path / "run.yaml").read_text()
        (tmp_path / "other.yaml").write_text(text.replace(old, new))
        assert read_config(str(tmp_path / "other.yaml"))[0].train.lr == 0.002
    with pytest.raises(UsageError):
        read_config(path)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("head_dim: 0", "head_dim: 16", "model.head_dim: 16 means the same as 0"),
        ("embedding_rows: null", "embedding_rows: 16", "model.embedding_rows: 16 means the same as None"),
        ("positions: sinusoidal", "positions: rotary", "--set model.positions=none"),
        ("ramp: 0", "ramp: 4", "variant.ramp: 4 means the same as 0"),
    ],
)
def test_a_file_of_the_open_track_spells_out_no_second_id(tmp_path, old, new, told):
    words = [
        "--attn",
        "adaptive_span" if "ramp" in old else "full",
        "--task",
        "listops",
        "--profile",
        "quick",
        "--track",
        "open",
    ]
    printed = dry_run(*words)
    assert old in printed
    (tmp_path / "run.yaml").write_text(printed.replace(old, new))
    with pytest.raises(UsageError, match=told):
        read_config(str(tmp_path / "run.yaml"))


WRITTEN = {
    # what a run without it is: words of the command, and the text that is replaced in what it prints
    "denoising that no section describes": (
        "full listops quick", "  denoise: 0.0", "  denoise: 0.5", "train.denoise: the section `pretrain`",
    ),
    "changed examples of a task without any": (
        "full text quick", "  augment: false", "  augment: true", "train.augment: nothing is known",
    ),
    "parts of an example that have not its label": (
        "full listops quick", "  crop: null", "  crop: 64", "train.crop: a part of an example",
    ),
    "pretraining on the test inputs": (
        "full text official", "pretrain: null\n",
        "pretrain: {share: 0.4, mask_rate: 0.15, mask_span: 1, loss: cross_entropy, lr_scale: 1.0, warmup: null}\n",
        "pretrain.share: the validation split of this dataset is its test split",
    ),
    "pretraining without steps": (
        "full listops quick", "pretrain: null\n",
        "pretrain: {share: 0.0, mask_rate: 0.1, mask_span: 1, loss: cross_entropy, lr_scale: 1.0, warmup: null}\n",
        "pretrain: without effect",
    ),
    "a distance of ids": (
        "full listops quick", "pretrain: null\n",
        "pretrain: {share: 0.4, mask_rate: 0.1, mask_span: 1, loss: l1, lr_scale: 1.0, warmup: null}\n",
        "pretrain.loss: l1 is a distance of values",
    ),
    "a warm-up of no phase": (
        "full listops quick train.denoise=0.5", "  warmup: null", "  warmup: 3",
        "pretrain.warmup: 3 means the same as None",
    ),
    "a rate of a causal model": (
        "full listops quick pretrain.share=0.4 model.causal=true", "  mask_rate: 0.1", "  mask_rate: 0.2",
        "pretrain.mask_rate: 0.2 means the same as 0.1",
    ),
    "a causal model of a variant without the form": (
        "linformer listops quick", "  causal: false", "  causal: true", "model.causal: linformer has no causal form",
    ),
    "heads that do not share the width": (
        "full listops quick", "  num_heads: 4", "  num_heads: 3", "model.num_heads: dim 64 is not a multiple of 3",
    ),
    "a pooling of a transformer": (
        "full listops quick", "  pool: max", "  pool: average", "model.pool: only model.family=convnet",
    ),
    "heads of a convnet": (
        "conv image quick model.family=convnet", "  num_heads: 2", "  num_heads: 1",
        "model.num_heads: 1 means the same as 2",
    ),
    "options of a convnet's variant": (
        "conv image quick model.family=convnet", "    kernel_size: 5", "    kernel_size: 7", "takes no options with it",
    ),
    "a model that is shorter than the data": (
        "full image quick", "  max_length: 1024", "  max_length: 1000",
        "model.max_length: 1000 is shorter than the data",
    ),
    "parts of a batch that has statistics": (
        "full listops quick model.norm=batch", "  accumulation: 1", "  accumulation: 2", "model.norm: batch norm needs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRITTEN)
def test_a_file_is_refused_for_all_that_the_options_of_a_command_are(tmp_path, what):
    words, old, new, told = WRITTEN[what]
    attn, task, profile, *settings = words.split()
    more = [word for setting in settings for word in ("--set", setting)]
    printed = dry_run("--attn", attn, "--task", task, "--profile", profile, "--track", "open", *more)
    assert printed.count(old) == 1
    (tmp_path / "run.yaml").write_text(printed)
    read_config(str(tmp_path / "run.yaml"))
    (tmp_path / "run.yaml").write_text(printed.replace(old, new))
    with pytest.raises(UsageError, match=re.escape(told)):
        read_config(str(tmp_path / "run.yaml"))


def test_settings_for_the_variants_beside_a_whole_model_do_not_change_its_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "from torch import nn\ndef build(vocabulary_size, max_length, num_classes):\n    return nn.Identity()\n"
    (tmp_path / "whole.py").write_text(source)

    def both(**overrides):
        configs = plan(
            attn="full", model="whole.py:build", task="listops", profile=load_profile("quick"), seeds=[0], track="open",
            overrides=overrides,
        )  # fmt: skip
        return [config.run_id("d") for config in configs]

    plain, changed = both(), both(**{"model.num_layers": 3})
    assert plain[1] == changed[1]
    assert plain[0] != changed[0]


def test_a_trial_has_the_one_name_of_its_positions():
    """On the open track; else one computation would have two ids."""
    profile = load_profile("rotary")
    words = {"attn": "full", "task": "listops", "profile": profile, "seeds": [0], "track": "matched"}
    [config] = plan(**words, overrides={"variant.rotary": False})
    with pytest.raises(UsageError, match=r"write --set model\.positions=none \(--limit-steps makes a run of the open"):
        shortened(config, 20, profile)


def test_no_id_is_printed_of_data_that_is_not_what_its_folder_says(tmp_path):
    """A run would refuse it."""
    sizes = {"data.train": 40, "data.validation": 20, "data.test": 20}
    [config] = plan(
        attn="full", task="parity", profile=load_profile("probes"), seeds=[0], track="open", overrides=sizes
    )
    task = get_task("parity")
    options = task.options.model_validate(config.data)
    other = task.prepare(options.model_copy(update={"seed": 5}), tmp_path, progress=False)
    other.path.rename(tmp_path / task.folder_name(options))
    with pytest.raises(DataError, match="other data than its name says"):
        describe(config, tmp_path)
    assert usual_length(config, tmp_path) == config.model.max_length
    assert [run.run_id for run in sweep_runs([config], tmp_path)] == [None]
    (tmp_path / task.folder_name(options)).rename(tmp_path / "elsewhere")
    assert f"# run id: {config.run_id(task.prepare(options, tmp_path, progress=False).digest)}" in describe(
        config, tmp_path
    )
