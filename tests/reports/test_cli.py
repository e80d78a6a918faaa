"""`lra-report` and the Python interface as a user meets them."""

import csv
import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure

from attention_zoo import get_variant
from lra.config.overrides import parse_override
from lra.config.profiles import load_profile
from lra.config.schema import PretrainConfig, VariantChoice, canonical_json
from lra.config.suites import expand, load_suite
from lra.errors import StoreError
from lra.names import parse_seeds
from lra.results import load
from lra.results.records import Store
from reports import cli, html_page
from reports.cli import PRESETS, command
from reports.result_set import ResultSet
from reports.tables.published import load_published
from runners.cli.run import command as run_command
from runners.train.plan import family_defaults, plan
from tests.reports.synthetic import HOSTILE, add_attempt, add_run, cell_config, five_tasks

ROOT = Path(__file__).resolve().parents[2]


def report(*arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    five_tasks(folder)
    add_run(folder, 411, variant="contextpool", seed=5, options={"rotary": True})
    add_run(folder, 411, layers=4, track="open")
    add_run(folder, 421, layers=2, track="open")
    return folder


TABLES = [
    ["accuracy"], ["seeds"], ["cost"], ["depth"], ["published"], ["head-to-head", "full", "linear"],
    ["ablation", "full"], ["ranks"],
]  # fmt: skip
FORMS = ["text", "markdown", "latex", "csv", "html"]


@pytest.mark.parametrize(
    ("preset", "form"),
    [
        # A form knows nothing of presets: once each is enough by day.
        pytest.param(
            preset, form, marks=() if form == "text" or preset == ["ablation", "full"] else pytest.mark.nightly
        )
        for preset in TABLES
        for form in FORMS
    ],
)
@pytest.mark.nightly
def test_every_preset_in_every_form(tmp_path_factory, store, preset, form):
    if preset[0] == "head-to-head":
        store = tmp_path_factory.mktemp("plain")
        five_tasks(store, variants=("full", "linear"))
    done = report("table", *preset, "--store", store, "--format", form)
    assert done.exit_code == 0, done.output
    assert "quick" in done.stdout
    assert len(done.stdout.splitlines()) > 6


SUITE = {"name": "two", "title": "for this test", "profile": "quick", "tasks": ["listops"], "seeds": [0, 1, 2, 3]}


def suite_file(folder, variants):
    path = folder / "two.yaml"
    path.write_text(json.dumps(SUITE | {"variants": variants}))  # JSON is YAML
    return path


def table_rows(done):
    """Read the CSV form: {variant: cells} of the rows that are runs."""
    rows = [
        line.split(",")
        for line in done.stdout.splitlines()
        if not line.startswith(("#", '"#', "Chance", "Majority", "variant"))
    ]
    return {row[0]: row[1:] for row in rows if row[0]}


@pytest.fixture
def mixed(tmp_path):
    """A store with two cells of a suite, saved and read as real ones are, and with runs beside them."""
    suite = suite_file(tmp_path, {"full": {"rotary": [False, True]}, "linear": {}})
    folder = tmp_path / "store"
    cells = expand(load_suite(str(suite)))
    assert len(cells) == 12
    for cell, right in ((cells[0], 400), (cells[3], 410)):
        add_run(folder, right, config=cell)
    other = cells[0].model_copy(update={"train": cells[0].train.model_copy(update={"lr": 0.5})})
    add_run(folder, 900, config=other)
    add_run(folder, 910, config=cells[0].model_copy(update={"track": "open"}))
    add_run(folder, 920, config=cells[0].model_copy(update={"task": "text"}))
    return folder, suite


def test_a_suite_selects_its_own_cells_and_says_how_many_seeds_they_lack(mixed):
    folder, suite = mixed
    done = report("table", "accuracy", "--store", folder, "--suite", suite, "--format", "csv")
    assert done.exit_code == 0, done.output
    assert done.stderr == f"suite {suite}: 2 of 12 runs have a record\n"
    assert table_rows(done) == {"full": ["40.50 ± 0.71 (2/4)"]}
    everything = report("table", "accuracy", "--store", folder, "--format", "csv")
    assert "90.00" in everything.stdout
    assert "91.00" in everything.stdout


def test_tasks_and_variants_select(mixed, store):
    folder, suite = mixed
    done = report("table", "accuracy", "--store", store, "--variant", "ContextPool", "--variant", "linear",
                  "--task", "text", "--task", "IMAGE", "--format", "csv")  # fmt: skip
    assert "no records of variant 'linear'; known: contextpool, full" in done.stderr
    done = report("table", "accuracy", "--store", store, "--variant", "ContextPool", "--task", "text",
                  "--task", "IMAGE", "--format", "csv")  # fmt: skip
    assert table_rows(done) == {"contextpool": ["46.10 ± 0.10 (3)", "48.10 ± 0.10 (3)"]}
    done = report("table", "accuracy", "--store", folder, "--suite", suite, "--task", "text")
    assert done.exit_code == 2
    assert "no records of task 'text'; known: listops" in done.stderr


def test_a_suite_none_of_whose_cells_was_run_says_so(tmp_path, store):
    suite = suite_file(tmp_path, {"cosformer": {}})
    done = report("table", "accuracy", "--store", store, "--suite", suite)
    assert done.exit_code == 2
    assert f"no record is one of the 4 runs of suite {suite}" in done.stderr
    done = report("table", "accuracy", "--store", store, "--suite", "qick")
    assert "unknown suite 'qick'; did you mean 'quick'?" in done.stderr


@pytest.mark.nightly
def test_it_runs_as_a_module_too(mixed):
    folder, suite = mixed
    command = [sys.executable, "-m", "reports.cli", "table", "seeds", "--store", folder, "--suite", suite]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"Made by: lra-report table seeds --store {folder} --suite {suite}" in done.stdout


def test_help_lists_presets_and_shows_no_layout_marks():
    helps = [report(*words, "--help").stdout for words in ([], ["table"], *([name] for name in command.commands))]
    assert len(helps) >= 7
    assert [text for text in helps if "\\b" in text or "\b" in text] == []
    for preset, text in PRESETS.items():
        assert re.search(rf"^    {preset} +{re.escape(text)}$", helps[1], re.M), preset


def test_export_writes_every_run_as_csv(tmp_path, store):
    done = report("export", "--store", store, "--csv", tmp_path / "runs.csv", "--variant", "full")
    assert (done.exit_code, done.output) == (0, "")
    frame = pd.read_csv(tmp_path / "runs.csv")
    expected = load(store)
    expected = expected[expected["variant"] == "full"]
    assert sorted(frame["run_id"]) == sorted(expected["run_id"])
    assert frame["accuracy"].sum() == pytest.approx(expected["accuracy"].sum())
    assert json.loads(frame["settings"][0])["model.num_layers"] in (2, 4)
    assert "give --csv FILE" in report("export", "--store", store).stderr
    assert "cannot write" in report("export", "--store", store, "--csv", tmp_path / "no" / "x.csv").stderr


def test_no_cell_of_an_export_is_a_formula(tmp_path):
    for number, name in enumerate(HOSTILE):
        add_run(tmp_path, 400 + number, variant=name, seed=number)
    assert report("export", "--store", tmp_path, "--csv", tmp_path / "runs.csv").exit_code == 0
    content = (tmp_path / "runs.csv").read_text()
    cells = [cell for row in csv.reader(io.StringIO(content)) for cell in row]
    assert sum(cell.startswith("'=cmd|") for cell in cells) == 3  # the variant, its title and its label
    assert [cell for cell in cells if re.match(r"[=@+\t]|-[^\d]", cell)] == []
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", content)


@pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed (extra: export)")
def test_export_writes_parquet(tmp_path, store):
    done = report("export", "--store", store, "--parquet", tmp_path / "runs.parquet")
    assert (done.exit_code, done.output) == (0, "")
    frame = pd.read_parquet(tmp_path / "runs.parquet")
    assert sorted(frame["run_id"]) == sorted(load(store)["run_id"])
    assert frame["flops"].tolist() == [2_000_000.0] * 33


def test_export_without_pyarrow_says_what_to_install(tmp_path, store, monkeypatch):
    monkeypatch.setattr("reports.export.find_spec", lambda name: None)
    done = report("export", "--store", store, "--parquet", tmp_path / "runs.parquet")
    assert done.exit_code == 2
    assert done.stderr == "Error: pyarrow is not installed; pip install 'lra-harness[export]'\n"


def test_out_writes_the_file(store, tmp_path):
    done = report("table", "accuracy", "--store", store, "--format", "csv", "--out", tmp_path / "t.csv")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "contextpool" in (tmp_path / "t.csv").read_text()
    done = report("table", "accuracy", "--store", store, "--out", tmp_path / "no" / "t.csv")
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: cannot write")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "head-to-head", "full"], "head-to-head takes 2 or more variant names, got 1"),
        (["table", "accuracy", "--profile", "official"], "no records of profile 'official'; known: quick"),
        (["table", "head-to-head", "full", "contextpol"], "no records of variant 'contextpol'; did you mean 'contextp"),
        (["table", "ablation", "nobody"], "no records of variant 'nobody'; known: contextpool, full"),
        (["table", "ablation", "Fulll"], "no records of variant 'Fulll'; did you mean 'full'?"),
        (["table", "acuracy"], "unknown preset 'acuracy'; did you mean 'accuracy'?"),
        (["table", "cost", "--task", "imag"], "no records of task 'imag'; did you mean 'image'?"),
        (["table", "cost", "--suite", "dept"], "unknown suite 'dept'; did you mean 'depth'?"),
        (["table", "cost", "--suite", ROOT / "configs/suites/dept.yaml"], "suites/depth.yaml'?"),
        (["compare", "zz", "zz"], "no record begins with 'zz'"),
        (["compare", "", ""], "33 records begin with ''"),
        (["pooling", "zz", "--out", "x.gif"], "written as png, svg, pdf"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(store, arguments, message):
    done = report(*arguments, "--store", store)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_a_row_against_itself_is_refused_under_each_profile_and_track(store):
    done = report("table", "head-to-head", "Full", "full", "--store", store)
    assert (done.exit_code, done.stdout) == (2, "")
    matched, open_track = done.stderr.splitlines()
    assert matched.startswith("Error: 'full' against itself shows nothing")
    assert open_track.startswith("Error: no row 'full' under profile quick, open track")


def test_a_mistyped_id_and_store_get_the_nearest(store):
    cell = sorted(load(store)["run_id"])[0]
    close = cell[:5] + ("0" if cell[5] != "0" else "1") + cell[6:12]
    done = report("compare", close, close, "--store", store)
    assert done.stderr == f"Error: no record begins with {close!r}; did you mean {cell[:12]!r}?\n"
    wrong = store.with_name(store.name + "s")
    done = report("table", "accuracy", "--store", wrong)
    assert done.stderr == f"Error: no store at {wrong}; did you mean {str(store)!r}?\n"


def test_a_variant_with_many_settings_names_rows_that_there_are(tmp_path):
    for layers in range(1, 5):
        add_run(tmp_path, 400 + layers, layers=layers, track="open")
        add_run(tmp_path, 410, layers=layers, track="open", variant="linear")
    done = report("table", "head-to-head", "full", "linear", "--store", tmp_path)
    assert done.exit_code == 2
    assert "no row 'full' under profile quick, open track, but 4 with settings, such as 'full [num" in done.stderr
    row = "[num_layers=2]"
    assert report("table", "head-to-head", f"full {row}", f"Linear {row}", "--store", tmp_path).exit_code == 0


def test_rows_are_named_as_tables_print_them_or_by_the_registered_name(tmp_path):
    for layers in (1, 2):
        for variant, title in (("full", "Full attention"), ("adaptive_span", "Adaptive span")):
            add_run(tmp_path, 400 + layers, layers=layers, track="open", variant=variant, variant_title=title)
    printed = report("table", "accuracy", "--store", tmp_path, "--format", "csv")
    assert set(table_rows(printed)) == {
        f"{t} [num_layers={n}]" for t in ("Full attention", "Adaptive span") for n in "12"
    }
    names = [("full", "adaptive_span"), ("Full attention", "Adaptive span"), ("FULL-ATTENTION", "adaptive span")]
    tables = set()
    for first, second in names:
        rows = (f"{first} [num_layers=1]", f"{second} [num_layers=2]")
        tables.add(
            report("table", "head-to-head", *rows, "--store", tmp_path, "--format", "html").stdout.split("<ul>")[0]
        )
    (table,) = tables
    assert '<th scope="col">only Adaptive span [num_layers=2]</th>' in table
    chosen = report("table", "accuracy", "--store", tmp_path, "--variant", "Adaptive span", "--format", "csv")
    assert set(table_rows(chosen)) == {"Adaptive span [num_layers=1]", "Adaptive span [num_layers=2]"}


def test_variants_that_share_a_display_name_are_told_apart(tmp_path):
    for right, variant in ((400, "mine"), (500, "yours")):
        add_run(tmp_path, right, variant=variant, variant_title="Same")
    printed = report("table", "accuracy", "--store", tmp_path, "--format", "csv")
    assert table_rows(printed) == {"Same (mine)": ["40.00 (1)"], "Same (yours)": ["50.00 (1)"]}
    assert report("table", "head-to-head", "Same (mine)", "yours", "--store", tmp_path).exit_code == 0


def test_an_empty_store_and_a_missing_one_say_so(tmp_path):
    assert "holds no records yet" in report("table", "accuracy", "--store", tmp_path).stderr
    assert "no store at" in report("table", "accuracy", "--store", tmp_path / "nowhere").stderr
    (tmp_path / "lra-results").mkdir()
    plain = report("table", "accuracy", "--store", tmp_path)
    assert plain.stderr == "Error: the store holds no records yet\n"
    add_run(tmp_path / "lra-results", 400)
    advised = report("table", "accuracy", "--store", tmp_path)
    assert advised.stderr == f"{plain.stderr[:-1]}; did you mean --store {tmp_path / 'lra-results'}?\n"
    assert report("table", "accuracy", "--store", tmp_path / "lra-results").exit_code == 0


def damage(folder):
    """Make a store with one good record and four that cannot be used."""
    add_run(folder, 400)
    paths = [Store(folder).record_path(add_run(folder, 400, seed=seed).run_id) for seed in (1, 2, 3)]
    paths[0].write_text(paths[0].read_text().replace('"correct": 400', '"correct": 900'))
    paths[1].write_text("not json")
    envelope = json.loads(paths[2].read_text())
    envelope["record"]["schema_version"] = 99
    envelope["sha256"] = hashlib.sha256(canonical_json(envelope["record"])).hexdigest()
    paths[2].write_text(json.dumps(envelope))
    foreign = folder / "results" / "zz" / "other.json"
    foreign.parent.mkdir()
    foreign.write_text('{"a": 1}')
    note = folder / "attempts" / "x" / "1-host-1.json"
    note.parent.mkdir(parents=True)
    note.write_text('{"status": "oom"}')


def test_damaged_foreign_and_newer_files_are_counted_and_named(tmp_path):
    damage(tmp_path)
    done = report("table", "accuracy", "--store", tmp_path)
    assert done.exit_code == 0
    assert "40.00 (1)" in done.stdout
    assert done.stderr.startswith("5 files passed over:")
    for reason in (
        "checksum does not match",
        "another file than expected",
        "newer version (schema 99)",
        "does not say",
    ):
        assert reason in done.stderr
    frame = load(tmp_path)
    assert len(frame) == 1
    assert len(frame.attrs["problems"]) == 4


def test_what_was_tried_and_gave_nothing_is_in_the_table(tmp_path):
    add_attempt(tmp_path, "oom")
    assert "OOM (1/1)" in report("table", "accuracy", "--store", tmp_path).stdout


def test_compare_passes_over_places_where_both_have_no_number(tmp_path, monkeypatch):
    ids = [add_run(tmp_path, right, seed=seed).run_id for seed, right in ((0, 400), (1, 400))]
    curves = dict(zip(ids, ([np.nan, 1.0, 2.0], [np.nan, 1.0, 3.0]), strict=True))
    monkeypatch.setattr(ResultSet, "arrays", lambda _, run_id: {"curve.made_up": np.array(curves[run_id])})
    assert "curve.made_up: first differs in row 2: 2 | 3" in report("compare", *ids, "--store", tmp_path).stdout


def test_compare_shows_points_of_curves_so_that_they_look_different(tmp_path, monkeypatch):
    ids = [add_run(tmp_path, 400, seed=seed).run_id for seed in range(2)]
    curves = dict(zip(ids, (0.12345678, 0.12345679), strict=True))
    monkeypatch.setattr(ResultSet, "arrays", lambda _, run_id: {"curve.made_up": np.array([curves[run_id]])})
    shown = report("compare", *ids, "--store", tmp_path).stdout
    assert "curve.made_up: first differs in row 0: 0.12345678 | 0.12345679" in shown


def test_compare_shows_what_differs_and_nothing_else(tmp_path):
    ids = [add_run(tmp_path, right, seed=seed).run_id for seed, right in ((0, 400), (1, 420))]
    done = report("compare", *ids, "--store", tmp_path)
    assert "config.seed: 0  |  1" in done.stdout
    assert "outcome.test.correct: 400  |  420" in done.stdout
    assert "curve.validation_correct: first differs in row 1: 17 | 18" in done.stdout
    assert "config.task" not in done.stdout
    assert "no difference" in report("compare", ids[0], ids[0], "--store", tmp_path).stdout


def test_compare_tells_true_from_one(tmp_path):
    ids = [add_run(tmp_path, 400, options={"gate": value}).run_id for value in (True, 1)]
    shown = report("compare", *ids, "--store", tmp_path).stdout
    assert ids[0] != ids[1]
    assert "config.variant.options.gate: True  |  1" in shown


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (("a" * 80, "b" * 80), f"{'a' * 57}...  |  {'b' * 57}..."),
        (("x" * 70 + "120", "x" * 70 + "121"), f"...{'x' * 28}120  |  ...{'x' * 28}121"),
        (("x" * 70 + "1" * 40, "x" * 70), f"...{'x' * 30}{'1' * 24}...  |  ...{'x' * 30}"),
        (("x" * 59 + "1", "x" * 59 + "2"), f"{'x' * 59}1  |  {'x' * 59}2"),
        ((1, "1"), "1  |  '1'"),
    ],
    ids=["from-the-start", "at-the-end", "longer", "short", "another-type"],
)
def test_compare_shows_values_so_that_they_look_different(tmp_path, values, shown):
    ids = [add_run(tmp_path, 400, options={"made_up": value}).run_id for value in values]
    lines = report("compare", *ids, "--store", tmp_path).stdout.splitlines()
    assert f"config.variant.options.made_up: {shown}" in lines


