"""The site: every page well formed, every link leads somewhere, names inert, places right, runs repeatable."""

import base64
import hashlib
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from matplotlib.text import Text

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import RunConfig
from lra.config.yaml_loader import load_file
from lra.errors import StoreError, UsageError
from reports.baselines import KNOWN
from reports.cli import command
from reports.figures.scatter import seed_dots
from reports.result_set import load_stores
from reports.site import build_site
from reports.site.build import make_boards, slug
from reports.site.command_line import repeat_command
from reports.tables.captions import baseline_titles
from reports.tables.published import load_published
from runners.cli.run import command as run_command
from tests.reports.synthetic import HOSTILE, add_attempt, add_run, five_tasks
from tests.reports.test_html_page import Reader

SCRIPT = Path(__file__).parents[3] / "reports" / "site" / "site.js"
NODE = shutil.which("node")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    five_tasks(folder, seeds=2, tasks=("listops", "text"))
    for number, name in enumerate(HOSTILE):
        add_run(folder, 400 + number, variant=name, profile=HOSTILE[0], title=HOSTILE[0], baselines={HOSTILE[1]: 10.0})
    add_run(folder, 111, variant="linear")
    add_run(folder, None, variant="linformer")
    add_attempt(folder, "oom", variant="local")
    return folder


@pytest.fixture(scope="module")
def site(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    pages = build_site(load_stores([store]), folder, "lra-report site <b>", quiet=True)
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.html")}
    assert len(files) == pages > 20
    return files


def read(path):
    reader = Reader()
    reader.feed(path.read_text())
    assert reader.open == []
    return reader


def test_every_page_is_well_formed_and_every_link_leads_to_a_file(site):
    seen = set()
    for path in site.values():
        for tag, name, value in read(path).attributes:
            assert not name.startswith("on"), f"a script in {name}"
            if name in {"href", "src"}:
                assert tag == "a"
                assert not re.match(r"[a-z]+:|//", value), value
                target = (path.parent / value).resolve()
                assert target.is_file(), value
                seen.add(target)
    # Every page but the first can be reached by links.
    assert {path.resolve() for path in site.values()} - seen <= {site["index.html"].resolve()}


def test_the_only_script_and_style_are_ours_and_the_policy_admits_nothing_else(site):
    for path in site.values():
        reader = read(path)
        assert reader.scripts == [SCRIPT.read_text()]
        [policy] = [value for tag, name, value in reader.attributes if tag == "meta" and "default-src" in (value or "")]
        style = SCRIPT.with_suffix(".css").read_text()
        digests = [
            base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, *reader.scripts)
        ]
        assert policy == f"default-src 'none'; style-src 'sha256-{digests[0]}'; script-src 'sha256-{digests[1]}'"
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", path.read_text())


def test_places_go_by_the_mean_and_one_seed_has_another_interval(store):
    [board] = [board for board in make_boards(load_stores([store]), load_published()) if board.task == "ListOps"]
    assert [row.name for row in board.rows] == ["contextpool", "full", "linear"]
    first, _, single = board.rows
    assert first.mean == pytest.approx(45.05)
    assert (first.interval, first.seeds, first.above_chance) == ("seeds", 2, 2)
    assert (single.interval, single.seeds, single.above_chance) == ("test examples", 1, 0)  # 11.1 of 10 by chance: no
    assert single.low < 11.1 < single.high
    assert [row.name for row in board.baselines] == ["Majority", "Chance"]
    rows = {(row.name, row.mean): row.note for row in board.published}
    assert len(rows) > 20
    assert all("other recipe" in note for note in rows.values())
    assert [row.mean for row in board.published] == sorted((row.mean for row in board.published), reverse=True)


def test_baselines_that_older_records_lack_stand_on_the_pages_and_the_figure_too(tmp_path):
    [(digest, known)] = load_file(KNOWN)["listops"].items()
    add_run(tmp_path, 500, digest=digest)
    results = load_stores([tmp_path])
    [board] = make_boards(results, load_published())
    wanted = set(baseline_titles(known).values())
    assert wanted <= {row.name for row in board.baselines}
    drawn = seed_dots(results, results.frame(), "")
    assert all(any(name in text.get_text() for text in drawn.findobj(Text)) for name in wanted)


