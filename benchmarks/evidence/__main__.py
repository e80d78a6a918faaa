"""Evidence: executes the missing runs behind docs/results.md, and writes that page and its details from their records.

    python -m benchmarks.evidence run --time-limit 60      what is missing, most valuable first; stops cleanly
    python -m benchmarks.evidence status                   how far each section is
    python -m benchmarks.evidence page                     docs/results.md, docs/results/, and tables on other pages

A section is a suite: one of benchmarks/evidence/suites, or a built-in one. Work on any machine adds runs to the store.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from unittest.mock import patch

import click

from lra.terminal import echo
from reports import result_set
from reports.cli import command as lra_report
from reports.statistics import compare_paired, holm
from reports.tables.captions import p_text

if TYPE_CHECKING:
    from lra.results.records import RunRecord

ROOT = Path(__file__).resolve().parents[2]
SUITES = Path("benchmarks/evidence/suites")
STORE = Path("benchmarks/evidence/store")
GPU_RECORD = Path("benchmarks/evidence/gpu.json")
"""Written by `python -m benchmarks.gpu`."""
DOCS = Path("docs")
FIGURES = Path("docs/results/figures")
TEMPLATES = Path("benchmarks/evidence/pages")
"""The texts of the pages, in the folders that the pages have below docs/."""
COMPARISONS = Path("benchmarks/evidence/comparisons.yaml")
GUIDE = Path("docs/reports.md")
README = Path("README.md")
EXCERPT = Path("results/listops.md")
"""The page whose first table the README shows."""
MARK = "<!-- from docs/results/listops.md -->"
"""Stands before and after the table of the README."""
ON_CPU = {
    name: str(SUITES / f"{name}.yaml")
    for name in (
        "listops",
        "rivals",
        "rotary",
        "patterns",
        "pairs",
        "text-again",
        "text-rivals",
        "tasks",
        "depth",
        "ablation",
        "rates",
        "longer",
        "options",
        "options-s5",
        "options-text",
        "options-image",
        "causal",
        "convnet",
        "depth-bytes",
        "depth-text",
        "depth-text-control",
        "listops-2k",
        "listops-2k-seeds",
        "mini-seeds",
        "mini-longer",
        "segments",
        "segments-ablation",
        "segments-longer",
        "segments-depth",
    )
} | {"probes": "probes", "mini": "mini"}
"""Sections for any machine, in order of value, with their suites."""
ON_GPU = {
    "gpu-tasks": str(SUITES / "gpu-tasks.yaml"),
    "gpu-retrieval": str(SUITES / "gpu-retrieval.yaml"),
    "gpu-depth": "depth",
    "gpu-ablation": "contextpool_ablation",
    "gpu-context": "learned_context",
    "gpu-convnet": "convnet",
    "gpu-modern": str(SUITES / "gpu-modern.yaml"),
    "gpu-official": "lra",
}
"""Sections that take a GPU hours to days, in order of value."""
SECTIONS = ON_CPU | ON_GPU
STOPPED = 75
"""Exit code of a sweep that was stopped after it saved its state."""
REPORT = re.compile(r"^```report\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
"""A command in the text of the page, which is replaced by its output."""
FIGURE = re.compile(r"\((?:results/)?figures/([\w-]+)/([\w.-]+\.svg)\)")
"""A figure of the pages: its section, or `bench`, and the name that `lra-report figures` gives it."""
CAPTION = re.compile(r"^\*\*", re.MULTILINE)
"""The beginning of the caption of a table."""
PRINTED = re.compile(r"^```console\n\$ (lra-report [^\n]*)\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
"""A command of the guide to reports, and what it prints, possibly cut."""
CUT = "[...]"
"""The line of the guide that stands for lines left out."""


@click.group()
def command() -> None:
    """Add runs to the evidence, and write its page."""
    os.chdir(ROOT)


@command.command()
@click.argument("sections", nargs=-1, type=click.Choice(list(SECTIONS)))
@click.option("--time-limit", type=click.FloatRange(min=0, min_open=True), default=60.0, show_default=True,
              help="Minutes; runs that are still active then stop with their state saved.")  # fmt: skip
@click.option("--gpu", is_flag=True, help="Run the sections for a GPU, when none is named.")
@click.option("--slots", type=click.IntRange(min=1), help="Runs at a time.  [default: that of lra-sweep]")
@click.option("--per-gpu", type=click.IntRange(min=1), default=4, show_default=True, help="Runs that share a GPU.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of a run.  [default: that of lra-sweep]")
def run(
    *, sections: tuple[str, ...], time_limit: float, gpu: bool, slots: int | None, per_gpu: int, threads: int | None
) -> None:
    """Execute the missing runs of SECTIONS; the default is all sections for the kind of machine."""
    end = time.monotonic() + 60 * time_limit
    for section in sections or (ON_GPU if gpu else ON_CPU):
        left = (end - time.monotonic()) / 60
        if left <= 0:
            break
        arguments = ["run", SECTIONS[section], "--store", str(STORE), "--time-limit", f"{left:.2f}"]
        arguments += ["--per-gpu", str(per_gpu)]
        arguments += [] if slots is None else ["--slots", str(slots)]
        arguments += [] if threads is None else ["--threads", str(threads)]
        if hand_over([sys.executable, "-m", "runners.cli.sweep", *arguments]) == STOPPED:
            break
    echo(status_table())


def hand_over(work: list[str]) -> int:
    """Run a command and return its exit code; signals to stop are passed on to it, so that it can save its state."""
    with subprocess.Popen(work) as process:
        signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
        signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to both
        return process.wait()


@command.command()
def status() -> None:
    """Print how many runs of each section have their record."""
    echo(status_table())


@command.command()
def page() -> None:
    """Write docs/results.md, docs/results/, the tables in docs/reports.md and the table in README.md from the records.

    The texts of the pages are in benchmarks/evidence/pages.
    """
    with store_read_once():
        pages = render_pages()
        for name, text in pages.items():
            write_page(DOCS / name, text)
        write_page(GUIDE, render_guide())
        write_page(README, render_readme(pages[EXCERPT]))
        for path in draw_figures(FIGURES):
            echo(path)


def write_page(path: Path, text: str) -> None:
    """Write a page and print its path."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    echo(path)