def test_the_example_of_the_page_on_reports_runs(tmp_path, monkeypatch, capsys):
    add_run(tmp_path / "lra-results", 400)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "reports.md").read_text(), re.S)
    exec(compile(example, "docs/reports.md", "exec"), {})
    assert "40.0" in capsys.readouterr().out


def test_the_pages_show_every_preset_and_explain_every_flag():
    guide = (ROOT / "docs" / "reports.md").read_text()
    for preset in PRESETS:
        assert f"lra-report table {preset}" in guide
    page = (ROOT / "docs" / "results" / "published.md").read_text().partition("## Flags of the sources")[2]
    flags = {flag for s in load_published() for flag in [*s.flags, *(f for row in s.row_flags.values() for f in row)]}
    assert len(flags) >= 8
    assert [flag for flag in flags if f"`{flag}`" not in page] == []


def test_load_gives_a_tidy_frame(store):
    frame = load(store)
    assert len(frame) == 33
    means = frame[frame["track"] == "matched"].groupby(["variant", "task"])["accuracy"].mean()
    assert means["full", "text"] == pytest.approx(41.1)
    assert frame["settings"].iloc[0]["model.num_layers"] in (2, 4)
    assert frame.attrs["problems"] == []
    with pytest.raises(StoreError, match="no store at"):
        load(store / "nowhere")


