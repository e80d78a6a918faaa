"""The evidence: its suites resolve, its records are intact, and its pages show what the records say."""

import functools
import json
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.evidence import __main__ as evidence
from lra.config.suites import expand, load_suite
from lra.errors import UsageError
from lra.results.records import RunRecord, Store

RUNS = {
    "listops": 55, "rivals": 55, "rotary": 15, "patterns": 15, "pairs": 30, "text-again": 10, "text-rivals": 20,
    "tasks": 33, "depth": 36, "ablation": 51, "rates": 18, "longer": 9, "convnet": 12, "depth-bytes": 16,
    "depth-text": 12, "depth-text-control": 6, "listops-2k": 10, "listops-2k-seeds": 9, "mini-seeds": 54,
    "mini-longer": 6, "segments": 25, "segments-ablation": 18, "segments-longer": 9, "segments-depth": 9,
    "options": 54, "options-s5": 12, "options-text": 9, "options-image": 6, "causal": 20,
    "gpu-tasks": 44, "gpu-retrieval": 11, "gpu-modern": 25,
}  # fmt: skip


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(evidence.ROOT)


@functools.cache
def records():
    found = [entry for entry in Store(evidence.STORE).records() if isinstance(entry, RunRecord)]
    assert len(found) >= 100
    return found


def recounted(store, record):
    """Count the right answers of a record again, from the bits of its test examples."""
    bits = store.arrays(record.run_id)["test_correct"]
    return int(bits.sum()), len(bits)


def test_every_section_resolves_to_its_runs():
    assert len(evidence.SECTIONS) == 39
    own = {name: len(expand(load_suite(suite))) for name, suite in evidence.SECTIONS.items() if suite.endswith(".yaml")}
    assert own == RUNS
    assert {path.stem for path in evidence.SUITES.glob("*.yaml")} == set(RUNS)
    builtin = [suite for suite in evidence.SECTIONS.values() if not suite.endswith(".yaml")]
    assert len([load_suite(suite) for suite in builtin]) == 7
    with pytest.raises(UsageError):
        load_suite("contextpool_ablations")


def test_every_record_is_whole_and_named_by_what_it_ran():
    store = Store(evidence.STORE)
    for record in records():
        assert record.run_id == record.config.run_id(record.data_digest, record.numerics_version)
        if record.outcome is not None:
            assert recounted(store, record) == (record.outcome.test.correct, record.outcome.test.total)


@pytest.mark.nightly
def test_the_operations_of_the_records_are_those_counted_now():
    """Of those made on a CPU: `adaptive_span` and `contextpool` compute otherwise on a GPU."""
    found = [
        record for record in records() if record.config.task == "listops" and record.environment["device"] == "cpu"
    ]
    assert len({record.config.variant.name for record in found}) == 17
    assert [record.run_id for record in found if record.cost.flops != evidence.counted(record)] == []


def test_a_prettier_score_is_noticed(tmp_path):
    record = next(record for record in records()[:3] if record.outcome is not None)
    store = Store(tmp_path / "store")
    for each in records()[:3]:
        for place in (Store.record_path, Store.arrays_path):
            place(store, each.run_id).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(place(Store(evidence.STORE), each.run_id), place(store, each.run_id))
    path = store.record_path(record.run_id)
    envelope = json.loads(path.read_text())
    envelope["record"]["outcome"]["test"]["correct"] += 50
    path.write_text(json.dumps(envelope))
    assert [isinstance(entry, RunRecord) for entry in store.records()].count(False) == 1
    correct, _ = recounted(Store(evidence.STORE), record)
    assert correct != envelope["record"]["outcome"]["test"]["correct"]


def pages():
    """Read the pages of the results, by their paths below docs/."""
    names = [path.relative_to(evidence.TEMPLATES) for path in sorted(evidence.TEMPLATES.rglob("*.md"))]
    assert len(names) == 17
    return {name: (evidence.DOCS / name).read_text(encoding="utf-8") for name in names}


@pytest.mark.nightly
def test_the_pages_are_what_the_records_give():
    assert {path.name for path in (evidence.DOCS / "results").glob("*.md")} == {name.name for name in pages()} - {
        "results.md"
    }
    with evidence.store_read_once():
        assert evidence.render_pages() == pages()


def test_no_note_and_no_command_is_repeated_on_a_page():
    counted = Counter()
    for name, page in pages().items():
        notes = evidence.notes_of(page)
        assert [note for note in notes if notes.count(note) > 1] == []
        counted.update(note for note in notes if re.match(r"- \*\w", note))
        commands = re.findall(r"^\d+\. `lra-report (.*)`$", page, re.MULTILINE)
        assert commands == evidence.REPORT.findall((evidence.TEMPLATES / name).read_text(encoding="utf-8"))
        numbers = [int(number) for number in re.findall(r"^\*\*Table (\d+)\. ", page, re.MULTILINE)]
        assert numbers == [*range(1, len(commands) + 1)]
        assert "Made by" not in page
        assert "{{" not in page
    assert len(counted) >= 12
    assert set(counted.values()) == {1}


