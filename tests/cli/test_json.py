"""`--json`: every command that prints a table also prints it for programs, from the same rows."""

import json

import click
import pytest
import yaml
from click.testing import CliRunner

from attention_zoo import available
from lra.results.records import RunRecord, Store
from runners.train.summary import summary_rows
from tests.docs.tries import COMMANDS
from tests.reports.synthetic import add_other_outcome, add_run, cell_config, five_tasks
from tests.runners.cli.test_data import SET_TINY

WITH_A_TABLE = {
    ("lra-zoo", "list"), ("lra-data", "list"), ("lra-data", "where"), ("lra-sweep", "plan"), ("lra-sweep", "status"),
    ("lra-report", "table"), ("lra-report", "verify"), ("lra-run",), ("lra-bench",),
}  # fmt: skip
SUITE = {"name": "s", "profile": "quick", "tasks": ["listops"], "seeds": [0, 1], "variants": ["full", "linear"]}


def invoke(script, *words):
    done = CliRunner().invoke(COMMANDS[script], [*map(str, words)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def both(script, *words):
    """Return what a command prints for people, and what for programs."""
    return invoke(script, *words), json.loads(invoke(script, *words, "--json"))


@pytest.fixture
def suite(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump(SUITE))
    return path


def test_the_commands_with_the_option_are_those_with_a_table():
    found = set()
    for script, command in COMMANDS.items():
        below = command.commands if isinstance(command, click.Group) else {"": command}
        for name, each in below.items():
            if any("--json" in parameter.opts for parameter in each.params):
                found.add((script, *filter(None, [name])))
    assert found == WITH_A_TABLE


def test_variants():
    text, rows = both("lra-zoo", "list")
    assert [row["variant"] for row in rows] == available()
    assert all(row["family"] in text and row["display name"] in text for row in rows)


def test_prepared_data(tmp_path):
    home = ["--data-dir", tmp_path]
    assert json.loads(invoke("lra-data", "list", "--json", *home)) == []
    invoke("lra-data", "prepare", "listops", *SET_TINY, *home)
    (tmp_path / "listops-0123456789").mkdir()
    text, (broken, row) = both("lra-data", "list", *home)
    assert row["examples"] == {"train": 60, "validation": 20, "test": 20}
    assert row["digest"][:12] in text
    assert row["bytes"] > 1000
    assert broken["folder"] == str(tmp_path / "listops-0123456789")
    assert broken["problem"] in text


def test_places_of_data():
    text, rows = both("lra-data", "where", "text")
    assert len(rows) >= 2
    assert all(row["name"] in text for row in rows)


def test_the_state_and_the_plan_of_a_suite(suite, tmp_path):
    words = [suite, "--store", tmp_path / "store", "--data-dir", tmp_path]
    text, states = both("lra-sweep", "status", *words)
    assert [(row["run"], row["status"], row["step"]) for row in states] == [
        (f"listops {name}, seed {seed}", "not run", 0) for seed in (0, 1) for name in ("full", "linear")
    ]
    assert "0/1500" in text
    text, plan = both("lra-sweep", "plan", *words)
    assert [row["run"] for row in plan] == [row["run"] for row in states]
    assert {f"{row['parameters']:,}" for row in plan} == {f"{row['parameters_full']:,}" for row in plan} == {"77,706"}
    assert text.count("77,706") == 4
    assert text.endswith("4 runs: 4 not run\n")


def test_a_table_of_a_report(tmp_path):
    five_tasks(tmp_path, tasks=("listops",))
    add_run(tmp_path, 300, track="open", title="Straße")
    text, tables = both("lra-report", "table", "accuracy", "--store", tmp_path)
    assert [table["caption"] in text for table in tables] == [True, True]
    first = tables[0]
    assert [row["variant"] for row in first["rows"]] == ["contextpool", "full"]
    assert [row["ListOps (%)"] in text for row in first["rows"]] == [True, True]
    assert [row["variant"] for row in first["baselines"]] == ["Chance", "Majority"]
    assert len(first["runs"]) == 6
    assert all(note in text for note in first["notes"])
    assert list(tables[1]["rows"][0]) == ["variant", "Straße (%)"]


def test_the_summary_of_runs(tmp_path):
    add_run(tmp_path, 400)
    add_run(tmp_path, None, seed=1)
    store = Store(tmp_path)
    by_seed = {entry.config.seed: entry for entry in store.records() if isinstance(entry, RunRecord)}
    given = [(by_seed[0].config, by_seed[0]), (by_seed[1].config, by_seed[1]), (cell_config(seed=2), "oom")]
    other = add_other_outcome(store, by_seed[0].run_id)
    first, diverged, lost = json.loads(json.dumps(summary_rows(given, store)))
    assert (first["correct"], first["total"], first["status"], first["seed"]) == (400, 1000, "ok", 0)
    assert first["interval_percent"] == pytest.approx([37.0, 43.1], abs=0.1)
    assert first["cost"]["parameters"] == 1000
    assert first["record"] == str(store.record_path(first["run_id"]))
    assert (diverged["status"], diverged["correct"], diverged["selected_step"]) == ("diverged", None, None)
    assert (lost["status"], lost["run_id"], lost["cost"]) == ("oom", None, None)
    assert list(first) == list(diverged) == list(lost)
    assert [row["other_outcomes"] for row in (first, diverged, lost)] == [[str(other)], [], []]
    assert [row["dataset"] for row in (first, lost)] == [by_seed[0].dataset, None]


def test_json_and_a_format_exclude_each_other(tmp_path):
    add_run(tmp_path, 400)
    words = ["table", "accuracy", "--store", str(tmp_path), "--json", "--format", "csv"]
    done = CliRunner().invoke(COMMANDS["lra-report"], words)
    assert done.exit_code == 2
    assert "--json prints" in done.stderr
