"""Every form of a table: what it holds, what it marks, and that names stay text in it."""

import csv
import html.parser
import io
import math
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from lra.terminal import clean_line
from reports.render import FORMATS, rankings, render, render_all
from reports.result_set import load_stores
from reports.tables import Table, accuracy
from reports.tables.captions import p_text
from reports.tables.table import Term
from tests.reports.synthetic import HOSTILE, add_run


def small():
    values = pd.DataFrame({"x": [40.0, 40.0, 39.0, np.nan], "y": [1.0, 1.0, 1.0, 1.0]}, index=list("abcd"))
    cells = values.map("{:.2f}".format)
    return Table(caption="A caption", cells=cells, values=values, notes=["A note."], records=["f" * 64])


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate(HOSTILE):
        add_run(folder, 400 + number, variant=name, title=name if number == 0 else "ListOps", baselines={name: 10.0})
    return accuracy(load_stores([folder]), "quick", "matched")


def test_best_and_second_are_those_of_the_printed_numbers():
    assert rankings(small()) == {(0, 0): 1, (1, 0): 1, (2, 0): 2}
    latex = render(small(), "latex")
    assert latex.count(r"\textbf{40.00}") == 2
    assert r"\underline{39.00}" in latex
    markdown = render(small(), "markdown")
    assert "**40.00**" in markdown
    assert "<u>39.00</u>" in markdown


@pytest.mark.parametrize("form", FORMATS)
def test_each_form_has_caption_cells_note_command_and_records(form):
    text = render(small(), form, command="lra-report table accuracy")
    for expected in ("A caption", "40.00", "A note.", "table accuracy", "f" * 12):
        assert expected in text.replace("{-}", "-")


@pytest.mark.parametrize(
    ("form", "before"),
    [("text", "1.00\n---------  -----  ----\nd "), ("markdown", "| *d* "), ("latex", "1.00 \\\\\n\\midrule\nd & "),
     ("html", "</tbody><tbody>\n<tr><td>d</td>")],
)  # fmt: skip
def test_baselines_are_set_apart(form, before):
    table = small()
    assert before not in render(table, form)
    table.baselines = 1
    assert before in render(table, form)


def test_csv_is_read_back_cell_by_cell():
    rows = list(csv.reader(io.StringIO(render(small(), "csv"))))
    numbers = zip("abcd", ("40.00", "40.00", "39.00", "nan"), strict=True)
    assert rows[:5] == [["variant", "x", "y"], *([n, x, "1.00"] for n, x in numbers)]


def test_no_cell_of_a_csv_is_a_formula(hostile):
    cells = [cell for row in csv.reader(io.StringIO(render(hostile, "csv"))) for cell in row]
    assert sum("cmd|" in cell for cell in cells) >= 4
    assert [cell for cell in cells if cell.startswith(("=", "@", "+", "\t")) or re.match(r"-[^$]", cell)] == []


@pytest.mark.parametrize("number", ["-1.50", "+2", "-1,000.25", "-"])
def test_signed_numbers_stay_numbers_in_a_csv(number):
    table = small()
    table.cells.iloc[0, 0] = number
    assert f"a,{number},1.00" in render(table, "csv").replace('"', "")


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("form", ["html", "markdown"])
def test_names_make_no_element(hostile, form):
    reader = Reader()
    reader.feed(render(hostile, form))
    assert reader.tags <= {"table", "caption", "thead", "tbody", "tr", "th", "td", "b", "u", "ul", "li", "details",
                           "div", "summary"}  # fmt: skip
    assert {name for name, _ in reader.attributes} <= {"scope", "class"}
    assert "alert(1)" in reader.text


def test_names_make_no_link_code_or_column_in_markdown(hostile):
    text = render(hostile, "markdown")
    assert not re.search(r"(?<!\\)[\[`]", re.sub(r"<!--.*-->", "", text))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 * len(HOSTILE)
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


@pytest.mark.parametrize("form", FORMATS)
def test_no_form_carries_what_a_terminal_obeys(hostile, form):
    text = render(hostile, form, command="lra-report \x1b]0;title\x07")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
    assert clean_line("a\x1b[31m\nb\u202e") == "a?[31m b?"


@pytest.mark.parametrize(
    ("form", "p_value", "difference"),
    [("text", "<0.001", "-1.50"), ("csv", "<0.001", "-1.50"), ("markdown", "&lt;0.001", "-1.50"),
     ("html", "&lt;0.001", "-1.50"), ("latex", "$<$0.001", "$-$1.50")],
)  # fmt: skip
def test_small_p_values_and_signs_are_written_for_each_form(form, p_value, difference):
    table = small()
    table.cells["p"] = [p_text(p) for p in (0.0004, 0.001, 1e-300, math.nan)]
    table.cells["d"] = ["-1.50", "+1.50", "[-1.50, +1.50]", "-"]
    table.values[["p", "d"]] = np.nan
    text = render(table, form)
    assert text.count(p_value) == 2
    assert text.count("0.001") == 3
    assert text.count(difference) == 2
    assert "0.000" not in text