def test_two_baselines_of_one_title_look_different_on_the_pages_and_the_figure(tmp_path):
    run_id = add_run(tmp_path / "store", 700, baselines={"chance": 10.0, "bag": 60.0, "Bag": 30.0}).run_id
    results = load_stores([tmp_path / "store"])
    [board] = make_boards(results, load_published())
    assert [(row.name, row.mean) for row in board.baselines] == [("bag", 60.0), ("Bag", 30.0), ("Chance", 10.0)]
    build_site(results, tmp_path / "site", "", quiet=True)
    page = (tmp_path / "site" / "runs" / f"{run_id[:16]}.html").read_text()
    assert ["bag" in page, "Bag" in page, "Chance" in page] == [True] * 3
    drawn = {text.get_text() for text in seed_dots(results, results.frame(), "").findobj(Text)}
    assert {"bag 60.0", "Bag 30.0", "Chance 10.0"} <= drawn


def test_equal_means_share_a_place(tmp_path):
    for variant, correct in (("full", 500), ("linear", 500), ("performer", 400), ("local", 600)):
        add_run(tmp_path, correct, variant=variant)
    [board] = make_boards(load_stores([tmp_path]), load_published())
    assert [board.place(row) for row in board.rows] == ["1", "2", "2", "4"]


def notes_of_published(folder, profile, **changed):
    """Return the notes of all published numbers beside one run of full attention, whose recipe may be another."""
    config = resolve(task="listops", variant="full", profile=load_profile("official"), seed=0, overrides={})
    config = config.model_copy(update={"profile": profile, "train": config.train.model_copy(update=changed)})
    add_run(folder, 400, config=config)
    [board] = make_boards(load_stores([folder]), load_published())
    return [row.note for row in board.published]


def test_a_published_number_with_the_recipe_of_the_board_is_no_other_recipe(tmp_path):
    assert not all("other recipe" in note for note in notes_of_published(tmp_path / "own", "official"))
    notes_of_published(tmp_path / "both", "official", lr=0.5)
    both = make_boards(load_stores([tmp_path / "own", tmp_path / "both"]), load_published())
    assert [all("other recipe" in row.note for row in board.published) for board in both] == [False, True]
    for name, profile, changed in (("edited", "official", {"lr": 0.5}), ("named", "mine", {})):
        assert all("other recipe" in note for note in notes_of_published(tmp_path / name, profile, **changed))


def test_pages_with_numbers_of_several_rankings_name_the_data_of_each(tmp_path):
    """Such as that the weights were chosen on the test split."""
    add_run(tmp_path / "store", 400, dataset="IMDb, validation is the test split", task="text")
    build_site(load_stores([tmp_path / "store"]), tmp_path / "site", "", quiet=True)
    for page in ("index.html", "variants/full.html"):
        assert "IMDb, validation is the test split" in read(tmp_path / "site" / page).text


def test_a_record_that_changes_while_the_site_is_written_is_refused(tmp_path):
    """Its page would say another number than its file, which the page offers."""
    add_run(tmp_path / "store", 400)
    add_run(tmp_path / "other", 500)
    results = load_stores([tmp_path / "store"])
    build_site(results, tmp_path / "site", "", quiet=True)
    [path] = (tmp_path / "store" / "results").rglob("*.json")
    [other] = (tmp_path / "other" / "results").rglob("*.json")
    for content in (other.read_bytes(), path.read_bytes()[:300]):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"json changed while the site was written; run the command again$"):
            build_site(results, tmp_path / "site", "", quiet=True)


def test_the_page_of_a_run_says_what_the_record_says(site, store):
    [page] = [path for name, path in site.items() if name.startswith("runs/") and "44.0" in path.read_text()][:1]
    record = json.loads(page.with_suffix(".json").read_text())["record"]
    text = read(page).text
    assert record["run_id"] in text
    assert f"{record['outcome']['test']['correct']} of 1,000 right" in text
    assert '"train"' in text


