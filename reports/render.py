# SPDX-License-Identifier: Apache-2.0
"""Rendering of a table as Markdown, LaTeX, CSV, HTML or plain text. Names from records stay text in all of them."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from tabulate import SEPARATING_LINE, tabulate

from lra.terminal import clean_line

from .tables.table import Term

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
_NUMBER = re.compile(r"([+-]?[\d,]*\d(?:\.\d+)?)(?: ± ([\d.]+))?( \([\d./]+\))?")
"""A number of a cell, its deviation, and the count or ratio in brackets."""
_FORMULA = re.compile(r"[=@+\-\t\uff1d\uff20\uff0b\uff0d]")
_PLAIN_NUMBER = re.compile(r"[+-]\d[\d,]*(\.\d+)?")


def render(table: Table, form: str, *, command: str = "", siunitx: bool = False) -> str:
    """Render a table.

    Args:
        table: What to render.
        form: One of `FORMATS`.
        command: The command that made it, which is noted under the table.
        siunitx: For LaTeX: align numbers at their points, in `S` columns.
    """
    return _latex(table, command, siunitx=siunitx) if form == "latex" else _RENDERERS[form](table, command)


def render_all(tables: Sequence[Table], form: str, *, command: str = "", siunitx: bool = False) -> str:
    """Render tables one after the other; the command, and words explained for several tables, stand once, at the end.

    Each LaTeX table has all of its notes, because it is a float.
    """
    if form == "latex" or len(tables) == 1:
        return "\n".join(render(table, form, command=command, siunitx=siunitx) for table in tables)
    shared, own = shared_notes(tables)
    notes = [*shared, *([f"Made by: {command}"] if command else [])]
    return "\n".join([*(render(table, form) for table in own), _ENDS[form](notes)])


def plain_values(table: Table) -> dict[str, Any]:
    """Return what a table shows as plain values: the text of its cells, by the heads of the columns, and its notes."""
    header, rows = _grid(table)
    cells = [dict(zip(header, row, strict=True)) for row in rows]
    variants, baselines = cells[: len(cells) - table.baselines], cells[len(cells) - table.baselines :]
    notes = [*dict.fromkeys(map(str, table.notes))]
    return {"caption": table.caption, "rows": variants, "baselines": baselines, "notes": notes, "runs": table.records}


def shared_notes(tables: Sequence[Table]) -> tuple[list[str], list[Table]]:
    """Return the terms that stand under more than one of the tables, and the tables without them.

    Other notes stay where they are: they say something about their table.
    """
    counts = Counter(note for table in tables for note in dict.fromkeys(table.notes) if isinstance(note, Term))
    shared: list[str] = [note for note, count in counts.items() if count > 1]
    return shared, [replace(table, notes=[note for note in table.notes if note not in shared]) for table in tables]


def rankings(table: Table) -> dict[tuple[int, int], int]:
    """Return {(row, column): rank} with rank 1 for the best and 2 for the second of each column that is compared.

    Values are compared as they are printed, so that equal numbers get equal marks, and no other ones.
    """
    found = {}
    for column in range(table.values.shape[1]):
        values = [float(value) for value in table.values.iloc[:, column]]
        scores = sorted({value for value in values if not math.isnan(value)}, reverse=True)
        if len(scores) > 1:
            for row, value in enumerate(values):
                if value in scores[:2] and value > -math.inf:
                    found[row, column] = scores.index(value) + 1
    return found


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
    named = not isinstance(table.cells.index, pd.RangeIndex)
    unit = f" ({table.unit})" if table.unit else ""
    header = [*(["variant"] if named else []), *(f"{clean_line(name)}{unit}" for name in table.cells.columns)]
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
    notes = [*dict.fromkeys(table.notes), *([f"Made by: {command}"] if command else [])]
    return [clean_line(note) for note in notes]


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
    header, rows = _marked(table, lambda t, rank: {1: f"**{t}**", 2: f"<u>{t}</u>"}.get(rank, t), _markdown_text)
    variants, baselines = _apart(table, rows)
    parted = [*variants, *([f"*{name}*", *texts] for name, *texts in baselines)]
    body = tabulate(parted, headers=header, tablefmt="github", disable_numparse=True)
    comment = f"<!-- {_records(table).replace('--', '- -').replace('>', '')} -->"
    lines = _markdown_end([*dict.fromkeys(table.notes), *([f"Made by: {command}"] if command else [])])
    return "\n".join([f"**{_markdown_text(clean_line(table.caption))}**", "", body, "", lines, comment, ""])


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", html.escape(text, quote=False))


def _markdown_end(notes: list[str]) -> str:
    lines = []
    for note in notes:
        text = _markdown_text(clean_line(note))
        word, _, meaning = text.partition(":")
        lines.append(f"- *{word}*:{meaning}" if isinstance(note, Term) else f"- {text}")
    return "\n".join([*lines, ""])


def _latex(table: Table, command: str, *, siunitx: bool = False) -> str:
    header, rows = _marked(
        table, lambda t, rank: {1: rf"\textbf{{{t}}}", 2: rf"\underline{{{t}}}"}.get(rank, t), _latex_text
    )
    columns = ["l", *("r" for _ in header[1:])]
    if siunitx:
        _align_numbers(table, columns, header, rows)
    variants, baselines = _apart(table, rows)
    lines = [
        r"% needs \usepackage{booktabs}" + (r" and \usepackage{siunitx}" if siunitx else ""),
        f"% {_records(table)}",
        *([f"% made by: {clean_line(command)}"] if command else []),
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex_text(clean_line(table.caption))}.}}",
        rf"\label{{tab:{_label(table.name)}}}",
        rf"\begin{{tabular}}{{{''.join(columns)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in variants),
        *([r"\midrule"] if baselines else []),
        *(" & ".join(row) + r" \\" for row in baselines),
        r"\bottomrule",
        r"\end{tabular}",
        *([r"\par\medskip\footnotesize\raggedright", *map(_latex_text, _notes(table, ""))] if table.notes else []),
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _label(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _align_numbers(table: Table, columns: list[str], header: list[str], rows: list[list[str]]) -> None:
    """Turn each column with numbers into one of siunitx, which aligns them at their points; second best stay text."""
    shift = len(header) - table.cells.shape[1]
    ranks = rankings(table)
    for place in range(1, len(header)):
        texts = [clean_line(text) for text in table.cells.iloc[:, place - shift]]
        found = [_NUMBER.fullmatch(text) for text in texts]
        numbers = [match for match in found if match is not None]
        if not numbers:
            continue
        signed, whole, decimals, deviation = (
            any(match[1][0] in "+-" for match in numbers),
            max(len(re.sub(r"[+,-]", "", match[1].partition(".")[0])) for match in numbers),
            max(len(match[1].partition(".")[2]) for match in numbers),
            max(len((match[2] or "").replace(".", "")) for match in numbers),
        )
        tail = max((match[3] or "" for match in numbers), key=len)
        columns[place] = (
            rf"S[table-format={'+' if signed else ''}{whole}.{decimals}{f'({deviation})' if deviation else ''}"
            rf"{f',table-space-text-post={{{tail}}}' if tail else ''},separate-uncertainty,detect-weight]"
        )
        header[place] = f"{{{header[place]}}}"
        for row, match in enumerate(found):
            rank = ranks.get((row, place - shift), 0)
            if match is None or rank == 2:
                rows[row][place] = f"{{{rows[row][place]}}}"
            else:
                number = match[1].replace(",", "") + (rf" \pm {match[2]}" if match[2] else "")
                count = f" {{{match[3]}}}" if match[3] else ""
                bold = r"\bfseries " if rank == 1 else ""
                rows[row][place] = f"{bold}{number}{count}"


def _csv(table: Table, command: str) -> str:
    header, rows = _grid(table)
    lines = [[no_formula(cell) for cell in row] for row in [header, *rows]]
    notes = [clean_line(table.caption), *_notes(table, command), _records(table)]
    return _csv_lines(lines + [[f"# {note}"] for note in notes])


def _csv_lines(lines: list[list[str]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def _html(table: Table, command: str) -> str:
    header, rows = _marked(table, lambda t, rank: {1: f"<b>{t}</b>", 2: f"<u>{t}</u>"}.get(rank, t), html.escape)
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    bodies = "".join(f"<tbody>\n{_html_rows(part)}\n</tbody>" for part in _apart(table, rows) if part)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(table, command))
    notes += f"<li><details><summary>Runs</summary>{html.escape(_records(table))}</details></li>"
    caption = f"<caption>{html.escape(clean_line(table.caption))}</caption>"
    table_text = f"<table>{caption}\n<thead><tr>{head}</tr></thead>\n{bodies}</table>"
    return f'<div class="wide">{table_text}</div>\n<ul>{notes}</ul>\n'


def _html_rows(rows: list[list[str]]) -> str:
    return "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)


_ENDS: dict[str, Callable[[list[str]], str]] = {
    "text": lambda notes: "\n".join([*map(clean_line, notes), ""]),
    "markdown": _markdown_end,
    "csv": lambda notes: _csv_lines([[f"# {clean_line(note)}"] for note in notes]),
    "html": lambda notes: f"<ul>{''.join(f'<li>{html.escape(clean_line(note))}</li>' for note in notes)}</ul>\n",
}
"""What stands below several tables, by format."""
_RENDERERS: dict[str, Callable[[Table, str], str]] = {
    "text": _text,
    "markdown": _markdown,
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
