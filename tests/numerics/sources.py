"""Which code computes the numbers of runs, and the table that ties it to `NUMERICS_VERSION`.

The table `sources.txt` begins with the numerics version. Then it has one line for each file: the digest of its code
without comments and docstrings, its path, and, if it was changed under this version, after `=` why its numbers are
equal. For a file of which only a part computes, the path is followed by `::` and the name of the function.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from attention_zoo.source_digest import code_digest

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("sources.txt")
COMPUTES = (
    "attention_zoo/base.py",
    "attention_zoo/foreign.py",
    "attention_zoo/functional.py",
    "attention_zoo/huggingface.py",
    "attention_zoo/masking.py",
    "attention_zoo/position_bias.py",
    "attention_zoo/projections.py",
    "attention_zoo/selective_decay.py",
    "attention_zoo/kernels/**/*.py",
    "attention_zoo/variants/**/*.py",
    "contextpool/**/*.py",
    "lra/data/ahead.py",
    "lra/data/augment.py",
    "lra/data/batching.py",
    "lra/data/split.py",
    "lra/metrics.py",
    "lra/models/**/*.py",
    "lra/schedules.py",
    "lra/seeding.py",
    "lra/tasks/**/*.py",
    "lra/trained.py::start_from",
    "runners/arithmetic.py",
    "runners/train/compiled.py",
    "runners/train/distributed.py",
    "runners/train/evaluate.py",
    "runners/train/loop.py",
    "runners/train/optimizer.py",
    "runners/train/run.py::run",
)
"""Files, as patterns, and functions. A new one here needs no more than the command that updates the table."""
COMPUTE_NOTHING = (
    "attention_zoo/__init__.py",
    "attention_zoo/checks/*.py",
    "attention_zoo/faults.py",
    "attention_zoo/program.py",
    "attention_zoo/registry.py",
    "attention_zoo/source_digest.py",
    "attention_zoo/trial.py",
    # What these read and write is part of the digest of the data, which is part of the id.
    "lra/data/__init__.py",
    "lra/data/archives.py",
    "lra/data/dataset.py",
    "lra/data/download.py",
    "lra/data/manifest.py",
    "lra/data/overlap.py",
    "lra/data/parquet.py",
    "lra/data/pickled_rows.py",
    "lra/data/places.py",
    "lra/data/process_pool.py",
    "lra/data/raw_files.py",
    "lra/data/work_folder.py",
    "runners/train/__init__.py",
    "runners/train/cost.py",
    "runners/train/evaluate_again.py",
    "runners/train/repetitions.py",
    "runners/train/peak_memory.py",
    "runners/train/plan.py",
    "runners/train/prepare_data.py",
    "runners/train/run.py",
    "runners/train/summary.py",
    "runners/train/trackers.py",
)
"""All other files of the folders that compute, so that a new one is not forgotten above."""
FOLDERS = ("attention_zoo", "contextpool", "lra/data", "lra/models", "lra/tasks", "runners/train")
COMMAND = "python -m tests.numerics"
DIGITS = 16
FEWEST_WORDS = 3
"""Words of a reason."""


@dataclass(frozen=True)
class Line:
    """What the table says of one file."""

    digest: str
    reason: str = ""


class UpdateError(ValueError):
    """The table cannot be updated without a reason."""


def digests(root: Path = ROOT) -> dict[str, str]:
    """Return the digest of the code of everything that computes, by path."""
    found = {}
    for pattern in COMPUTES:
        file, _, function = pattern.partition("::")
        for path in sorted(root.glob(file)):
            name = path.relative_to(root).as_posix()
            content = path.read_bytes()
            if function:
                content = _part(content, function)
                name = f"{name}::{function}"
            found[name] = code_digest(content)[:DIGITS]
    return found


def _part(content: bytes, function: str) -> bytes:
    """Return the code of one function of a module."""
    text = content.decode()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return (ast.get_source_segment(text, node) or "").encode()
    return b""


def read_table(text: str) -> tuple[int, dict[str, Line]]:
    """Return the version and the lines of a table."""
    first, *rest = text.splitlines()
    lines = {}
    for line in rest:
        what, _, reason = line.partition(" = ")
        digest, name = what.split()
        lines[name] = Line(digest, reason)
    return int(first.removeprefix("numerics version ")), lines


def write_table(version: int, lines: dict[str, Line]) -> str:
    """Return the text of a table."""
    rows = [
        f"{each.digest} {name}" + (f" = {each.reason}" if each.reason else "") for name, each in sorted(lines.items())
    ]
    return "\n".join([f"numerics version {version}", *rows]) + "\n"


def changes(now: dict[str, str], lines: dict[str, Line]) -> list[str]:
    """List what computes something else than the table says, new and removed files included."""
    return sorted(
        name for name in {*now, *lines} if name not in now or name not in lines or now[name] != lines[name].digest
    )


def problem(now: dict[str, str], version: int, text: str) -> str:
    """Return one line that says what to do, empty if the code is that of the table."""
    recorded, lines = read_table(text)
    changed = changes(now, lines)
    if not changed and recorded == version:
        return ""
    if recorded != version:
        return f"NUMERICS_VERSION is {version}, the table has {recorded}; run: {COMMAND}"
    return (
        f"{', '.join(changed)}: changed. If numbers of runs change, raise NUMERICS_VERSION in lra/config/schema.py and "
        f"run: {COMMAND}. If not, run: {COMMAND} 'why the numbers are equal'"
    )


def updated(now: dict[str, str], version: int, text: str, reason: str) -> str:
    """Return the table of the code as it is.

    Raises:
        UpdateError: A file that was there has other code under the same version, and no reason is given.
    """
    recorded, lines = read_table(text)
    if recorded != version:
        return write_table(version, {name: Line(digest) for name, digest in now.items()})
    edited = [name for name in changes(now, lines) if name in now and name in lines]
    if edited and len(reason.split()) < FEWEST_WORDS:
        raise UpdateError(problem(now, version, text))
    kept = {name: lines[name] for name in now if name in lines}
    new = {name: Line(now[name]) for name in now if name not in lines}
    return write_table(version, kept | new | {name: Line(now[name], " ".join(reason.split())) for name in edited})