@pytest.mark.parametrize(
    ("track", "overrides"),
    [
        ("matched", {}),
        ("matched", {"variant.placement": "stream", "variant.sigma": "fixed"}),
        ("open", {"train.lr": 3e-4, "model.num_layers": 3, "model.positions": "rotary"}),
    ],
)
def test_the_command_on_the_page_leads_to_the_same_configuration(track, overrides, tmp_path):
    config = resolve(
        task="listops", variant="contextpool" if "variant.sigma" in overrides else "full",
        profile=load_profile("quick"), seed=3, track=track, overrides=overrides,
    )  # fmt: skip
    program, *words = shlex.split(repeat_command(config))
    assert program == "lra-run"
    printed = CliRunner().invoke(run_command, [*words, "--dry-run", "--store", str(tmp_path)], catch_exceptions=False)
    assert printed.exit_code == 0, printed.output
    assert RunConfig.model_validate(yaml.safe_load(printed.stdout)) == config


def test_a_run_of_a_changed_recipe_or_a_missing_program_has_no_command(store):
    config = resolve(task="listops", variant="full", profile=load_profile("quick"), seed=0, overrides={})
    edited = config.model_copy(update={"train": config.train.model_copy(update={"lr": 0.5})})
    assert repeat_command(config)
    assert repeat_command(edited) == ""
    foreign = config.model_copy(update={"variant": config.variant.model_copy(update={"origin": "other 1.0"})})
    assert repeat_command(foreign) == ""
    assert repeat_command(config.model_copy(update={"profile": "mine"})) == ""


def test_names_that_look_alike_in_plain_letters_have_files_of_their_own():
    assert slug("gated_delta") == "gated-delta"
    names = ("a|b", "a-b", "a/b", "a_b", "A_b", "A b", "a b", "a, b", "a__b", "_a_b", *HOSTILE)
    assert len({slug(name) for name in names}) == 10 + len(HOSTILE)


def test_profiles_that_look_alike_in_plain_letters_have_rankings_of_their_own(tmp_path):
    for number, profile in enumerate(("quick", "my_own", "my-own", "My_own", "my own")):
        add_run(tmp_path / "store", 400 + number, profile=profile)
    results = load_stores([tmp_path / "store"])
    boards = make_boards(results, load_published())
    assert len({board.address for board in boards}) == len(boards) == 5
    assert "boards/listops-profile-quick.html" in {board.address for board in boards}
    build_site(results, tmp_path / "site", "", quiet=True)
    for number, board in enumerate(sorted(boards, key=lambda board: board.rows[0].mean)):
        assert f"{40 + number / 10:.2f}" in read(tmp_path / "site" / board.address).text


def test_a_row_that_lost_runs_has_no_place_and_says_how_many(tmp_path):
    for seed, correct in enumerate((900, None, None)):
        add_run(tmp_path / "store", correct, seed=seed, variant="linear")
    add_attempt(tmp_path / "store", "oom", variant="linear", seed=3)
    for seed in range(2):
        add_run(tmp_path / "store", 500, seed=seed)
    results = load_stores([tmp_path / "store"])
    [board] = make_boards(results, load_published())
    assert [(row.name, board.place(row), row.seeds, row.tried) for row in board.rows] == [
        ("full", "1", 2, 2),
        ("linear", "-", 1, 4),
    ]
    assert [status for _, _, status, _ in board.lost] == ["diverged", "diverged", "OOM"]
    build_site(results, tmp_path / "site", "", quiet=True)
    assert "1 of 4" in read(tmp_path / "site" / board.address).text
    assert "1 of 1" in read(tmp_path / "site" / "variants" / "full.html").text
    index = read(tmp_path / "site" / "index.html").text
    assert "50.00" in index
    assert "90.00" not in index


def test_none_is_above_chance_only_if_no_row_has_a_trained_run(tmp_path):
    for seed in range(3):
        add_run(tmp_path / "store", 105, variant="local", seed=seed)
        add_run(tmp_path / "store", 105, variant="local", task="text", seed=seed)
        add_run(tmp_path / "store", 950 if seed else None, seed=seed)
    results = load_stores([tmp_path / "store"])
    build_site(results, tmp_path / "site", "", quiet=True)
    text = read(tmp_path / "site" / "index.html").text
    assert text.count("none is above chance") == text.count("local (not above chance)") == 1
    add_run(tmp_path / "store", 300, variant="linear")
    add_run(tmp_path / "store", 200, variant="conv")
    build_site(load_stores([tmp_path / "store"]), tmp_path / "site", "", quiet=True)
    text = read(tmp_path / "site" / "index.html").text
    assert "linear" in text
    assert "30.00" in text
    assert "(not above chance)" not in text


