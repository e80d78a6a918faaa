"""Nothing of a file or a server controls the terminal, and no code prints past the one place that sees to it."""

import subprocess
import sys
from pathlib import Path

import pytest

from lra.terminal import clean, clean_line, echo, print_above_bars, progress_bar

ROOT = Path(__file__).resolve().parents[2]
ATTACK = "a\x1b[2J\x1b]0;title\x07b\x9b31mc\r\u202ed\udcffe\x7f"
CALLS = ("click.echo('x')", "click.secho('x')", "tqdm.write('x')", "print('x')")


def controls(text):
    return [char for char in text if not char.isprintable() and char not in "\n\t"]


def test_control_characters_become_question_marks_and_text_stays():
    assert clean(ATTACK) == "a?[2J?]0;title?b?31mc??d?e?"
    assert clean("one\n\ttwo ± ü 字") == "one\n\ttwo ± ü 字"
    assert clean_line("one\r\n\ttwo") == "one two"


@pytest.mark.parametrize("err", [False, True])
def test_what_is_printed_is_clean(capsys, err):
    echo(ATTACK, err=err)
    printed = capsys.readouterr()
    assert controls(printed.err if err else printed.out) == []
    assert "title" in (printed.err if err else printed.out)


def test_lines_above_bars_and_the_titles_of_bars_are_clean(capsys, monkeypatch):
    print_above_bars(ATTACK)
    assert controls(capsys.readouterr().err) == []
    monkeypatch.setattr("tqdm.std.tqdm.__init__", lambda self, items, **settings: self.__dict__.update(settings))
    monkeypatch.setattr("tqdm.std.tqdm.__del__", lambda self: None)
    assert controls(progress_bar(title=ATTACK, unit="x", shown=True).desc) == []


@pytest.mark.parametrize("call", CALLS)
def test_ruff_refuses_every_other_way_to_print(tmp_path, call):
    file = ROOT / "lra" / "elsewhere.py"
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--no-cache",
        "--select",
        "TID251,T20",
        "--stdin-filename",
        file,
        "-",
    ]
    source = f"import click\nfrom tqdm import tqdm\n{call}\n"
    done = subprocess.run(command, input=source, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stdout
    fine = subprocess.run(
        command, input="from lra.terminal import echo\necho('x')\n", capture_output=True, text=True, cwd=ROOT
    )
    assert fine.returncode == 0, fine.stdout