@contextlib.contextmanager
def store_read_once() -> Iterator[None]:
    """Let every command of `lra-report` in this block use one reading of the store."""
    with patch("reports.result_set.load_stores", functools.cache(result_set.load_stores)):
        yield


@command.command()
def recount() -> None:
    """Count the operations in every record again, after the counter has learnt a formula; nothing else changes."""
    from lra.atomic_io import atomic_write
    from lra.config.schema import canonical_json
    from lra.results.records import RunRecord, Store

    store, changed = Store(STORE), 0
    for record in store.records():
        if isinstance(record, RunRecord) and record.cost.flops != (flops := counted(record)):
            path = store.record_path(record.run_id)
            body = json.loads(path.read_bytes())["record"]
            body["cost"]["flops"] = flops
            envelope = {"record": body, "sha256": hashlib.sha256(canonical_json(body)).hexdigest()}
            atomic_write(path, json.dumps(envelope, indent=1, sort_keys=True, allow_nan=False).encode())
            changed += 1
    echo(f"{changed} records changed")


_COUNTS: dict[bytes, int | None] = {}


def counted(record: RunRecord) -> int | None:
    """Count the operations of one example of a run, once for all its seeds."""
    import torch

    from lra.config.schema import canonical_json
    from lra.measure.model_size import flops_of_example
    from lra.tasks import get_task

    key = canonical_json(record.config.model_dump(exclude={"seed", "train"}))
    if key not in _COUNTS:
        _COUNTS[key] = flops_of_example(record.config, get_task(record.config.task).info, torch.device("cpu"))
    return _COUNTS[key]


def status_table() -> str:
    """Return a Markdown table with the number of runs of each section and of those with a record."""
    from tabulate import tabulate

    from lra.config.suites import load_suite

    rows = []
    for section, name in SECTIONS.items():
        suite, (done, total) = load_suite(name), count_runs(name)
        rows.append([f"`{section}`", suite.title, suite.profile, f"{done} of {total}" if done else "not run"])
    return tabulate(rows, headers=["section", "question", "profile", "runs done"], tablefmt="github")


def count_runs(suite: str) -> tuple[int, int]:
    """Count the runs of a suite that have a record, whatever dataset variant they used, and all its runs."""
    from lra.config.suites import expand, load_suite

    runs = {config.key() for config in expand(load_suite(suite))}
    return len(runs & recorded_keys(STORE)), len(runs)


@functools.cache
def recorded_keys(store: Path) -> frozenset[bytes]:
    """Read the keys of all records, once for all sections: this takes seconds."""
    from lra.results.records import RunRecord, Store

    return frozenset(entry.config.key() for entry in Store(store).records() if isinstance(entry, RunRecord))


