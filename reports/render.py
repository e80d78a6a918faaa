# SPDX-License-Identifier: Apache-2.0
"""Rendering of a table as Markdown, LaTeX, CSV, HTML or plain text. Names from records stay text in all of them."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd
from tabulate import SEPARATING_LINE, tabulate

from lra.terminal import clean_line

if TYPE_CHECKING:
    from .tables.table import Table

FORMATS = ("text", "markdown", "latex", "csv", "html")
IDS_IN_TEXT = 8
"""Run ids that plain text lists; the other formats list all."""

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "[": "{[}", "]": "{]}", "*": "{*}", "-": "{-}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": "{'}",
    "\u2212": "$-$",
}  # fmt: skip
_MINUS = re.compile(r"(?<![\w.)\]])-(?=\d)")
"""The sign of a number, which LaTeX would print as a hyphen in text."""
_FORMULA = re.compile(r"[=@+\-\t\uff1d\uff20\uff0b\uff0d]")
_PLAIN_NUMBER = re.compile(r"[+-]\d[\d,]*(\.\d+)?")


def render(table: Table, form: str, *, command: str = "") -> str:
    """Render a table.

    Args:
        table: What to render.
        form: One of `FORMATS`.
        command: The command that made it, which is noted under the table.
    """
    return _RENDERERS[form](table, command)


def rankings(table: Table) -> dict[tuple[int, int], int]:
    """Return {(row, column): rank} with rank 1 for the best and 2 for the second of each column that is compared.

    Values are compared with two decimals, as they are printed, so that equal numbers get equal marks.
    """
    found = {}
    for column in range(table.values.shape[1]):
        values = [round(float(value), 2) for value in table.values.iloc[:, column]]
        scores = sorted({value for value in values if not math.isnan(value)}, reverse=True)
        if len(scores) > 1:
            for row, value in enumerate(values):
                if value in scores[:2]:
                    found[row, column] = scores.index(value) + 1
    return found


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
    named = not isinstance(table.cells.index, pd.RangeIndex)
    header = [*([""] if named else []), *map(clean_line, table.cells.columns)]
    rows = [
        [*([clean_line(name)] if named else []), *map(clean_line, row)]
        for name, row in zip(table.cells.index, table.cells.to_numpy(), strict=True)
    ]
    return header, rows


def _marked(
    table: Table, mark: Callable[[str, int], str], escape: Callable[[str], str]
) -> tuple[list[str], list[list[str]]]:
    header, rows = _grid(table)
    shift = len(header) - table.cells.shape[1]
    ranks = rankings(table)
    marked = [
        [mark(escape(cell), ranks.get((i, j - shift), 0)) for j, cell in enumerate(row)] for i, row in enumerate(rows)
    ]
    return [escape(name) for name in header], marked


def _apart(table: Table, rows: list[list[str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Split the rows into those of variants and those of trivial baselines."""
    count = len(rows) - table.baselines
    return rows[:count], rows[count:]


def _notes(table: Table, command: str) -> list[str]:
    return [clean_line(note) for note in table.notes] + ([f"Made by: {clean_line(command)}"] if command else [])


def _records(table: Table) -> str:
    return f"{len(table.records)} runs: {' '.join(clean_line(run_id)[:12] for run_id in table.records)}"


def _text(table: Table, command: str) -> str:
    header, rows = _grid(table)
    variants, baselines = _apart(table, rows)
    parted = [*variants, SEPARATING_LINE, *baselines] if baselines else variants
    body = tabulate(parted, headers=header, tablefmt="simple", disable_numparse=True)
    ids = " ".join(clean_line(run_id)[:12] for run_id in table.records[:IDS_IN_TEXT])
    more = len(table.records) - IDS_IN_TEXT
    tail = [f"{len(table.records)} runs: {ids}{f' and {more} more' if more > 0 else ''}"] if ids else []
    return "\n".join([clean_line(table.caption), "", body, "", *_notes(table, command), *tail, ""])


def _markdown(table: Table, command: str) -> str:
    def escape(text: str) -> str:
        return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", html.escape(text, quote=False))

    header, rows = _marked(table, lambda t, rank: {1: f"**{t}**", 2: f"<u>{t}</u>"}.get(rank, t), escape)
    variants, baselines = _apart(table, rows)
    parted = [*variants, *([f"*{name}*", *texts] for name, *texts in baselines)]
    body = tabulate(parted, headers=header, tablefmt="github", disable_numparse=True)
    notes = [f"- {escape(note)}" for note in _notes(table, command)]
    comment = f"<!-- {_records(table).replace('--', '- -').replace('>', '')} -->"
    return "\n".join([f"**{escape(clean_line(table.caption))}**", "", body, "", *notes, "", comment, ""])


def _latex(table: Table, command: str) -> str:
    header, rows = _marked(
        table, lambda t, rank: {1: rf"\textbf{{{t}}}", 2: rf"\underline{{{t}}}"}.get(rank, t), _latex_text
    )
    variants, baselines = _apart(table, rows)
    lines = [
        r"% needs \usepackage{booktabs}",
        f"% {_records(table)}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex_text(clean_line(table.caption))}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in variants),
        *([r"\midrule"] if baselines else []),
        *(" & ".join(row) + r" \\" for row in baselines),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"\par\footnotesize {_latex_text(note)}" for note in _notes(table, command)),
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _csv(table: Table, command: str) -> str:
    header, rows = _grid(table)
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([[no_formula(cell) for cell in row] for row in [header, *rows]])
    writer.writerows([[f"# {note}"] for note in [clean_line(table.caption), *_notes(table, command), _records(table)]])
    return buffer.getvalue()


def _html(table: Table, command: str) -> str:
    header, rows = _marked(table, lambda t, rank: {1: f"<b>{t}</b>", 2: f"<u>{t}</u>"}.get(rank, t), html.escape)
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    bodies = "".join(f"<tbody>\n{_html_rows(part)}\n</tbody>" for part in _apart(table, rows) if part)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(table, command))
    notes += f"<li><details><summary>Runs</summary>{html.escape(_records(table))}</details></li>"
    caption = f"<caption>{html.escape(clean_line(table.caption))}</caption>"
    return f"<table>{caption}\n<thead><tr>{head}</tr></thead>\n{bodies}</table>\n<ul>{notes}</ul>\n"


def _html_rows(rows: list[list[str]]) -> str:
    return "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)


_RENDERERS: dict[str, Callable[[Table, str], str]] = {
    "text": _text,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "html": _html,
}


def _latex_text(text: str) -> str:
    """Escape for LaTeX; letters beyond Latin, which not every installation can print, become their code points."""
    signed = _MINUS.sub("\u2212", text)
    escaped = (_LATEX.get(letter, letter) for letter in signed)
    return "".join(part if len(part) > 1 or part < "\u0180" else f"U+{ord(part):04X}" for part in escaped)


def no_formula(cell: str) -> str:
    """Quote a text that a spreadsheet would take for a formula; signed numbers and a lone dash stay as they are."""
    if _FORMULA.match(cell) and cell != "-" and not _PLAIN_NUMBER.fullmatch(cell):
        return f"'{cell}"
    return cell