def test_the_first_steps_end_in_tables(tmp_path):
    """The runs are those of the commands of the page; their numbers are made up: training takes minutes."""
    section = (ROOT / "docs" / "first-steps.md").read_text().partition("\n## ")[0]
    lines = [shlex.split(line, comments=True) for line in section.splitlines() if line.startswith("lra-")]
    quick = load_profile("quick")
    configs = []
    elsewhere = {"--dry-run", "--limit-steps", "my_attention.py:MyAttention"}
    for line in (line for line in lines if line[0] == "lra-run" and not elsewhere & set(line)):
        parsed = run_command.make_context("lra-run", line[1:]).params
        values = dict(map(parse_override, parsed["overrides"]))
        attn, track, _ = family_defaults(parsed["attn"], parsed["track"], values, quick)
        seeds = parse_seeds(parsed["seeds"] or "0")
        configs += plan(
            attn=attn, task=parsed["task"], profile=quick, seeds=seeds, track=track or "matched", overrides=values
        )
    assert len(configs) == 11
    for number, config in enumerate(configs):
        add_run(tmp_path, 400 + number, config=config)
    reports = [line[1:] for line in lines if line[0] == "lra-report"]
    assert len(reports) >= 2
    for arguments in reports:
        done = report(*arguments, "--store", tmp_path)
        assert done.exit_code == 0, done.output
    assert "contextpool against full, profile quick, matched track" in done.stdout
    assert "no row 'contextpool' under profile quick, matched" not in done.output