def latex_document(table, *, siunitx=False):
    """A document with the packages that the table names, and a reference to its label."""
    text = render(table, "latex", command="lra-report --x", siunitx=siunitx)
    packages = re.findall(r"\\usepackage\{\w+\}", text.splitlines()[0])
    (label,) = re.findall(r"\\label\{(.*?)\}", text)
    head = [r"\documentclass{article}", r"\usepackage[T1]{fontenc}", r"\usepackage{textcomp}", *packages]
    return "\n".join([*head, r"\begin{document}", rf"See \ref{{{label}}}.", text, r"\end{document}"])


def test_names_make_no_command_in_latex(hostile):
    body = render(hostile, "latex")
    used = set(re.findall(r"\\([a-zA-Z]+)", body))
    assert used <= {
        "usepackage", "begin", "end", "centering", "caption", "toprule", "midrule", "bottomrule", "textbf", "underline",
        "par", "footnotesize", "label", "medskip",
        "raggedright", "pm", "textbackslash", "textasciitilde", "textasciicircum", "textquotedbl",
        "textasciigrave",
    }  # fmt: skip
    notes = re.sub(r"\$(\\pm|[<>|-])\$", "", body.partition(r"\bottomrule")[2])
    assert not re.search(r"(?<!\\)[&%$#_~^]", notes)
    rows = body.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().splitlines()
    assert rows.pop(len(HOSTILE)) == r"\midrule"  # between variants and baselines
    assert [len(re.findall(r"(?<!\\)&", row)) for row in rows] == [len(hostile.cells.columns)] * len(hostile.cells)
    assert not any(re.match(r"\s*[\[*]", row) for row in rows)  # after a line break these would be arguments
    assert re.sub(r"\\[{}]", "", body).count("{") == re.sub(r"\\[{}]", "", body).count("}")


def compile_latex(document, folder):
    (folder / "table.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "table.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(hostile, tmp_path):
    compile_latex(latex_document(hostile), tmp_path)


def mixed():
    """A table with all that a cell of a number may hold, and words."""
    table = small()
    table.cells["x"] = ["40.00 ± 1.20 (3)", "40.00 ± 0.95 (2/3)", "39.00", "OOM (2/2)"]
    table.cells["y"] = ["-1,234.50", "+2.00", "<0.001", "-"]
    table.cells["z"] = ["backend_a", "b", "c", "d"]
    table.values["y"] = table.values["z"] = np.nan
    table.unit, table.name = "%", "accuracy full [a=1] quick"
    return table


def test_numbers_are_aligned_by_siunitx_and_words_are_not():
    lines = render(mixed(), "latex", siunitx=True).splitlines()
    assert r"\label{tab:accuracy-full-a-1-quick}" in lines
    (columns,) = [line for line in lines if line.startswith(r"\begin{tabular}")]
    assert re.findall(r"S\[table-format=[^,]*|r(?=[S}])|l(?=S)", columns.partition("{tabular}")[2]) == [
        "l", "S[table-format=2.2(3)", "S[table-format=+4.2", "r",
    ]  # fmt: skip
    assert r"a & \bfseries 40.00 \pm 1.20 { (3)} & -1234.50 & backend\_a \\" in lines
    assert r"b & \bfseries 40.00 \pm 0.95 { (2/3)} & +2.00 & b \\" in lines
    assert r"c & {\underline{39.00}} & {$<$0.001} & c \\" in lines
    assert r"d & {OOM (2/2)} & {{-}} & d \\" in lines
    assert "siunitx" not in render(mixed(), "latex")


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_siunitx_compiles(tmp_path):
    if subprocess.run(["kpsewhich", "siunitx.sty"], check=False, capture_output=True).returncode:
        pytest.skip("siunitx is not installed")
    document = latex_document(mixed(), siunitx=True)
    compile_latex(document, tmp_path)
    with pytest.raises(AssertionError):
        compile_latex(document.replace("{OOM (2/2)}", r"\OOM"), tmp_path)


@pytest.mark.parametrize("form", FORMATS)
def test_notes_of_several_tables_stand_once(form):
    first, second = small(), small()
    first.notes = [Term("Word: meaning."), "Trained long.", "Of the first."]
    second.notes = [Term("Word: meaning."), "Trained long.", "Of the second.", "Of the second."]
    text = render_all([first, second], form, command="the command")
    own = 2 if form == "latex" else 1  # a float has all of its notes
    assert [text.count(words) for words in (": meaning.", "the command")] == [own, own]
    assert text.count("Trained long.") == 2  # true of each table, not a word of both
    assert [text.count(words) for words in ("Of the first.", "Of the second.")] == [1, 1]
    assert text.index("Of the first.") < text.index("Of the second.")