def test_all_rows_of_the_first_place_are_named_and_what_a_published_row_is(tmp_path):
    for seed in range(2):
        for variant, correct in (("full", 501), ("linear", 500 + 3 * seed), ("conv", 480)):
            add_run(tmp_path / "store", correct + seed, variant=variant, seed=seed)
        add_run(tmp_path / "store", 501 if seed else None, variant="local", seed=seed)  # has no place
    results = load_stores([tmp_path / "store"])
    build_site(results, tmp_path / "site", "", quiet=True)
    index = read(tmp_path / "site" / "index.html").text
    (board,) = make_boards(results, load_published())
    assert [row.name for row in board.first] == ["linear"]
    add_run(tmp_path / "store", 505, seed=2)
    add_run(tmp_path / "store", 504, variant="linear", seed=2)
    results = load_stores([tmp_path / "store"])
    build_site(results, tmp_path / "site", "", quiet=True)
    index = read(tmp_path / "site" / "index.html").text
    (board,) = make_boards(results, load_published())
    first = board.first
    assert {row.name for row in first} == {"full", "linear"}
    assert ", ".join(row.name for row in first) in index
    assert ", ".join(f"{row.low:.1f} to {row.high:.1f}" for row in first) in index
    assert len({row.high for row in first}) == 2
    (local,) = [row for row in board.published if row.variant == "local" and "Tay" in row.note]
    assert "equal modulo the number of blocks" in local.note


def test_operations_do_not_depend_on_the_run_that_lacks_them(tmp_path):
    for number, lacking in enumerate(range(3)):
        for seed in range(3):
            add_run(tmp_path / str(number), 400, seed=seed, flops=None if seed == lacking else 2_000_000)
        (board,) = make_boards(load_stores([tmp_path / str(number)]), [])
        assert board.rows[0].megaflops == 2.0


def test_rows_that_share_the_best_place_above_chance_are_all_named(tmp_path):
    """A row of a higher mean that is not above chance has the first place, and is not the best."""
    for seed in range(3):
        add_run(tmp_path, 125, seed=seed)
        add_run(tmp_path, 170 if seed == 2 else 100, variant="linear", seed=seed)
        add_run(tmp_path, 170 if seed == 0 else 100, variant="conv", seed=seed)
    (board,) = make_boards(load_stores([tmp_path]), [])
    assert board.rows[0].name == "full"
    assert {row.name for row in board.first} == {"linear", "conv"}


def test_the_page_of_a_variant_names_what_it_lost(tmp_path):
    for seed in range(2):
        add_run(tmp_path / "store", None, variant="linear", seed=seed)
        add_run(tmp_path / "store", 400, variant="linear", task="text", seed=seed)
        add_run(tmp_path / "store", 400, seed=seed)
    build_site(load_stores([tmp_path / "store"]), tmp_path / "site", "", quiet=True)
    page = read(tmp_path / "site" / "variants" / "linear.html").text
    assert page.count("linear (diverged)") == 2
    add_run(tmp_path / "store", None, variant="linear", options={"backend": "reference"})
    results = load_stores([tmp_path / "store"])
    build_site(results, tmp_path / "site", "", quiet=True)
    (lost,) = [
        run for run, record in results.records.items() if record.config.variant.options.get("backend") == "reference"
    ]
    assert "linear [backend=reference]" in read(tmp_path / "site" / "runs" / f"{lost[:16]}.html").text
    assert "Without a number: ListOps, profile quick" in page


def test_the_best_answer_without_a_model_is_no_oracle(tmp_path):
    baselines = {"chance": 10.0, "bag of tokens": 30.0, "oracle": 99.5}
    add_run(tmp_path / "store", 700, baselines=baselines)
    add_run(tmp_path / "store", 700, task="text", baselines={"oracle": 98.5})
    results = load_stores([tmp_path / "store"])
    board, _ = make_boards(results, load_published())
    assert [row.name for row in board.baselines] == ["Oracle", "Bag of tokens", "Chance"]
    build_site(results, tmp_path / "site", "", quiet=True)
    index = read(tmp_path / "site" / "index.html").text
    assert "30.00" in index
    assert not any(bound in index for bound in ("99.50", "98.50"))