def render_pages() -> dict[Path, str]:
    """Return the page of the results and the pages of details, by their paths below docs/."""
    texts = {path.relative_to(TEMPLATES): path.read_text(encoding="utf-8") for path in sorted(TEMPLATES.rglob("*.md"))}
    tables = {name: {line: show_report(line) for line in REPORT.findall(text)} for name, text in texts.items()}
    notes = [note for of_page in tables.values() for table in of_page.values() for note in notes_of(table)]
    terms = list(dict.fromkeys(note for note in notes if note.startswith("- *")))
    rows = compared_rows()
    filled = {
        "status": status_table(),
        "terms": "\n".join(terms),
        "headline": comparison_table([row for row in rows if row[0]]),
        "comparisons": comparison_table(rows),
        "count": str(len([row for _, row in rows if row[-1] != "-"])),
        "gpu": gpu_tables(),
    }
    pages = {name: render_page(text, tables[name], terms) for name, text in texts.items()}
    return {name: re.sub(r"\{\{ (\w+) \}\}", lambda m: filled[m[1]], text) for name, text in pages.items()}


def gpu_tables() -> str:
    """Return the tables of the measurements on a GPU, from their record."""
    from benchmarks.gpu import tables

    return tables(json.loads(GPU_RECORD.read_text(encoding="utf-8")))


def render_page(text: str, tables: dict[str, str], terms: list[str]) -> str:
    """Return a page with the table of each command in it, numbered.

    Notes that hold for several tables stand once, where the text has `{{ notes }}`. The commands stand where it has
    `{{ commands }}`. Words that are explained on another page are left out.

    Args:
        text: The page, with the commands.
        tables: The table of each command.
        terms: Notes that explain words.
    """
    counts = Counter(note for table in tables.values() for note in set(notes_of(table)) - set(terms))
    shared = [note for note, count in counts.items() if count > 1]
    shared.sort(key=lambda note: next(table.index(note) for table in tables.values() if note in table))
    numbers = {line: number for number, line in enumerate(tables, start=1)}

    def shown(match: re.Match[str]) -> str:
        kept = [each for each in tables[match[1]].split("\n") if each not in (*shared, *terms)]
        return CAPTION.sub(f"**Table {numbers[match[1]]}. ", "\n".join(kept), count=1).rstrip()

    def said(note: str) -> str:
        """Name the tables that a note holds for, unless it holds for all."""
        these = [str(number) for line, number in numbers.items() if note in tables[line].split("\n")]
        return note if len(these) == len(numbers) else f"- Tables {', '.join(these)}: {note.removeprefix('- ')}"

    commands = "\n".join(f"{number}. `lra-report {line}`" for line, number in numbers.items())
    words = "[Records](records.md#words-in-the-tables) explains the words in the tables."
    notes = "\n".join([words, "", *map(said, shared)]).rstrip()
    filled = REPORT.sub(shown, text).replace("{{ notes }}", notes)
    return filled.replace("{{ commands }}", f"## Commands\n\n{commands}")


def compared_rows() -> list[tuple[bool, list[str]]]:
    """Return the comparisons behind the verdicts: whether the first page shows it, and its row of the table.

    One that lacks a seed of its suite has no difference yet, and does not count for the adjustment.
    """
    from lra.config.suites import expand, load_suite
    from lra.config.yaml_loader import load_file
    from lra.results.dataframe import label_rows

    listed = load_file(COMPARISONS)
    results, found = result_set.load_stores((STORE,)), []
    for _, task, _, _, suites, first, second, _ in listed:
        first_suite, _, second_suite = suites.partition(" / ")
        sides, runs = [], []
        for suite, row in ((first_suite, first), (second_suite or first_suite, second)):
            runs = expand(load_suite(SECTIONS[suite]))
            frame = results.for_suite(runs).frame()
            frame = frame[frame["title"] == task]
            frame["row"] = label_rows(frame, name="variant")
            sides.append(frame[frame["row"] == row].set_index("seed")["accuracy"].dropna())
        seeds, asked = sorted(set(sides[0].index) & set(sides[1].index)), len({run.seed for run in runs})
        compared = compare_paired(*(side.loc[seeds].tolist() for side in sides)) if len(seeds) == asked else None
        found.append((str(asked) if compared else f"{len(seeds)} of {asked}", compared))
    adjusted = iter(holm([result.p_value for _, result in found if result]))
    rows = []
    for (claim, task, setting, against, *_, first_page), (seeds, result) in zip(listed, found, strict=True):
        words = ["not run yet", "-", "-"]
        if result:
            low, high = result.difference.low, result.difference.high
            interval = f"{result.difference.mean:+.2f} [{low:+.2f},\u00a0{high:+.2f}]"
            words = [interval, f"{result.detectable:.2f}", p_text(next(adjusted))]
        rows.append((first_page, [f"({claim}) {task}, {setting}", against, seeds, *words]))
    return rows


