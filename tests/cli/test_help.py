"""What `--help` and the documentation list, held against what there is."""

import importlib
import re
import shutil
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from lra.cli import EXIT_CODES
from lra.config.builtin import profile_names, suite_names
from lra.errors import EXIT_INTERRUPTED, LraError
from runners.cli.sweep import EXIT_FAILED_RUNS
from runners.signals import EXIT_PREEMPTED
from tests.docs.pages import ROOT
from tests.docs.tries import COMMANDS


def every_command(command, *words):
    """Yield the words after the script's name, of the command and of all below it."""
    yield words
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from every_command(below, *words, name)


HELPS = [(script, *words) for script, command in COMMANDS.items() for words in every_command(command)]


def help_of(script, *words):
    done = CliRunner().invoke(COMMANDS[script], [*words, "--help"], prog_name=script, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_every_command_is_asked_for_its_help():
    assert len(HELPS) == len(set(HELPS)) >= 27
    assert {script for script, *_ in HELPS} == set(COMMANDS)
    assert ("lra-data", "prepare") in HELPS


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_no_help_shows_a_layout_mark(words):
    text = help_of(*words)
    assert text.startswith(f"Usage: {words[0]}")
    assert "\\b" not in text
    assert "\b" not in text


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_every_help_lists_the_exit_codes(words):
    codes = help_of(*words).partition("Exit codes:\n")[2]
    assert [int(line.split()[0]) for line in codes.splitlines()[: len(EXIT_CODES)]] == list(EXIT_CODES)


def test_the_list_has_every_exit_code_of_an_error():
    for path in [*ROOT.glob("lra/**/*.py"), *ROOT.glob("runners/**/*.py")]:
        if path.name != "__init__.py":
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))

    def below(kind):
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    kinds = set(below(LraError))
    assert len(kinds) >= 8
    codes = {kind.exit_code for kind in kinds} | {EXIT_FAILED_RUNS, EXIT_PREEMPTED, EXIT_INTERRUPTED}
    assert codes | {0, 1} == set(EXIT_CODES)


@pytest.mark.parametrize(
    ("script", "typed", "offered"),
    [
        ("lra-report", "table acc", {"accuracy"}),
        ("lra-sweep", "st", {"status"}),
        ("lra-run", "--dry", {"--dry-run"}),
        ("lra-run", "--track ", {"matched", "open"}),
        ("lra-data", "show text --split ", {"train", "validation", "test"}),
    ],
)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_words_go_on(shell, script, typed, offered):
    words = f"{script} {typed}"
    last = "" if typed.endswith(" ") else words.split()[-1]
    place = last if shell == "fish" else str(len(words.split()) - bool(last))
    environment = {f"_{script.upper().replace('-', '_')}_COMPLETE": f"{shell}_complete", "COMP_WORDS": words}
    done = CliRunner().invoke(COMMANDS[script], [], prog_name=script, env=environment | {"COMP_CWORD": place})
    assert set(re.split(r"[\n,\t]", done.stdout)) >= offered


def test_the_page_on_completion_names_every_command():
    page = (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if "_COMPLETE=" in line]
    assert len(lines) == 3
    for line in lines:
        assert set(re.search(r" in ([\w ]+)", line)[1].split()[:7]) == {name.removeprefix("lra-") for name in COMMANDS}


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_line_for_bash_defines_the_completions(tmp_path):
    page = (ROOT / "docs" / "first-steps.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if "=bash_source" in line]
    for name in COMMANDS:  # the commands themselves, where the project is not installed too
        module = COMMANDS[name].callback.__module__
        attribute = "main" if name in ("lra-zoo", "lra-data") else "command"
        (tmp_path / name).write_text(
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
            f"from {module} import {attribute} as run\nrun(prog_name={name!r})\n"
        )
        (tmp_path / name).chmod(0o755)
    script = f'PATH="{tmp_path}:$PATH"\n{line}\ncomplete -p lra-run lra-zoo lra-report'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("completion") == 3


@pytest.mark.parametrize("words", [words for words in HELPS if "Examples:" in help_of(*words)], ids=" ".join)
def test_examples_stand_on_lines_of_their_own(words):
    _, _, examples = help_of(*words).partition("Examples:\n")
    lines = examples.rstrip().splitlines()
    assert len(lines) >= 3
    assert [line for line in lines if not re.match(rf" +{words[0]} ", line) or line.count(f"{words[0]} ") > 1] == []


def test_prepare_shows_examples():
    assert "Examples:\n    lra-data prepare listops\n" in help_of("lra-data", "prepare")


def test_the_help_of_a_run_names_every_shipped_profile():
    text = " ".join(help_of("lra-run").split())
    assert len(profile_names()) >= 5
    assert f"a built-in one ({', '.join(profile_names())}) or a YAML file" in text


def test_the_table_of_suites_has_every_shipped_one():
    page = (ROOT / "docs" / "sweeps.md").read_text()
    table = page.partition("| suite | runs |")[2].partition("\n\n")[0]
    assert len(suite_names()) >= 8
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == suite_names()
