"""What `--help` and the documentation list, held against what there is."""

import re

import click
import pytest
from click.testing import CliRunner

from lra.config.builtin import profile_names, suite_names
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
