"""A store made by the quick suites and the bench gives every table, every figure and everything else of `lra-report`.

The commands are the user's, `lra-sweep run`, `lra-bench` and `lra-report`, in this process; the suites are the built-in
ones with their cells, only made tiny.
"""

import csv
import re
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from PIL import Image

from attention_zoo import available, get_variant
from lra.config.suites import expand, load_suite
from lra.results.records import RunRecord, Store
from reports.cli import FIGURES, PRESETS
from reports.cli import command as report_command
from runners.cli import bench as bench_command
from runners.cli import run as run_command
from runners.cli import sweep as sweep_command
from runners.sweep.launchers.base import JobResult, Launcher

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]  # half a minute; a busy machine takes longer

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "listops": {
        "data.train": 64, "data.validation": 16, "data.test": 64, "data.min_length": 4, "data.max_length": 16,
        "data.max_depth": 3, "data.max_args": 3, "model.max_length": 16,
    },
    "parity": {"data.train": 64, "data.validation": 16, "data.test": 64, "model.num_layers": 1},
}  # fmt: skip
SMALL = {
    "model.dim": 8, "model.num_heads": 2, "model.mlp_dim": 8, "model.head_hidden": 8, "train.batch_size": 4,
    "train.steps": 8, "train.warmup_steps": 1, "train.eval_every": 4,
}  # fmt: skip
PRESET_ARGUMENTS = {
    "accuracy": [],
    "seeds": [],
    "ranks": [],
    "cost": [],
    "efficiency": [],
    "depth": [],
    "probes": [],
    "published": [],
    "head-to-head": ["contextpool [num_layers=2, placement=branch]", "full [num_layers=2]"],
    "ablation": ["contextpool"],
    "calibration": ["quick:open", "published:original"],
}
FIRST_COLUMNS = dict.fromkeys(["accuracy", "efficiency", "probes", "ranks"], "variant")
"""Of the presets whose tables do not begin with the task."""
NOT_FROM_QUICK_ALONE = {
    "ranks": "ranks need two tasks",
    "depth": "have the same number of layers",
    "efficiency": "no measurements of lra-bench",
    "probes": "no run of a probe",
    "ablation": "contextpool has one setting only",
}
"""Presets that the suite `quick` alone does not give, with what they say; the suite `tour` and lra-bench give them."""


class ThisProcess(Launcher):
    """Runs each job as a child process would, with `lra-run --config -`, but in this one: no imports to wait for."""

    def __init__(self):
        self.ended = []

    def free_slots(self):
        return 1

    def start(self, jobs):
        for job in jobs:
            done = CliRunner().invoke(run_command.command, ["--config", "-", *job.arguments], input=job.config)
            self.ended.append(JobResult(key=job.key, returncode=done.exit_code, detail=done.output))

    def poll(self):
        ended, self.ended = self.ended, []
        return ended

    def stop(self):
        pass

    def close(self):
        pass


