# SPDX-License-Identifier: Apache-2.0
"""A hook of MkDocs that adds the notebook to the site as a page: its cells, and the text that they printed."""

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

NOTEBOOK, PAGE = "notebook.ipynb", "notebook.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page; the notebook itself stays, for download."""
    notebook = json.loads((Path(config.docs_dir) / NOTEBOOK).read_text(encoding="utf-8"))
    parts = [_markdown(cell) for cell in notebook["cells"]]
    files.append(File.generated(config, PAGE, content="\n\n".join([*parts, f"[Download the notebook]({NOTEBOOK})\n"])))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let the links of other pages lead to the page."""
    return markdown if page.file.src_uri == PAGE else markdown.replace(f"({NOTEBOOK})", f"({PAGE})")


def _markdown(cell: dict[str, Any]) -> str:
    """Return a cell of a notebook as Markdown."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    printed = ["".join(part.get("text") or part["data"]["text/plain"]).rstrip() for part in cell["outputs"]]
    return "\n\n".join([f"```python\n{source}\n```", *(f"```\n{text}\n```" for text in printed)])