def test_a_task_of_which_every_run_is_lost_has_a_page_that_says_so(tmp_path):
    add_run(tmp_path / "store", 500)
    add_attempt(tmp_path / "store", "oom", task="text")
    add_attempt(tmp_path / "store", "timeout", variant="linear", profile="mine")
    results = load_stores([tmp_path / "store"])
    boards = make_boards(results, load_published())
    assert [(board.task, board.profile, len(board.rows), len(board.lost)) for board in boards] == [
        ("ListOps", "mine", 0, 1),
        ("ListOps", "quick", 1, 0),
        ("Text", "quick", 0, 1),
    ]
    build_site(results, tmp_path / "site", "", quiet=True)
    assert read(tmp_path / "site" / "index.html").text.count("no run has a number") == 2
    assert "full (OOM)" in read(tmp_path / "site" / boards[2].address).text


def test_a_row_that_lacks_a_seed_of_the_suite_has_no_place(tmp_path):
    for seed in range(2):
        add_run(tmp_path, 500, seed=seed)
    add_run(tmp_path, 900, variant="linear")
    [board] = make_boards(replace(load_stores([tmp_path]), seeds=frozenset(range(2))), load_published())
    assert [(row.name, board.place(row), row.seeds, row.tried) for row in board.rows] == [
        ("full", "1", 2, 2),
        ("linear", "-", 1, 2),
    ]


def test_no_program_that_a_record_names_is_loaded(tmp_path):
    trap = tmp_path / "trap.py"
    trap.write_text("raise SystemExit('loaded')")
    add_run(tmp_path / "store", 400, variant=f"{trap}:Mixer")
    config = resolve(task="listops", variant="full", profile=load_profile("quick"), seed=0, overrides={})
    add_run(tmp_path / "store", 400, config=config.model_copy(update={"task": f"{trap}:Task"}), title="Trap")
    assert build_site(load_stores([tmp_path / "store"]), tmp_path / "site", "", quiet=True) == 1 + 2 + 2 + 2


def test_an_empty_store_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no records of runs yet"):
        build_site(load_stores([tmp_path]), tmp_path / "site", "", quiet=True)


def test_the_command_writes_the_first_page(store, tmp_path):
    done = CliRunner().invoke(command, ["site", "--store", str(store), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "index.html").is_file()


FILTER = """
const cell = (text) => ({textContent: text});
const row = (name, family, parameters) => ({hidden: false, textContent: name, cells: [cell(name), cell(parameters)],
  dataset: {family, parameters, megaflops: "nan"}});
const rows = [row("Full", "attention", "1,000"), row("Local", "sparse", "90"), row("Luna", "attention", "200")];
const on = {};
const listen = (key) => (event, act) => { on[key + event] = act; };
const classes = {add() {}};
const heads = ["a", "b"].map((key) => ({dataset: {}, addEventListener: listen(key)}));
const body = {rows, appendChild(one) { body.order.push(one.textContent); }, order: []};
const table = {classList: classes, tBodies: [body], querySelectorAll: () => heads};
const form = {classList: classes, addEventListener: listen("form"), text: {value: ""}, family: {value: ""},
  parameters: {value: ""}, megaflops: {value: ""}};
global.document = {querySelectorAll: (what) => what === "table.sortable" ? [table]
  : what === "form.filters" ? [form] : rows};
require(process.argv[1]);
const shown = (changes) => { Object.assign(form, changes); on["forminput"]();
  return rows.filter((one) => !one.hidden).map((one) => one.textContent); };
const sorted = (key) => { body.order = []; on[key + "click"](); return body.order; };
console.log(JSON.stringify([
  shown({text: {value: "l"}}), shown({text: {value: "lU"}}),
  shown({text: {value: ""}, family: {value: "attention"}}),
  shown({parameters: {value: "250"}}), sorted("b"), sorted("b"), sorted("a"),
]));
"""


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_script_filters_and_sorts():
    done = subprocess.run([NODE, "-e", FILTER, str(SCRIPT)], capture_output=True, text=True, check=True)
    all_l, lu, attention, small, most, least, names = json.loads(done.stdout)
    assert all_l == ["Full", "Local", "Luna"]
    assert lu == ["Luna"]
    assert attention == ["Full", "Luna"]
    assert small == ["Luna"]
    assert most == ["Full", "Luna", "Local"]
    assert least == most[::-1]
    assert names == ["Luna", "Local", "Full"]