def comparison_table(rows: list[tuple[bool, list[str]]]) -> str:
    """Return the Markdown of some of the comparisons."""
    from tabulate import tabulate

    heads = ("claim, task", "ContextPool against", "seeds", "difference", "detectable", "p (Holm)")
    return tabulate([row for _, row in rows], headers=heads, tablefmt="github", disable_numparse=True)


def show_report(line: str) -> str:
    """Return the table that a command of lra-report prints, without the command and the ids of the runs."""
    _, of_suite, suite = line.rpartition("--suite ")
    if of_suite and count_runs(suite)[0] == 0:
        return "Not run yet."
    printed = report(f"lra-report {line} --store {STORE} --format markdown")
    kept = [each for each in printed.split("\n") if not each.startswith(("- Made by:", "<!--"))]
    return "\n".join(kept).rstrip()


def notes_of(table: str) -> list[str]:
    """Return the notes below a table, as the lines of its Markdown."""
    return [line for line in table.split("\n") if line.startswith("- ")]


def render_readme(page_text: str) -> str:
    """Return the README with the first table of a page."""
    before, _, after = README.read_text(encoding="utf-8").split(MARK)
    table = re.findall(r"^\|.*?\n(?=\n)", page_text, re.MULTILINE | re.DOTALL)[0]
    return f"{before}{MARK}\n{table}{MARK}{after}"


def render_guide() -> str:
    """Replace what the commands in the guide to reports print; lines that are cut stay cut."""

    def printed_again(match: re.Match[str]) -> str:
        line, shown = match.groups()
        return f"```console\n$ {line}\n{cut_alike(shown, report(line))}\n```"

    return PRINTED.sub(printed_again, GUIDE.read_text(encoding="utf-8"))


def cut_alike(shown: str, printed: str) -> str:
    """Cut an output in the same places as an earlier one.

    The parts between two cuts keep their numbers of lines. The first part and the last part stay at the two ends, the
    parts between them begin at their first line.

    Raises:
        click.ClickException: The first line of a part is no longer printed.
    """
    lines = printed.rstrip("\n").split("\n")
    parts = [part.strip("\n").split("\n") for part in shown.split(CUT)]
    if len(parts) == 1:
        return "\n".join(lines)
    *others, last = parts
    kept = ["\n".join(lines[: len(others[0])])]
    for part in others[1:]:
        if part[0] not in lines:
            raise click.ClickException(f"docs/reports.md: {part[0]!r} is no longer printed; cut this output by hand")
        start = lines.index(part[0])
        kept.append("\n".join(lines[start : start + len(part)]))
    kept.append("\n".join(lines[-len(last) :]) if last != [""] else "")
    return f"\n{CUT}\n".join(kept).rstrip("\n")


def draw_figures(folder: Path) -> list[Path]:
    """Draw the figures that the pages and the guide to reports show into a folder."""
    wanted: dict[str, set[str]] = {}
    for page_with_figures in (*TEMPLATES.rglob("*.md"), GUIDE):
        for section, name in FIGURE.findall(page_with_figures.read_text(encoding="utf-8")):
            wanted.setdefault(section, set()).add(name)
    paths = []
    for section, names in wanted.items():
        chosen = "--task text" if section == "bench" else f"--suite {SECTIONS[section]}"
        with tempfile.TemporaryDirectory() as drawn:
            if section == "probes":
                report(f"lra-report probes {chosen} --store {STORE} --figure {drawn}/probes.svg")
            else:
                report(f"lra-report figures {chosen} --store {STORE} --format svg --out {drawn}")
            for name in sorted(names):
                (folder / section).mkdir(parents=True, exist_ok=True)
                paths.append(Path(shutil.copyfile(Path(drawn) / name, folder / section / name)))
    return paths


def report(line: str) -> str:
    """Return what a command of lra-report prints.

    The command runs in this process, because its imports take longer than its work.

    Raises:
        click.ClickException: The command failed.
    """
    echo(line, err=True)
    sys.argv = shlex.split(line)  # the tables name the command that made them
    printed, messages = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(messages):
            lra_report.main(sys.argv[1:], standalone_mode=False)
    except SystemExit as stop:
        raise click.ClickException(f"{line} ended with exit code {stop.code}: {messages.getvalue().strip()}") from stop
    return printed.getvalue()


if __name__ == "__main__":
    command()
