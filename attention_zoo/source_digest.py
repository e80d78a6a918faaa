# SPDX-License-Identifier: Apache-2.0
"""The digest of a program: of a file and of all that it imports from its own folder or distribution.

Two programs with one digest compute the same, as far as their source decides it. Comments, docstrings, blank lines and
line breaks do not count. The digest depends neither on the folder nor on the version of Python.

What is followed, from file to file:

- imports from the same distribution, the same folder, or a folder that belongs to no distribution, also those inside
  functions, and `importlib.import_module` with a literal name. Compiled modules count with their bytes.
- Packages of other distributions count with name and version. The standard library, this project, torch and numpy do
  not count: the numerics version and the environment in each record cover them.

What is not seen: modules whose name is computed, files that the code reads, and edits of another distribution that is
installed from a folder and keeps its version.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

RECORDED_ELSEWHERE = frozenset({"attention_zoo", "contextpool", "lra", "torch", "numpy"})
"""Packages that the numerics version or the environment of a record covers."""

DIGITS = 16
"""Digits of a digest in a configuration."""
_SILENT_FIELDS = ("ctx", "kind", "type_comment")


def source_digest(files: Iterable[Path]) -> str:
    """Return the SHA-256, as 64 hexadecimal digits, of Python files and of what they import; see the module.

    Args:
        files: Where to begin, such as the file of a class.

    Raises:
        OSError: A file cannot be read.
    """
    parts: set[tuple[str, str]] = set()
    waiting = [file.resolve() for file in files]
    seen = set(waiting)
    while waiting:
        file = waiting.pop()
        content = file.read_bytes()
        # Pairs, since two files outside of packages can have one name.
        parts.add((f"file {_module_name(file)}", code_digest(content) or hashlib.sha256(content).hexdigest()))
        for found in _imports(file, content):
            if isinstance(found, str):
                parts.add((found, ""))
            elif found not in seen:
                seen.add(found)
                waiting.append(found)
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()


def program_text(label: str, thing: Any, *files: str) -> str:
    """Return a short text for the program of a class or function: a label and the beginning of its digest.

    Args:
        label: Whose program it is, such as a distribution with its version.
        thing: The class or function.
        files: Other files in which the program begins.

    Raises:
        TypeError: The source of the thing cannot be found: it was typed into an interpreter, or is compiled.
    """
    found = inspect.getsourcefile(thing)
    if found is None or not Path(found).is_file():
        raise TypeError(f"the source of {label} cannot be found")
    return f"{label} source {source_digest(map(Path, {found, *files}))[:DIGITS]}"


def code_digest(content: bytes) -> str:
    """Return the SHA-256 of Python code without comments and docstrings; empty if it cannot be parsed."""
    tree = _parse(content)
    return "" if tree is None else hashlib.sha256(_written(tree).encode()).hexdigest()


def _parse(content: bytes) -> ast.Module | None:
    try:
        return ast.parse(content)
    except (SyntaxError, ValueError):  # a compiled module, or code that is never imported
        return None


def _written(node: Any) -> str:
    """Write a syntax tree as text; what is empty is left out, so that a new version of Python changes nothing."""
    if isinstance(node, ast.Constant):
        return repr(node.value)
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields if name not in _SILENT_FIELDS)
        inner = [f"{name}={_written(value)}" for name, value in fields if value is not None and value != []]
        return f"{type(node).__name__}({','.join(inner)})"
    if isinstance(node, list):
        return f"[{','.join(_written(item) for item in node if not _is_docstring(item))}]"
    return repr(node)


def _is_docstring(node: Any) -> bool:
    """Return whether a statement is nothing but a text."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(file: Path, content: bytes) -> Iterator[Path | str]:
    """Yield what a file imports: a file to follow, or a text that stands for a package of another distribution."""
    tree = _parse(content)
    own = _owners(_module_name(file).partition(".")[0])
    nodes = list(ast.walk(tree)) if tree is not None else []
    importers = {"import_module", "__import__"}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "importlib":
            importers |= {alias.asname or alias.name for alias in node.names if alias.name == "import_module"}
    for node in nodes:
        for name, members in _imported_names(node, importers):
            level = len(name) - len(name.lstrip("."))
            names = name[level:].split(".") if name[level:] else []
            if level:
                parents = list(file.parents)
                yield from _files(parents[min(level, len(parents)) - 1], names, members)
            else:
                yield from _absolute(file, names, members, own)
    yield from _packages_of(file)