def invoke(command, *arguments):
    done = CliRunner().invoke(command, [*map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def sweep(name, folder):
    """Run a built-in suite, made tiny, with `lra-sweep run`; return how many cells it has."""
    suite = yaml.safe_load((ROOT / "configs" / "suites" / f"{name}.yaml").read_text())
    suite["overrides"] = {task: TINY[task] | SMALL for task in suite["tasks"]}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(suite))
    places = ["--store", folder / "store", "--data-dir", folder / "home"]
    invoke(sweep_command.command, "run", path, *places, "--threads", 1, "--slots", 1)
    return len(expand(load_suite(str(path))))


def report(folder, *arguments):
    words = [*map(str, arguments), "--store", str(folder / "store")]
    return CliRunner().invoke(report_command, words, catch_exceptions=False)


def rows_of(done, form="csv"):
    """Read the tables of a CSV output: rows without captions, notes and baselines."""
    lines = [row for row in csv.reader(done.stdout.splitlines()) if row]
    return [row for row in lines if not row[0].startswith(("#", "Chance", "Majority", "Root-only"))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The store, what `quick` alone did not give, and the number of runs that the suites have."""
    folder = tmp_path_factory.mktemp("every")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_command, "make_launcher", lambda *settings: ThisProcess())
        cells = [sweep("quick", folder)]
        refused = {}
        for preset, names in PRESET_ARGUMENTS.items():
            names = ["contextpool", "full"] if preset == "head-to-head" else names
            done = report(folder, "table", preset, *names)
            if done.exit_code:
                refused[preset] = done.stderr
        cells.append(sweep("tour", folder))
        invoke(
            bench_command.command, "--attn", "contextpool", "--lengths", "32,64", "--profile", "quick", "--batch", 1,
            "--threads", 1, "--steps", 6, "--seconds", 0, "--device", "cpu", "--quiet", "--store", folder / "store",
        )  # fmt: skip
        options = SMALL | {"data.train": 8, "data.length": 16, "data.test_length": "[16, 32]", "data.test": 16}
        sets = [word for name, value in options.items() for word in ("--set", f"{name}={value}")]
        for variant in ("full", "local"):
            invoke(
                run_command.command, "--attn", variant, "--task", "recall", "--profile", "probes", "--track", "open",
                *sets, "--store", folder / "probes" / "store", "--data-dir", folder / "home", "--threads", 1, "--quiet",
            )  # fmt: skip
    torch.set_num_threads(1)
    return folder, refused, cells


def test_every_cell_of_the_suites_ran(made):
    folder, _, cells = made
    found = [record for record in Store(folder / "store").records() if isinstance(record, RunRecord)]
    assert cells == [len(available()), 18]
    assert len({record.run_id for record in found}) == sum(cells) - 2  # full and contextpool are in both suites
    assert {record.status for record in found} == {"ok"}


def test_quick_alone_says_what_it_does_not_give(made):
    _, refused, _ = made
    assert set(refused) == set(NOT_FROM_QUICK_ALONE)
    for preset, reason in NOT_FROM_QUICK_ALONE.items():
        assert reason in refused[preset], preset


def test_the_presets_here_are_those_of_the_command():
    assert set(PRESET_ARGUMENTS) == set(PRESETS)
    assert len(PRESETS) == 11


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_has_rows_with_numbers(made, preset):
    folder = made[0] / "probes" if preset == "probes" else made[0]
    done = report(folder, "table", preset, *PRESET_ARGUMENTS[preset], "--format", "csv")
    assert done.exit_code == 0, done.output
    header, *rows = rows_of(done)
    assert header[0] == FIRST_COLUMNS.get(preset, "task")
    assert len(rows) >= {"head-to-head": 1, "calibration": 1}.get(preset, 2)
    numbers = [cell for row in rows for cell in row[1:] if re.match(r"[+-]?\d", cell)]
    assert len(numbers) >= len(rows)


def test_tables_have_what_only_the_tour_gives(made):
    def cells(preset):
        done = report(made[0], "table", preset, *PRESET_ARGUMENTS[preset], "--format", "csv")
        return rows_of(done)

    header, *rows = cells("accuracy")
    assert header[1:] == ["ListOps (%)", "Parity (%)"]
    assert {row[0].partition(" [")[0] for row in rows} >= {get_variant(name).title for name in available()}
    assert {row[2] for row in cells("depth")[1:] if row[0] == "ListOps"} == {"1", "2"}
    assert [row[1] for row in cells("ablation")[1:]].count("(base)") == 2
    assert [row for row in cells("ablation")[1:] if "placement=stream" in row[1] and row[3] != "-"]
    assert cells("efficiency")[0] == ["variant", "steps/s 32", "steps/s 64", "GB 32", "GB 64", "state 64"]
    assert {row[1] for row in cells("head-to-head")[1:]} == {"2"}


def test_every_figure_of_the_list_is_drawn(made, tmp_path):
    done = report(made[0], "figures", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    paths = [Path(line) for line in done.stdout.split()]
    names = {kind: re.sub(r"\W+", "-", kind) for kind in FIGURES}
    drawn = {kind: [path for path in paths if path.name.startswith(name)] for kind, name in names.items()}
    assert len(FIGURES) == 8
    assert {kind for kind, found in drawn.items() if found} == set(FIGURES)
    assert sum(map(len, drawn.values())) == len(paths)
    assert len(drawn["seeds"]) == 2  # of two tasks
    for path in paths:
        assert_not_blank(path)


def assert_not_blank(path):
    with Image.open(path) as picture:
        assert len(picture.convert("RGB").getcolors(maxcolors=1 << 24)) > 20, path


def record_of(folder, variant):
    records = [record for record in Store(folder / "store").records() if isinstance(record, RunRecord)]
    return next(r.run_id for r in records if r.config.variant.name == variant and r.config.task == "listops")


def test_every_other_command_works_on_it(made, tmp_path):
    folder = made[0]
    cell, other = record_of(folder, "contextpool"), record_of(folder, "full")
    tried = {
        "pooling": [cell[:12], "--data-dir", folder / "home", "--out", tmp_path / "pooling.png"],
        "compare": [cell[:12], other[:12]],
        "export": ["--csv", tmp_path / "runs.csv"],
        "html": ["--variant", "full", "--variant", "contextpool", "--out", tmp_path / "report.html"],
        "locality": [
            cell[:12],
            other[:12],
            "--data-dir",
            folder / "home",
            "--examples",
            1,
            "--places",
            2,
            "--answers",
            2,
            "--hide",
            "0,4",
            "--shuffle",
            "4",
            "--figure",
            tmp_path / "locality.png",
        ],
        "site": ["--out", tmp_path / "site"],
        "probes": ["--out", tmp_path / "probes.csv", "--format", "csv"],
    }
    assert {*tried, "table", "figures", "verify"} == set(report_command.commands)
    for name, arguments in tried.items():
        done = report(folder / "probes" if name == "probes" else folder, name, *arguments)
        assert done.exit_code == 0, (name, done.output)
        if name == "compare":
            assert "config.variant.name" in done.stdout
    assert_not_blank(tmp_path / "pooling.png")
    assert_not_blank(tmp_path / "locality.png")
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 1 + len(available()) + 18 - 2
    page = (tmp_path / "report.html").read_text()
    wanted = [
        "Average ranks", "Test accuracy by depth", "Speed and memory of training", "Cost of training",
        "Ours and published numbers", "Test accuracy over seeds", 'href="#figure-', 'href="#settings-',
    ]  # fmt: skip
    assert [expected for expected in wanted if expected not in page] == []
