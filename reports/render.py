"""A table as Markdown, LaTeX, CSV, HTML or plain text. Names from records stay text in every one of them."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from collections.abc import Callable

from tabulate import tabulate

from .tables import Table

FORMATS = ("text", "markdown", "latex", "csv", "html")

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "<": r"$<$", ">": r"$>$",
}  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def render(table: Table, form: str, *, command: str = "") -> str:
    """Render a table.

    Args:
        table: What to render.
        form: One of `FORMATS`.
        command: The command that made it, noted under the table.
    """
    return _RENDERERS[form](table, command)


def rankings(table: Table) -> dict[tuple[int, int], int]:
    """Return (row, column) -> 1 for the best and 2 for the second of each column that is compared."""
    found = {}
    for column in range(table.values.shape[1]):
        scores = sorted({v for v in table.values.iloc[:, column] if not math.isnan(v)}, reverse=True)
        if len(scores) > 1:
            for row, value in enumerate(table.values.iloc[:, column]):
                if value in scores[:2]:
                    found[row, column] = scores.index(value) + 1
    return found


def _grid(table: Table) -> tuple[list[str], list[list[str]]]:
    named = table.cells.index.dtype.kind == "O" or table.cells.index.dtype.name.startswith("str")
    header = [*([""] if named else []), *map(_clean, table.cells.columns)]
    rows = [
        [*([_clean(name)] if named else []), *map(_clean, row)]
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


def _notes(table: Table, command: str) -> list[str]:
    return [_clean(note) for note in table.notes] + ([f"Made by: {_clean(command)}"] if command else [])


def _text(table: Table, command: str) -> str:
    header, rows = _grid(table)
    body = tabulate(rows, headers=header, tablefmt="simple", disable_numparse=True)
    return "\n".join([_clean(table.caption), "", body, "", *_notes(table, command), ""])


def _markdown(table: Table, command: str) -> str:
    def escape(text: str) -> str:
        return html.escape(text, quote=False).replace("|", r"\|").replace("*", r"\*").replace("_", r"\_")

    header, rows = _marked(table, lambda t, rank: {1: f"**{t}**", 2: f"<u>{t}</u>"}.get(rank, t), escape)
    body = tabulate(rows, headers=header, tablefmt="github", disable_numparse=True)
    notes = [f"- {escape(note)}" for note in _notes(table, command)]
    return "\n".join([f"**{escape(table.caption)}**", "", body, "", *notes, ""])


def _latex(table: Table, command: str) -> str:
    header, rows = _marked(
        table, lambda t, rank: {1: rf"\textbf{{{t}}}", 2: rf"\underline{{{t}}}"}.get(rank, t), _latex_text
    )
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex_text(table.caption)}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        " & ".join(header) + r" \\",
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in rows),
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
    writer.writerows([[_no_formula(cell) for cell in row] for row in [header, *rows]])
    writer.writerows([[_no_formula(f"# {note}")] for note in [_clean(table.caption), *_notes(table, command)]])
    return buffer.getvalue()


def _html(table: Table, command: str) -> str:
    header, rows = _marked(table, lambda t, rank: {1: f"<b>{t}</b>", 2: f"<u>{t}</u>"}.get(rank, t), html.escape)
    head = "".join(f"<th>{name}</th>" for name in header)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in _notes(table, command))
    caption = f"<caption>{html.escape(_clean(table.caption))}</caption>"
    return f"<table>{caption}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>\n<ul>{notes}</ul>\n"


_RENDERERS: dict[str, Callable[[Table, str], str]] = {
    "text": _text,
    "markdown": _markdown,
    "latex": _latex,
    "csv": _csv,
    "html": _html,
}


def _clean(text: object) -> str:
    """Take out control characters, which a terminal would obey."""
    return _CONTROL.sub("?", str(text)).replace("\n", " ")


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def _no_formula(cell: str) -> str:
    """Keep a spreadsheet from taking a text for a formula; signed numbers stay as they are."""
    return f"'{cell}" if re.match(r"^(=|@|\t|[+-](?![\d.]|$))", cell) else cell
