"""Every command, link, path, YAML file and Python block of the documentation works. `tries` runs the commands."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from attention_zoo import registry
from lra.config.profiles import load_profile
from lra.config.suites import load_suite
from lra.errors import UsageError
from tests.docs.pages import (
    OWN,
    ROOT,
    Block,
    Command,
    Page,
    blocks,
    commands,
    dead_links,
    links,
    pages,
    spans,
)
from tests.docs.test_variants import package  # noqa: F401  (a fixture: the example of docs/add-a-variant.md)
from tests.docs.tries import (
    COMMANDS,
    PROGRAMS,
    STOPS,
    DocsError,
    check_words,
    option_names,
    try_own,
    try_tool,
)
from tests.reports.synthetic import five_tasks

PAGES = pages()
EXAMPLES = ("attention_zoo/variants/mean_gate.py",)
"""Paths in prose of files that a reader would make."""
TREE = ("attention_zoo/", "contextpool/", "lra/", "runners/", "configs/", "reports/", "benchmarks/", "docs/", "tests/")
PYTHON_ELSEWHERE = {
    "contextpool.md": "tests/contextpool/test_module.py",
    "reports.md": "tests/reports/test_cli.py",
    "add-a-variant.md": "tests/docs/test_variants.py",
    "trained-models.md": "tests/lra/test_trained.py",
}
"""Pages whose Python blocks another test runs, and insists on how many there are."""


def test_no_file_has_the_marks_of_a_merge():
    def marked(text):
        return any(line.startswith(("<" * 7 + " ", ">" * 7 + " ")) for line in text.splitlines())

    tracked = subprocess.run(["git", "ls-files", "*.md", "*.py", "*.yaml"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    names = tracked.stdout.split()
    assert len(names) > 300
    assert [name for name in names if marked((ROOT / name).read_text(encoding="utf-8"))] == []
    assert marked(f"text\n{'<' * 7} HEAD\n")


def made_up(text: str) -> Page:
    return Page(ROOT / "docs" / "made-up.md", text)


def shell_commands(page: Page) -> list[Command]:
    return [command for block in blocks(page) for command in commands(block, PROGRAMS)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in: a store of made-up records, and links to what a clone has."""
    folder = tmp_path_factory.mktemp("bench")
    five_tasks(folder / "lra-results")
    for layers in (1, 3):
        five_tasks(folder / "lra-results", layers=layers, track="open", seeds=1)
    for name in ("docs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    return folder


def try_page(page: Page, folder: Path, patch: pytest.MonkeyPatch) -> Counter:
    """Try every command of a page; count the stops, None for what ran to its end."""
    patch.chdir(folder)
    patch.setenv("LRA_HOME", str(folder / "home"))
    patch.delenv("LRA_STORE", raising=False)
    for name, text in named_files(page).items():
        (folder / name).write_text(text)
    counts: Counter = Counter()
    for command in shell_commands(page):
        if command.words[0] in OWN:
            counts[try_own(command, patch)] += 1
        else:
            try_tool(command, patch)
            counts["other"] += 1
    return counts


def named_files(page: Page) -> dict[str, str]:
    """Files that a page shows under their names, `# name.yaml` or `# name.py` in the first line."""
    shown = [block.text for block in blocks(page) if block.language in ("yaml", "python")]
    return {named[1]: text for text in shown if (named := re.match(r"# ([\w-]+\.(?:yaml|py))\n", text))}


@pytest.fixture
def example_installed(package, monkeypatch):  # noqa: F811
    """Make the guide's variant importable, and leave no trace of it in this process."""
    monkeypatch.syspath_prepend(package)
    yield
    registry._registered.pop("mean_gate", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_mixers"]:
        del sys.modules[name]


def by_tier(pages):
    """Leave the commands of all pages but the README to the nightly tests."""
    return [page if page.path.name == "README.md" and page.path.parent == ROOT
            else pytest.param(page, marks=pytest.mark.nightly) for page in pages]  # fmt: skip


@pytest.mark.parametrize("page", by_tier(PAGES), ids=lambda page: str(page.path.relative_to(ROOT)))
@pytest.mark.usefixtures("example_installed")
def test_every_command_of_the_page_works(page, bench, monkeypatch):
    try_page(page, bench, monkeypatch)


def test_how_many_commands_blocks_and_links_there_are():
    found = [command for page in PAGES for command in shell_commands(page)]
    own = Counter(command.words[0] for command in found if command.words[0] in OWN)
    assert len(PAGES) >= 12
    assert sum(own.values()) >= 42
    assert set(own) == set(OWN) == set(COMMANDS)
    assert len(found) - sum(own.values()) >= 8
    assert sum(len(blocks(page)) for page in PAGES) >= 33
    assert sum(len(links(page)) for page in PAGES) >= 35
    assert sum(span.startswith(OWN) for page in PAGES for span in spans(page)) >= 15


def test_no_line_that_looks_like_a_command_is_passed_over():
    for page in PAGES:
        unread = [block for block in blocks(page) if not commands(block, PROGRAMS)]
        assert [block for block in unread if re.search(rf"^(?:\$ )?({'|'.join(OWN)}) ", block.text, re.MULTILINE)] == []


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("lra-run --attn full --task listops --stepps 3", "No such option"),
        ("lra-run --attn fool --task listops", "unknown variant 'fool'"),
        ("lra-run --attn full --task listop --dry-run", "listop"),
        ("lra-run --attn full --task listops --set variant.x=1", "variant.x"),
        ("lra-run --attn full --task listops --profile tinny.yaml", "tinny.yaml"),
        ("lra-sweep run dept", "did you mean 'depth'"),
        ("lra-sweep run depth --launcher sge", "'sge' is not one of"),
        ("lra-sweep wach depth", "No such command 'wach'"),
        ("lra-bench --attn full --lengths many", "'many' is not a length"),
        ("lra-data fetch listops", "is generated"),
        ("lra-data show tex", "tex"),
        ("lra-zoo describe fool", "unknown variant"),
        ("lra-report table accurracy", "did you mean 'accuracy'"),
        ("lra-report table head-to-head full", "takes 2"),
        ("lra-report table accuracy --store benchmarks/evidence/store --fromat csv", "No such option"),
    ],
)
def test_a_broken_command_is_caught(line, complaint, bench, monkeypatch):
    with pytest.raises(DocsError, match=re.escape(complaint)):
        try_page(made_up(f"text\n\n```\n{line}\n```\n"), bench, monkeypatch)