@pytest.mark.parametrize("name", ["contextpool [placement=stream]", "ContextPool [placement=stream]"])
def test_a_label_selects_one_row_and_a_bare_name_all(tmp_path, name):
    for options in ({}, {"variant.placement": "stream"}):
        config = plan(
            attn="contextpool",
            task="listops",
            profile=load_profile("quick"),
            seeds=[0],
            track="matched",
            overrides=options,
        )
        add_run(tmp_path, 400, config=config[0], variant_title="ContextPool")
    done = report("table", "seeds", "--store", tmp_path, "--variant", name)
    assert "ContextPool [placement=stream]" in done.stdout
    assert len(re.findall("^ListOps  ", done.stdout, re.MULTILINE)) == 1
    done = report("table", "seeds", "--store", tmp_path, "--variant", "contextpool")
    assert len(re.findall("^ListOps  ", done.stdout, re.MULTILINE)) == 2


def test_no_command_loads_a_program_that_a_record_names(tmp_path, monkeypatch):
    monkeypatch.setattr(html_page, "all_figures", lambda results: [])  # the command for figures draws them
    monkeypatch.setattr(Figure, "savefig", lambda *arguments, **settings: None)  # which takes half of the time
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'loaded')!r}, 'w')\n")
    pretrain = PretrainConfig(share=0.4, mask_rate=0.15, loss="cross_entropy")
    pooled = get_variant("contextpool").config().to_dict() | {"base": f"{trap}:Mixer"}
    changes = (
        {"task": f"{trap}:Task"},
        {"task": f"{trap}:Task", "pretrain": pretrain},
        {"variant": VariantChoice(name=f"{trap}:Mixer", options={}, origin="theirs")},
        {"variant": VariantChoice(name="contextpool", options=pooled, origin="theirs")},
    )
    for change in changes:
        add_run(tmp_path / "store", 500, config=cell_config().model_copy(update=change), title="Task")
    commands = (
        ["table", "accuracy"],
        ["table", "accuracy", "--sort", "family"],
        ["table", "cost"],
        ["export", "--csv", tmp_path / "runs.csv"],
        ["figures", "--out", tmp_path / "figures"],
        ["html", "--out", tmp_path / "page.html"],
        ["site", "--out", tmp_path / "site"],
    )
    for command_line in commands:
        done = report(*command_line, "--store", tmp_path / "store")
        assert done.exit_code == 0, done.output
        assert not (tmp_path / "loaded").exists(), command_line
    report("verify", tmp_path / "store")
    assert not (tmp_path / "loaded").exists()


@pytest.mark.parametrize("report", ["figures", "html", "site"])
def test_curves_that_went_since_the_store_was_read_end_a_report(tmp_path, monkeypatch, report):
    for seed in range(2):
        add_run(tmp_path / "store", 400, seed=seed)
    words = [report, "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    assert CliRunner().invoke(command, words).exit_code == 0
    real = cli.load

    def load_and_lose(selection):
        results = real(selection)
        next((tmp_path / "store").glob("arrays/*/*")).unlink()
        return results

    monkeypatch.setattr(cli, "load", load_and_lose)
    done = CliRunner().invoke(command, words)
    assert done.exit_code == 3
    assert done.stderr.count("arrays") == 1