def test_notes_of_several_tables_stand_once_and_name_their_tables():
    text = "{{ notes }}\n\n```report\nx\n```\n\n```report\ny\n```\n\n```report\nz\n```\n\n{{ commands }}"
    tables = {"x": "**X**\n\n- all\n- two\n- *T*: t", "y": "**Y**\n\n- all\n- own", "z": "**Z**\n\n- all\n- two"}
    page = evidence.render_page(text, tables, ["- *T*: t"])
    notes, *shown = page.split("**Table ")
    assert notes.split("\n")[2:4] == ["- all", "- Tables 1, 3: two"]
    assert [part.split("\n\n")[0] for part in shown] == ["1. X**", "2. Y**", "3. Z**"]
    assert [part.count("- ") for part in shown] == [0, 1, 0]
    assert page.endswith("## Commands\n\n1. `lra-report x`\n2. `lra-report y`\n3. `lra-report z`")


@pytest.mark.nightly
def test_the_guide_to_reports_shows_what_its_commands_print():
    guide = evidence.GUIDE.read_text(encoding="utf-8")
    assert len(evidence.PRINTED.findall(guide)) == guide.count("$ lra-report") == 2
    assert evidence.render_guide() == guide


def test_an_output_is_cut_where_the_earlier_one_was():
    new = "\n".join(f"line {n}" for n in range(9)) + "\n"
    assert evidence.cut_alike("a\nb", new) == new[:-1]
    assert evidence.cut_alike("a\nb\n[...]", new) == "line 0\nline 1\n[...]"
    shown = "a\n[...]\nline 3\nb\n[...]\nc"
    assert evidence.cut_alike(shown, new) == "line 0\n[...]\nline 3\nline 4\n[...]\nline 8"
    with pytest.raises(evidence.click.ClickException, match="'line 9' is no longer printed"):
        evidence.cut_alike(shown.replace("line 3", "line 9"), new)


@pytest.mark.nightly
def test_the_figures_are_what_the_records_give(tmp_path):
    pinned = re.search(r"^matplotlib==(.*)$", (evidence.ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
    if version("matplotlib") != pinned:
        pytest.skip(f"the figures were drawn by matplotlib {pinned}, here is {version('matplotlib')}")
    drawn = evidence.draw_figures(tmp_path)
    kept = sorted((evidence.FIGURES).rglob("*.*"))
    assert len(drawn) == len(kept) == 10
    for path in drawn:
        assert path.read_bytes() == (evidence.FIGURES / path.relative_to(tmp_path)).read_bytes()


def test_the_comparisons_are_in_the_tables_of_the_details():
    found = pages()
    shown = found.pop(Path("results/comparisons.md"))
    first = found.pop(Path("results.md"))
    rows = "".join(found.values()).replace("\\[", "[").replace("\\]", "]")
    compared = re.findall(r"^\| \(([abc])\) .*?\| ([+-]\d+\.\d\d) (\[[^]]+\]) +\| ([\d.]+) +\|", shown, re.MULTILINE)
    listed, waiting = (
        re.findall(r"^- \[", evidence.COMPARISONS.read_text(), re.MULTILINE),
        shown.count("| not run yet "),
    )
    assert len(listed) == len(compared) + waiting == 35
    assert f"adjusted for all {len(compared)} " in shown
    assert len(compared) >= 25
    alone = []
    for _, difference, interval, detectable in compared:
        interval = interval.replace("\u00a0", " ")
        row = rf"\| {re.escape(difference)} +\| {re.escape(interval)} +\|[^|]*\|[^|]*\| {detectable} +\|"
        alone += [] if re.search(row, rows) else [difference]
    assert len(alone) <= evidence.COMPARISONS.read_text().count(" / ") == 1  # no table has rows of two tracks
    headline = [line for line in first.splitlines() if line.startswith("| (")]
    assert len(headline) == 18
    cells = [re.split(r" *\| *", line) for line in shown.splitlines()]
    assert all(re.split(r" *\| *", line) in cells for line in headline)


def test_the_readme_shows_a_table_of_the_pages():
    shown = (evidence.ROOT / "README.md").read_text(encoding="utf-8").split(evidence.MARK)[1].strip()
    assert shown.count("\n|") >= 10
    page = pages()[evidence.EXCERPT]
    assert evidence.render_readme(page) == evidence.README.read_text(encoding="utf-8")
    assert f"\n{shown}\n" in page


def test_a_report_that_fails_stops_the_page():
    with pytest.raises(UsageError, match="no-such-suite"):
        evidence.show_report("table accuracy --suite no-such-suite")
    with pytest.raises(evidence.click.ClickException, match="exit code 2"):
        evidence.show_report("table head-to-head full --suite benchmarks/evidence/suites/listops.yaml")


@pytest.mark.nightly
def test_what_was_not_run_is_shown_as_not_run(monkeypatch, tmp_path):
    monkeypatch.setattr(evidence, "STORE", tmp_path)
    assert evidence.show_report("table accuracy --suite depth") == "Not run yet."
    assert evidence.status_table().count("not run") == len(evidence.SECTIONS)


WORK = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
time.sleep(0.5)  # by now the parent has its handlers, however busy the machine is
print("at work", flush=True)
time.sleep(60)
"""
HANDS_OVER = """
import sys
from benchmarks.evidence.__main__ import hand_over
sys.exit(hand_over([sys.executable, "-c", sys.argv[1]]))
"""


@pytest.mark.nightly
def test_a_signal_to_stop_is_for_the_sweep():
    command = [sys.executable, "-c", HANDS_OVER, WORK]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        process.terminate()
        assert process.wait(30) == 75