@pytest.mark.parametrize(
    "line",
    [
        "pip install -c constraint.txt .",
        "pip install 'lra-harness[rai]'",
        "pip install torch==1.0",
        "pytest tests/nowhere/test_x.py",
        "python -m benchmarks.nothing",
        "python -m benchmarks.training --attnn full",
        "python -m benchmarks.evidence runn",
        "torchrun --nproc-per-nodes 2 --no-python lra-run --attn full --task listops",
        "torchrun --nproc-per-node 2 lra-run --attn full --task listops",
        "torchrun --nproc-per-node 2 --no-python lra-run --attn fool --task listops",
    ],
)
def test_another_broken_command_is_caught(line, bench, monkeypatch, capsys):
    with pytest.raises(DocsError):
        try_page(made_up(f"```\n{line}\n```\n"), bench, monkeypatch)


def test_an_unknown_program_is_caught(bench, monkeypatch):
    with pytest.raises(DocsError, match="unknown program"):
        try_page(made_up("```console\n$ lra-runn --attn full\n```\n"), bench, monkeypatch)


def test_every_stop_is_where_a_command_gets_to(bench, monkeypatch):
    lines = {
        "lra-run": "lra-run --attn full --task listops --device cuda:1 --tracker wandb",
        "lra-sweep run": "lra-sweep run depth --launcher slurm --slurm timeout_min=5",
        "lra-sweep plan --probe": "lra-sweep plan depth --probe",
        "lra-bench": "lra-bench --quick --device cuda",
        "lra-data prepare": "lra-data prepare text --from FILE",
        "lra-data show": "lra-data show listops --index 3",
        "lra-data fetch": "lra-data fetch TASK",
        "lra-data verify": "lra-data verify listops",
        "lra-data remove": "lra-data remove listops",
        "lra-zoo check": "lra-zoo check NAME",
        "lra-doctor": "lra-doctor",
        "lra-report figures": "lra-report figures",
        "lra-report html": "lra-report html",
        "lra-report probes": "lra-report probes --figure probes.png",
        "lra-report locality": "lra-report locality 12ab",
        "lra-report site": "lra-report site",
        "lra-report verify": "lra-report verify lra-results",
        "lra-run --from": "lra-run --attn full --task text --from 12ab",
        "lra-report pooling": "lra-report pooling 12ab",
        "lra-report compare": "lra-report compare 12 34",
        "lra-report table --store": "lra-report table depth --store benchmarks/evidence/store",
        "lra-report table --suite": "lra-report table depth --suite quick",
        "lra-report table [": "lra-report table ablation 'full [dim=3]'",
    }
    assert set(lines) == set(STOPS)
    for key, line in lines.items():
        assert try_page(made_up(f"```sh\nA=1 {line}  # why\n```\n"), bench, monkeypatch) == {key: 1}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.path.relative_to(ROOT)))