def _imported_names(node: ast.AST, importers: set[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield the names that a statement or call imports, each with the names taken from it; a relative one has dots."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, []) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield "." * node.level + (node.module or ""), [alias.name for alias in node.names]
    elif isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "name")]
        if called in importers and given and isinstance(given[0], ast.Constant) and isinstance(given[0].value, str):
            yield given[0].value, []


def _absolute(file: Path, names: list[str], members: list[str], own: set[str]) -> Iterator[Path | str]:
    top = names[0]
    owners = _owners(top)
    if top in RECORDED_ELSEWHERE:
        return
    beside = _root(file)
    if (not owners or owners & own) and _exists(beside, top):
        yield from _files(beside, names, members)
    elif owners and not owners & own:
        yield from (f"package {owner} {version(owner)}" for owner in sorted(owners))
    elif top not in sys.stdlib_module_names:
        try:
            spec = None if top == "__main__" else importlib.util.find_spec(top)  # it differs with how a run is started
        except ValueError:  # a module that was made without a file
            spec = None
        origin = None if spec is None else spec.origin
        if origin is None:
            yield f"missing {top}"
        else:
            home = Path(origin).resolve()
            yield from _files(home.parents[1] if home.name == "__init__.py" else home.parent, names, members)


def _owners(top: str) -> set[str]:
    """Return the names of the distributions that have a top-level module or package of this name."""
    owners: set[str] = set()
    for entry in sys.path:
        try:
            changed = Path(entry).stat().st_mtime_ns
        except OSError:
            continue
        owners |= _owners_in(entry, changed).get(top, set())
    return owners


@functools.cache
def _owners_in(entry: str, changed: int) -> Mapping[str, set[str]]:  # noqa: ARG001 - an installation changes the time
    """Return the distributions in one entry of the path by top-level name.

    `importlib.metadata.packages_distributions` reads those of the whole path, each time, which takes half a second.
    """
    owners = defaultdict(set)
    for found in distributions(path=[entry]):
        declared = (found.read_text("top_level.txt") or "").split()
        for top in declared or {file.parts[0].partition(".")[0] for file in found.files or ()}:
            owners[top].add(found.name)
    return owners


def _files(folder: Path, names: list[str], members: Iterable[str]) -> Iterator[Path]:
    """Yield the files that `from names import members` runs, with `names` beginning in a folder."""
    for name in names:
        yield from _module_files(folder, name)
        folder = folder / name
    yield from _module_files(folder.parent, folder.name)
    for member in members:
        if member == "*":  # which of its modules `__all__` names is not looked up
            yield from (path.resolve() for path in sorted(folder.glob("*.py")))
        yield from _module_files(folder, member)


def _module_files(folder: Path, name: str) -> Iterator[Path]:
    """Yield the file of a module or package in a folder, if it is there."""
    for path in (folder / name / "__init__.py", *(folder / f"{name}{end}" for end in (".py", *EXTENSION_SUFFIXES))):
        if path.is_file():
            yield path.resolve()
            return


def _exists(folder: Path, name: str) -> bool:
    return (folder / name).is_dir() or any(_module_files(folder, name))


def _packages_of(file: Path) -> Iterator[Path]:
    """Yield the `__init__.py` of each package around a file, which run when it is imported."""
    for folder in file.parents:
        init = folder / "__init__.py"
        if not init.is_file():
            return
        yield init


def _root(file: Path) -> Path:
    """Return the folder in which the outermost package of a file lies, or the file itself if it is in none."""
    folder = file.parent
    while (folder / "__init__.py").is_file():
        folder = folder.parent
    return folder


def _module_name(file: Path) -> str:
    """Return the dotted name of the module in a file, as seen from the folder of its outermost package."""
    parts = list(file.relative_to(_root(file)).parts)
    parts[-1] = parts[-1].partition(".")[0]
    return ".".join(parts)
