"""`lra-run` as a user meets it: as a process, with signals, kills, plug-ins and mistakes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from lra.data.dataset import open_prepared
from reports.cli import command as lra_report
from runners import signals
from runners.cli.run import command as lra_run
from runners.threads import default_threads
from runners.train import run as train
from tests.runners.tiny_runs import rewritten, tiny_data

ROOT = Path(__file__).resolve().parents[3]
RUN = [sys.executable, "-c", "from runners.cli.run import main; main()"]
PROFILE = {
    "name": "tiny", "title": "For tests", "source": "this test",
    "tasks": {"listops": {
        "data": {
            "train": 256, "validation": 64, "test": 64,
            "min_length": 4, "max_length": 24, "max_depth": 3, "max_args": 4,
        },
        "model": {"dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 16, "max_length": 24},
        "train": {"batch_size": 8, "steps": 30, "eval_every": 10, "lr": 0.01},
    }},
}  # fmt: skip


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    path.write_text(yaml.safe_dump(PROFILE))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def arguments(profile, home, store, *more, attn="full"):
    return [
        *RUN, "--attn", attn, "--task", "listops", "--profile", str(profile), "--data-dir", str(home),
        "--store", str(store), "--device", "cpu", "--threads", "1", *more,
    ]  # fmt: skip


def run(command, **settings):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **settings)


def run_here(arguments):
    """Run the command in this process, which spares the seconds in which a new one imports torch."""
    return CliRunner().invoke(lra_run, arguments[len(RUN) :], catch_exceptions=False)


def outcomes(store):
    records = [json.loads(path.read_text())["record"] for path in store.glob("results/*/*.json")]
    return {(r["config"]["variant"]["name"], r["config"]["seed"]): (r["outcome"], r["arrays_sha256"]) for r in records}


def test_a_grid_gives_one_record_each_and_one_table(profile, home, tmp_path):
    command = arguments(profile, home, tmp_path, "--seeds", "0-1", attn="full,ContextPool")
    done = run_here(command)
    assert done.exit_code == 0, done.stderr
    found = outcomes(tmp_path)
    assert set(found) == {(variant, seed) for variant in ("full", "contextpool") for seed in (0, 1)}
    assert len({outcome["weights_digest"] for outcome, _ in found.values()}) == 4
    assert done.stdout.count("test accuracy %") == 1
    assert "Run 4 of 4; about " in done.stderr
    assert "[4/4] contextpool, seed 1: step 30/30" in done.stderr
    assert "Trivial baselines, in %: chance 10.0" in done.stdout
    assert "\r" not in done.stderr  # no bar in a pipe
    again = run_here(command)
    assert again.exit_code == 0
    assert again.stdout == done.stdout
    assert outcomes(tmp_path) == found


SETS = """
    import torch

    class Mine(torch.nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.layers = torch.nn.ModuleDict({name: torch.nn.Linear(dim, dim) for name in {"value", "gate", "out"}})

        def forward(self, x, mask=None):
            for layer in self.layers.values():
                x = layer(x)
            return x
"""


@pytest.mark.nightly
def test_layers_in_the_order_of_a_set_give_the_same_bits_in_each_process(profile, home, tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(SETS))
    found = []
    for seed in ("1", "2"):
        more = ("--quiet", "--track", "open")
        command = arguments(profile, home, tmp_path / seed, *more, attn=f"{tmp_path}/mine.py:Mine")[len(RUN) :]
        done = run([sys.executable, "-m", "runners.cli.run", *command], env=os.environ | {"PYTHONHASHSEED": seed})
        assert done.returncode == 0, done.stderr
        found.append(outcomes(tmp_path / seed))
    assert found[0] == found[1]


@pytest.mark.parametrize(("name", "equal"), [("lra-run", True), ("lra-sweep", True), ("mine.py", False)])
def test_the_order_of_sets_is_fixed_in_a_command_and_no_program_of_others_starts_anew(tmp_path, name, equal):
    code = "print('begin', flush=True)\nfrom runners import fresh_python\nfresh_python.fix_order_of_sets()\n"
    (tmp_path / name).write_text(f"{code}print({{*map(str, range(99))}})\n")
    places = os.environ | {"PYTHONPATH": str(ROOT)}
    texts = [run([sys.executable, str(tmp_path / name)], env=places | {"PYTHONHASHSEED": seed}).stdout for seed in "12"]
    assert (texts[0] == texts[1]) == equal
    assert [text.count("begin") for text in texts] == [2 if equal else 1] * 2
    assert all("'98'" in text for text in texts)


@pytest.mark.nightly
def test_killed_at_random_moments_it_ends_with_the_same_bits(profile, home, tmp_path):
    unbroken = tmp_path / "unbroken"
    assert run(arguments(profile, home, unbroken, "--quiet")).returncode == 0
    expected = outcomes(unbroken)
    rng, killed = random.Random(7), tmp_path / "killed"
    command = arguments(profile, home, killed, "--quiet", "--checkpoint-seconds", "0")
    for floor in (1, 8, 16):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        limit = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < limit:
            steps = [int(path.stem.removeprefix("step-")) for path in killed.glob("checkpoints/*/step-*.pt")]
            if max(steps, default=0) >= floor:
                time.sleep(rng.random() * 0.05)
                break
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert not outcomes(killed)
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert outcomes(killed) == expected
    record = next(json.loads(path.read_text())["record"] for path in killed.glob("results/*/*.json"))
    assert record["cost"]["resumed"] == 3


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.nightly) for n in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_signal_saves_the_state_and_says_so(profile, home, tmp_path, number):
    long_profile = tmp_path / "long.yaml"
    values = json.loads(json.dumps(PROFILE))
    values["tasks"]["listops"]["train"] |= {"steps": 100_000, "eval_every": 100_000}
    long_profile.write_text(yaml.safe_dump(values))
    command = arguments(long_profile, home, tmp_path / "store", "--quiet", "--checkpoint-seconds", "0.2")
    heard = signal.signal(number, signal.SIG_DFL)  # were it ignored here, as under nohup, it would be ignored there
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    signal.signal(number, heard)
    limit = time.monotonic() + 60
    while not list(tmp_path.glob("store/checkpoints/*/step-*.pt")) and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 75
    assert "with the state saved; run the same command again to continue" in stderr
    assert '"preempted"' in next(tmp_path.glob("store/attempts/*/*.json")).read_text()


@pytest.mark.nightly
def test_a_signal_during_the_imports_ends_with_75(profile, home, tmp_path):
    process = subprocess.Popen(arguments(profile, home, tmp_path), cwd=ROOT, stderr=subprocess.DEVNULL)
    time.sleep(0.6)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) in (75, -signal.SIGTERM)  # before our handler is there, the default one acts
    assert not list(tmp_path.glob("results/*/*"))


def test_a_second_ctrl_c_ends_at_once():
    twice = (
        "import os, signal, time\n"
        "from runners import signals\n"
        "signals.install()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "assert signals.stop_requested()\n"
        "print('asked', flush=True)\n"
        "os.kill(os.getpid(), signal.{second})\n"
        "time.sleep(1)\n"
        "print('goes on')\n"
    )
    insisted = run([sys.executable, "-c", twice.format(second="SIGINT")])
    assert (insisted.returncode, insisted.stdout) == (130, "asked\n")
    asked_again = run([sys.executable, "-c", twice.format(second="SIGTERM")])  # a request like the first, no more
    assert (asked_again.returncode, asked_again.stdout) == (0, "asked\ngoes on\n")


def test_a_foreign_module_is_trained_by_its_file_and_stands_in_a_table(profile, home, tmp_path):
    file = ROOT / "tests" / "attention_zoo" / "foreign_modules.py"
    steps = ["--track", "open", "--set", "train.steps=2", "--set", "train.eval_every=2"]
    done = run_here(arguments(profile, home, tmp_path, *steps, attn=f"{file}:Tokens,full"))
    assert done.exit_code == 0, done.stderr
    found = outcomes(tmp_path)
    assert {name for name, _ in found} == {f"{file}:Tokens", "full"}
    table = CliRunner().invoke(lra_report, ["table", "accuracy", "--store", str(tmp_path)])
    for row in ("Full attention", "Tokens"):
        assert re.search(rf"^{row} +\d", table.stdout, re.MULTILINE), table.output


PLUGIN = """
from attention_zoo import SequenceMixer, Traits, VariantConfig, register_variant
from attention_zoo.base import LayerDims
from torch import nn


@register_variant("scratch", traits=Traits(memory="linear", complexity="O(n)"), paper="none")
class Scratch(SequenceMixer):
    def __init__(self, config: VariantConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.linear = nn.Linear(dims.dim, dims.dim)

    def forward(self, x, mask=None):
        self.check_input(x, mask)
        if mask is not None:
            x = x * mask.unsqueeze(-1)
        return self.linear(x.mean(dim=1, keepdim=True)).expand_as(x)
"""


@pytest.mark.nightly
def test_a_one_file_plug_in_is_trained_by_name(profile, home, tmp_path):
    site = tmp_path / "site"
    info = site / "scratch_attention-1.2.dist-info"
    info.mkdir(parents=True)
    (site / "scratch_attention.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scratch-attention\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[attention_zoo.variants]\nscratch = scratch_attention\n")
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = run(arguments(profile, home, tmp_path / "store", attn="scratch"), env=environment)
    assert done.returncode == 0, done.stderr
    assert ("scratch", 0) in outcomes(tmp_path / "store")
    record = next(json.loads(path.read_text())["record"] for path in tmp_path.glob("store/results/*/*.json"))
    assert re.fullmatch(r"scratch-attention 1\.2 source [0-9a-f]{16}", record["config"]["variant"]["origin"])


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (["--attn", "contxtpool"], 2, "unknown variant 'contxtpool'; did you mean 'contextpool'"),
        (["--task", "listop"], 2, "unknown task 'listop'; did you mean 'listops'?"),
        (["--profile", "offical"], 2, "unknown profile 'offical'; did you mean 'official'?"),
        (["--seeds", "3-1"], 2, "'3-1' runs backwards; write 1-3"),
        (["--seeds", "x"], 2, "'x' is not a seed"),
        (["--set", "variant.bakend=fused"], 2, "variant.bakend: no option of full; did you mean 'backend'?"),
        (["--set", "train.lr=1e-2"], 2, "train.lr: fixed by the profile on the matched track; --track open admits it"),
        (["--track", "open", "--set", "train.stepz=3"], 2, "train.stepz: unknown key; did you mean 'steps'?"),
        (["--track", "open", "--set", "train.steps=many"], 2, "train.steps: input should be a valid integer"),
        (["--track", "open", "--set", "modle.dim=3"], 2, "modle.dim: unknown key; paths begin with"),
        (["--set", "variant.backend"], 2, "expected key=value"),
        (["--device", "tpu9"], 2, "--device tpu9: not a device"),
        (["--device", "cuda:99"], 2, "CUDA devices"),
        (["--atn", "full"], 2, "No such option '--atn'"),
        (["--store", "/proc/nowhere"], 3, "cannot write to the store /proc/nowhere"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_each_and_leave_nothing(profile, home, tmp_path, change, code, message):
    done = run_here([*arguments(profile, home, tmp_path / "store"), *change])
    assert done.exit_code == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("store/results"))


def test_all_mistakes_come_at_once(profile, home, tmp_path):
    more = ["--track", "open", "--set", "train.steps=0", "--set", "model.dim=-1", "--set", "variant.x=1"]
    done = run_here(arguments(profile, home, tmp_path, *more))
    assert done.exit_code == 2
    assert done.stderr.count("Error: ") == 3
    for path in ("train.steps", "model.dim", "variant.x: no option of full"):
        assert path in done.stderr


@pytest.mark.parametrize("start", [run_here, pytest.param(run, marks=pytest.mark.nightly)])
def test_a_broken_profile_is_one_line_with_its_place(home, tmp_path, start):
    (tmp_path / "bad.yaml").write_text("name: a\nname: b\n")
    done = start(arguments(tmp_path / "bad.yaml", home, tmp_path))
    assert (done.returncode if start is run else done.exit_code) == 2
    assert "bad.yaml:2:1: duplicate key 'name'" in done.stderr
    assert "Traceback" not in done.stderr


def test_damaged_data_ends_with_3(profile, home, tmp_path):
    broken = tmp_path / "home"
    assert run_here(arguments(profile, broken, tmp_path / "store", "--quiet")).exit_code == 0
    tokens = next(broken.glob("*/train-tokens.npy"))
    tokens.chmod(0o644)
    tokens.write_bytes(tokens.read_bytes()[:-1])
    done = run_here(arguments(profile, broken, tmp_path / "store2", "--quiet"))
    assert done.exit_code == 3
    assert "damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_record_is_not_printed_for_data_that_was_changed_since(profile, home, tmp_path):
    changed = tmp_path / "home"
    command = arguments(profile, changed, tmp_path / "store", "--quiet")
    assert run_here(command).exit_code == 0
    labels = next(changed.glob("*/test-labels.npy"))
    labels.chmod(0o644)
    content = labels.read_bytes()
    labels.write_bytes(content[:-1] + bytes([(content[-1] + 1) % 10]))
    done = run_here(command)
    assert done.exit_code == 3
    assert "damaged, its content is not what its manifest says" in done.stderr
    assert done.stdout == ""


def test_a_record_is_repeated_on_its_own_data_alone(profile, home, tmp_path):
    assert run_here(arguments(profile, home, tmp_path / "store", "--quiet")).exit_code == 0
    (record,) = (tmp_path / "store").glob("results/*/*.json")
    words = ["--config", str(record), "--store", str(tmp_path / "store"), "--device", "cpu", "--threads", "1"]
    assert run_here([*RUN, *words, "--data-dir", str(home)]).exit_code == 0
    (folder,) = home.glob("listops-*")
    data = open_prepared(folder, verify=False)
    others = data.splits | {"train": replace(data.split("train"), labels=data.split("train").labels[::-1])}
    rewritten(data, tmp_path / "other" / folder.name, others)
    done = run_here([*RUN, *words, "--data-dir", str(tmp_path / "other"), "--force"])
    assert done.exit_code == 3
    assert "not the data of run" in done.stderr
    assert len(list((tmp_path / "store").glob("results/*/*"))) == 1


@pytest.fixture
def repeated(monkeypatch):
    """The seeds that `--force` repeats; a stop comes after each."""
    requested, seeds, genuine = [], [], train.run

    def repeat(config, data, store, options, stop_requested):
        if options.force:
            seeds.append(config.seed)
            requested.append(signal.SIGTERM)
        return genuine(config, data, store, options, lambda: False)

    def run_forced(command, force="--force"):
        requested.clear()
        return run_here([*command, "--quiet", *force.split()])

    monkeypatch.setattr(train, "run", repeat)
    monkeypatch.setattr(signals, "_requested", requested)
    return seeds, run_forced


@pytest.mark.parametrize(("sound", "last"), [(True, 0), (False, 3)])
def test_a_command_with_force_goes_on_behind_what_it_has_repeated(
    profile, home, tmp_path, monkeypatch, repeated, sound, last
):
    """The first run may have another outcome, which the end of the command says, too."""
    command = arguments(profile, home, tmp_path, "--seeds", "0-2")
    assert run_here([*command, "--quiet"]).exit_code == 0
    seeds, run_forced = repeated
    with monkeypatch.context() as unsound:
        if not sound:
            unsound.setattr("runners.train.loop.seed_all", lambda *_: torch.manual_seed(1))
            unsound.setattr(torch.optim.AdamW, "zero_grad", lambda self, **_: None)
        ends = [run_forced(command)]
    ends += [run_forced(command) for _ in range(3)]
    assert seeds == [0, 1, 2, 0], [done.stderr for done in ends]
    assert [done.exit_code for done in ends] == [75, 75, last, 75]
    assert [done.stderr.count("ended before this command was stopped") for done in ends] == [0, 1, 2, 0]


@pytest.mark.parametrize("other", ["record", "environment", "command"])
def test_what_was_repeated_for_another_record_elsewhere_or_by_another_command_counts_not(
    profile, home, tmp_path, monkeypatch, repeated, other
):
    command, reverse = (arguments(profile, home, tmp_path, "--seeds", seeds) for seeds in ("0,1", "1,0"))
    assert run_here([*command, "--quiet"]).exit_code == 0
    seeds, run_forced = repeated
    assert run_forced(command).exit_code == 75
    assert seeds == [0]
    (note,) = (tmp_path / "checkpoints").glob("again-*.json")
    if other == "record":
        for path in tmp_path.glob("results/*/*.json"):
            path.unlink()
        assert run_forced(command, "").exit_code == 0
    if other == "environment":
        monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    if other == "command":
        assert run_forced(reverse).exit_code == 75
        assert seeds == [0, 1]
        (theirs,) = {*(tmp_path / "checkpoints").glob("again-*.json")} - {note}
        theirs.write_bytes(note.read_bytes())
    done = run_forced(reverse if other == "command" else command)
    assert seeds == ([0, 1, 1] if other == "command" else [0, 0])
    assert "ended before" not in done.stderr
    assert ("is of another command; passed over" in done.stderr) == (other == "command")


def test_a_damaged_record_costs_no_other_seed_its_run(profile, home, tmp_path):
    store = tmp_path / "store"
    assert run_here(arguments(profile, home, store, "--quiet")).exit_code == 0
    (record,) = store.glob("results/*/*.json")
    record.write_bytes(record.read_bytes()[:-50])
    done = run_here(arguments(profile, home, store, "--quiet", "--seeds", "0-1"))
    assert done.exit_code == 3
    assert done.stderr.count("Error: ") == 1
    assert f"Error: full, seed 0: {record}: damaged" in done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("Full attention")]
    assert rows[0][2:4] == ["0", "damaged"]
    assert float(rows[1][3]) > 0
    assert len(list(store.glob("results/*/*.json"))) == 2


def test_run_and_sweep_take_the_same_number_of_threads(monkeypatch):
    """Whatever the machine and the slots, so that both give the same bits."""
    cores = iter([1, 1, 2, 2, 3, 3, 8, 8, 64, 64])
    monkeypatch.setattr("os.cpu_count", lambda: next(cores))
    assert [default_threads({}) for _ in range(5)] == [1, 1, 1, 2, 16]
    assert default_threads({"OMP_NUM_THREADS": "3"}) == 3


def test_dry_run_prints_the_count_and_runs_nothing(tmp_path):
    command = [*RUN, "--attn", "full", "--task", "listops", "--dry-run", "--data-dir", str(tmp_path)]
    for profile, count in (("official", "8,948,746"), ("nystromformer", "209,802")):
        done = run_here([*command, "--profile", profile])
        assert done.exit_code == 0, done.stderr
        assert f"parameters: {count} (1.000 x full attention)" in done.stdout
        assert "run id: known once the data is prepared" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["manifest", "link"])
def test_dry_run_does_not_call_damaged_data_not_prepared(tmp_path, damage):
    data = tiny_data(tmp_path)
    command = [*RUN, "--attn", "full", "--task", "listops", "--dry-run", "--data-dir", str(tmp_path)]
    command += [word for name, value in data.manifest.options.items() for word in ("--set", f"data.{name}={value}")]
    assert "run id: known once" not in run_here([*command, "--track", "open"]).stdout
    if damage == "manifest":
        (data.path / "manifest.json").write_text("{}")
    else:
        data.path.rename(tmp_path / "away")
        data.path.symlink_to(tmp_path / "nothing")
    done = run_here([*command, "--track", "open"])
    assert done.exit_code == 3
    assert data.path.name in done.stderr


def test_divergence_ends_with_4_and_no_number(profile, home, tmp_path):
    more = ["--track", "open", "--set", "train.lr=1e30", "--quiet"]
    done = run_here(arguments(profile, home, tmp_path, *more))
    assert done.exit_code == 4
    assert "diverged: " in done.stderr
    assert "diverged" in done.stdout
    assert outcomes(tmp_path)["full", 0][0] is None