def test_links_options_and_paths_in_prose_lead_somewhere(page):
    assert dead_links(page) == []
    assert unknown_spans(page) == []


def unknown_spans(page: Page) -> list[str]:
    """Code spans of the prose that name a command, an option or a path of the tree that does not exist."""
    unknown, options = [], option_names()
    for span in spans(page):
        name, *words = span.split()
        if name in COMMANDS:
            try:
                check_words(COMMANDS[name], [word.strip("'\"") for word in words])
            except DocsError:
                unknown.append(span)
        elif re.match(r"--\w", name):
            unknown += [] if name.partition("=")[0] in options else [span]
        elif (
            span.startswith(TREE)
            and span not in EXAMPLES
            and "NAME" not in span
            and re.fullmatch(r"[\w./-]+(::\w+)?", span)
        ):
            unknown += [] if (ROOT / span.partition("::")[0]).exists() else [span]
    return unknown


def test_dead_links_and_stale_prose_are_caught():
    good = "# A b, `c`!\n\n## A b\n\n[x](README.md) [y](#a-b-c) [z](#a-b) [w](protocol.md#tracks) [v](https://x.org)"
    assert dead_links(made_up(good)) == []
    bad = ["nowhere.md", "#nothing", "protocol.md#trakcs", "http://x.org", "../lra/nothing.py"]
    assert dead_links(made_up("# A\n" + " ".join(f"[x]({link})" for link in bad))) == bad
    stale = ["lra-sweep wach x", "lra-report figures --format gif", "lra-run --step", "--per-gppu 4", "lra/nothing.py"]
    fine = ["lra-report figures --format pdf", "lra-run --config -", "--per-gpu 4", "lra/config/schema.py"]
    assert unknown_spans(made_up(" ".join(f"`{span}`" for span in stale + fine))) == stale


def check_yaml(block: Block, folder: Path) -> None:
    """Check that a YAML block is a suite or a profile."""
    path = folder / "block.yaml"
    path.write_text(block.text)
    (load_suite if "\nvariants:" in block.text and "\ntasks: " in block.text else load_profile)(str(path))


def test_yaml_blocks_are_suites_or_profiles(tmp_path):
    found = [block for page in PAGES for block in blocks(page) if block.language in ("yaml", "yml")]
    assert len(found) >= 2
    for block in found:
        check_yaml(block, tmp_path)
    for block in found:
        with pytest.raises(UsageError):
            check_yaml(Block(block.page, "yaml", block.text.replace("profile:", "profil:")), tmp_path)


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [block for page in PAGES for block in blocks(page) if block.language in ("python", "py")]
    elsewhere = {block.page.name for block in found} & PYTHON_ELSEWHERE.keys()
    assert elsewhere == set(PYTHON_ELSEWHERE)
    for path in PYTHON_ELSEWHERE.values():
        assert (ROOT / path).is_file()
    for block in found:
        if block.page.name not in PYTHON_ELSEWHERE:
            exec(compile(block.text, str(block.page), "exec"), {})


def index_problems(index: str, names: set[str]) -> list[str]:
    """Return the pages that the index does not list exactly once."""
    listed = Counter(re.findall(r"^[|-] \[[^]]+\]\(([\w./-]+)\)", index, re.MULTILINE))
    return sorted(name for name in names | set(listed) if listed[name] != (name in names))


def test_the_index_has_every_page_once():
    docs = ROOT / "docs"
    names = {str(page.path.relative_to(docs)) for page in PAGES if page.path.is_relative_to(docs)} - {"README.md"}
    assert len(names) >= 17
    index = (docs / "README.md").read_text() + (docs / "results.md").read_text()  # which lists its details
    assert index_problems(index, names) == []
    assert index_problems(index, {*names, "new.md"}) == ["new.md"]
    assert index_problems(index, names - {"protocol.md"}) == ["protocol.md"]
    assert index_problems(f"{index}\n| [Sweeps](sweeps.md) | again |", names) == ["sweeps.md"]
