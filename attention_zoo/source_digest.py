# SPDX-License-Identifier: Apache-2.0
"""The digest of the program that this process has loaded: of all code that is neither a library's nor ours.

Two programs with one digest compute the same, as far as their files decide it. Comments, docstrings, blank lines and
line breaks of Python code do not count, nor do the folder and the version of Python. `attention_zoo.program` loads the
program of a variant in a process of its own, where nothing else is loaded.

What counts:

- modules that were imported, however that was done, with what Python took for them: source, compiled code, a file in a
  zip archive; and modules that a function would import later;
- of distributions in an installation folder, the code of those that the program is from, and name and version of those
  that it imports from, and of those that come with these, unless this project or torch needs them too;
- files that were read, by Python, when the code was imported and tried: below the folders of the code with their paths
  there, and from elsewhere with their names. What is in hidden or temporary folders or in caches of compilers, and
  what is of Python, of installed distributions or of the system, does not count.

The standard library, this project, torch and numpy do not count: the numerics version and the environment in each
record cover them.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from pathlib import Path
from typing import Any

RECORDED_ELSEWHERE = frozenset({"attention_zoo", "contextpool", "lra", "torch", "numpy"})
"""Packages that the numerics version or the environment of a record covers."""
_APPLICATIONS = ("runners", "reports")
"""Folders of this project that are packages of `lra` where it is installed; elsewhere they lie beside this package."""
libraries: set[str] = set()
"""Modules that are known to be none of the user's, so that their place is not looked up again."""
_SILENT_FIELDS = ("ctx", "kind", "type_comment")
_SYSTEM = tuple(map(Path, ("/proc", "/sys", "/dev", "/etc", "/usr", "/lib", "/lib64", "/run", "/var")))

_AT_START = ("__editable__", "_virtualenv")
"""How modules are called that installers put where Python starts, and that are listed under no package."""
_CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Variables that name where compilers keep what they made; else that is a temporary or hidden folder."""


class StaleCodeError(ImportError):
    """Python would run compiled code that is not that of the source beside it."""


@dataclass(frozen=True, slots=True)
class Program:
    """What a program consists of."""

    digest: str
    """SHA-256, as 64 hexadecimal digits."""
    files: Mapping[str, str]
    """SHA-256 of each file, by path."""
    packages: frozenset[str] = frozenset()
    """Top-level names of what was loaded with it from installed distributions."""


def loaded_program(distribution: Iterable[str], names: Mapping[str, str], read: Collection[str] = ()) -> Program:
    """Return the program that is loaded in this process, after loading what its functions would import later.

    Args:
        distribution: Distributions that the program is from: their code counts wherever it is installed.
        names: What a module is called in the digest, by its name here, where these differ.
        read: Paths of files that were opened for reading.

    Raises:
        StaleCodeError: A module has compiled code that is not that of its source.
        OSError: A file cannot be read.
    """
    own = set(distribution)
    parts: set[tuple[str, str]] = set()
    files: dict[str, str] = {}
    seen: set[str] = set()
    while waiting := [item for item in user_modules(own).items() if item[0] not in seen]:
        for name, spec in waiting:
            seen.add(name)
            content = _content(spec)
            files[str(spec.origin)] = hashlib.sha256(content).hexdigest()
            digest = code_digest(content) if str(spec.origin).endswith(".py") else ""
            parts.add((f"module {names.get(name, name)}", digest or files[str(spec.origin)]))
            _check_compiled(name, spec, content)
            parts |= {(text, "") for text in _follow(content, spec, own)}
    loaded = _loaded_packages(own)
    parts |= {(f"package {owner} {version(owner)}", "") for owners in loaded.values() for owner in owners}
    modules = loaded_files()
    named = {path: shown for path, shown in files_that_count(read, files).items() if path not in modules}
    holders = Counter(named.values())
    folders = [Path(path).parent for path in files if Path(path).is_absolute()]
    code = os.path.commonpath(folders) if folders else ""
    compiled = {os.path.abspath(path) for path in read if path.endswith(".pyc")}  # noqa: PTH100 - as in `files_that_count`
    for path, shown in named.items():
        files[path] = file_digest(path)
        if path.endswith(".py") and importlib.util.cache_from_source(path) in compiled:
            helper = importlib.util.spec_from_file_location("helper", path)  # such as one that is in no list of modules
            assert helper is not None
            _check_compiled(helper.name, helper, Path(path).read_bytes())
        # Two files of one name may change places, so these have their paths below the code, or whole ones elsewhere.
        apart = Path(path).relative_to(code) if code and Path(path).is_relative_to(code) else path
        parts.add((f"file {shown if holders[shown] == 1 else apart}", files[path]))
    return Program(hashlib.sha256(repr(sorted(parts)).encode()).hexdigest(), files, frozenset(loaded))


def files_that_count(read: Iterable[str], program: Iterable[str]) -> dict[str, str]:
    """Return which of the paths that were read count for a program, and what each is called in its digest.

    Args:
        read: Paths, some of which may be no files.
        program: The files of the program.
    """
    folders = {Path(path).parent for path in program}
    paths = {os.path.abspath(_source_of(path)) for path in read}  # noqa: PTH100 - links keep their names
    return {path: shown for path in paths if (shown := _shown(Path(path), folders)) and Path(path).is_file()}


def _source_of(path: str) -> str:
    """Return the source that compiled code in `__pycache__` is of, and any other path as it is."""
    try:
        return importlib.util.source_from_cache(path)
    except (ValueError, NotImplementedError):
        return path


def file_digest(path: str) -> str:
    """Return the SHA-256 of a file, in hex.

    Raises:
        OSError: It cannot be read.
    """
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _shown(path: Path, folders: Iterable[Path]) -> str:
    """Return what a file that was read is called in the digest; empty if it does not count."""
    near = max((folder for folder in folders if folder in path.parents), key=_depth, default=Path("/"))
    others = {Path(sys.prefix), Path(sys.base_prefix), Path(tempfile.gettempdir()), *_our_folders(), *_SYSTEM}
    others |= {folder for folder in map(Path, sys.path) if folder in path.parents and _is_installed(path, folder)}
    others |= {Path(os.environ[name]).absolute() for name in _CACHES if os.environ.get(name)}
    inside = path.relative_to(near)
    between = [folder for folder in path.parents if near in folder.parents]
    if others.intersection(between) or any(map(_is_bookkeeping, inside.parts[:-1])):
        return ""
    return path.name if near == Path("/") else str(inside)


def _is_installed(path: Path, folder: Path) -> bool:
    """Say whether a file is of a distribution in a folder, which may hold the user's own files too."""
    return _is_installation(folder) and bool(_owners(_top(path, folder)))


def _top(path: Path, folder: Path) -> str:
    """Return the top-level name that a path has as a module in a folder of the import path."""
    return path.relative_to(folder).parts[0].partition(".")[0]


def _depth(folder: Path) -> int:
    return len(folder.parts)


def _is_bookkeeping(part: str) -> bool:
    """Say whether a part of a path is of Python's or hidden: compiled code, or what pip notes on a distribution."""
    return part.startswith(".") or part == "__pycache__" or part.endswith((".dist-info", ".egg-info"))


def loaded_files() -> set[str]:
    """Return the files of all loaded modules."""
    specs = [getattr(module, "__spec__", None) for module in list(sys.modules.values())]
    return {str(spec.origin) for spec in specs if isinstance(spec, ModuleSpec)}


def user_modules(own: Iterable[str] = ()) -> dict[str, ModuleSpec]:
    """Return the loaded modules that are neither ours nor a library's, by name.

    Args:
        own: Distributions whose modules count although they are installed.
    """
    found: dict[str, ModuleSpec] = {}
    distribution = frozenset(own)
    for name, module in list(sys.modules.items()):
        if name in libraries or name.startswith(_AT_START):
            continue
        spec = getattr(module, "__spec__", None)
        if name == "__main__" and spec is None and getattr(module, "__file__", None):
            spec = ModuleSpec(name, None, origin=os.path.abspath(str(module.__file__)))  # noqa: PTH100
        if not isinstance(spec, ModuleSpec) or not os.path.dirname(str(spec.origin)):  # noqa: PTH120
            continue  # built in, or made of a text by a library
        if _is_users(str(spec.origin), distribution):
            found[name] = spec
    return found


@functools.cache
def _is_users(path: str, own: frozenset[str]) -> bool:
    """Say whether a file counts with its content."""
    return _counts(Path(path), own) and _counts(Path(os.path.realpath(path)), own)


def _counts(path: Path, own: frozenset[str]) -> bool:
    parents = set(path.parents)
    if parents & _our_folders():
        return False
    for folder in map(Path, sys.path):
        if folder in parents and _is_installation(folder):
            owners = _owners(_top(path, folder))
            return not owners or bool(owners & own)
    return not parents & {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}


@functools.cache
def _is_installation(folder: Path) -> bool:
    return any(folder.glob("*.dist-info"))


@functools.cache
def _our_folders() -> frozenset[Path]:
    specs = [importlib.util.find_spec(name) for name in RECORDED_ELSEWHERE]
    folders = [folder for spec in specs if spec is not None for folder in spec.submodule_search_locations or []]
    for name in _APPLICATIONS:  # never by this name alone, which a folder beside a plug-in may have
        spec = importlib.util.find_spec(f"lra.{name}")
        beside = str(Path(__file__).parents[1] / name)
        folders += [beside] if spec is None else spec.submodule_search_locations or []
    return frozenset(Path(path) for folder in folders for path in (folder, os.path.realpath(folder)))


def _content(spec: ModuleSpec) -> bytes:
    path = Path(str(spec.origin))
    if path.is_file():
        return path.read_bytes()
    data: bytes = spec.loader.get_data(str(spec.origin))  # type: ignore[union-attr]  # such as a zip archive
    return data


def _check_compiled(name: str, spec: ModuleSpec, content: bytes) -> None:
    """Check that Python runs the source of a module, and not code that was compiled from another one."""
    loader = spec.loader
    if not isinstance(loader, SourceFileLoader) or name == "__main__":
        return
    if loader.get_code(name) != loader.source_to_code(content, str(spec.origin)):
        raise StaleCodeError(
            f"Python runs compiled code that is not that of {spec.origin}, which has the size and time of another "
            "version; remove its folder __pycache__"
        )


def _follow(content: bytes, spec: ModuleSpec, own: set[str]) -> Iterator[str]:
    """Import the user's modules that a module names anywhere; yield a text for each distribution that it names."""
    tree = _parse(content)
    package = spec.name if spec.submodule_search_locations else spec.name.rpartition(".")[0]
    for name, members in _imported_names(tree) if tree is not None else ():
        try:
            absolute = importlib.util.resolve_name(name, package)
        except ImportError:  # beyond the top of the package
            continue
        top = absolute.partition(".")[0]
        owners = _owners(top)
        if top in RECORDED_ELSEWHERE or top in sys.stdlib_module_names or top == "__main__":
            continue
        if owners and not owners & own:
            yield from (f"package {owner} {version(owner)}" for owner in sorted(owners))
            continue
        if not any(_load(each) for each in (absolute, *(f"{absolute}.{member}" for member in members))):
            yield f"missing {absolute}"


def _loaded_packages(own: set[str]) -> dict[str, set[str]]:
    """Return the distributions that were loaded since `libraries` was filled, by whatever code, by top-level name."""
    tops = {name.partition(".")[0] for name in sys.modules if name not in libraries} if libraries else set[str]()
    owners = {top: {each for each in _owners(top) - own if _normal(each) not in _needed_anyway()} for top in tops}
    return {top: found for top, found in owners.items() if found}


@functools.cache
def _needed_anyway() -> frozenset[str]:
    """Return the distributions that this project and torch need, themselves among them: normal names."""
    found, waiting = set[str](), ["lra-harness", *RECORDED_ELSEWHERE]
    while waiting:
        name = _normal(waiting.pop())
        if name not in found:
            found.add(name)
            with contextlib.suppress(PackageNotFoundError):
                lines = [line for line in requires(name) or () if "extra ==" not in line]
                waiting += [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]
    return frozenset(found)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _load(name: str) -> bool:
    """Import a module if it is the user's; say whether there is one of this name."""
    if name in sys.modules:
        return True
    with contextlib.suppress(Exception, SystemExit):  # whatever its code raises, which then runs nowhere else either
        spec = importlib.util.find_spec(name)
        if spec is not None:
            importlib.import_module(name)
        return spec is not None
    return False


def code_digest(content: bytes) -> str:
    """Return the SHA-256 of Python code without comments and docstrings; empty if it is no code, or too deep."""
    tree = _parse(content)
    with contextlib.suppress(RecursionError):  # such as a sum of a thousand terms
        return "" if tree is None else hashlib.sha256(_written(tree).encode()).hexdigest()
    return ""


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
        written = ("absent" if item is None else _written(item) for item in node if not _is_docstring(item))
        return f"[{','.join(written)}]"
    return repr(node)


def _is_docstring(node: Any) -> bool:
    """Return whether a statement is nothing but a text."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imported_names(tree: ast.Module) -> Iterator[tuple[str, list[str]]]:
    """Yield the names that code imports anywhere, each with the names taken from it; a relative one has dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), [alias.name for alias in node.names if alias.name != "*"]
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "name")]
            if called in ("import_module", "__import__") and given and isinstance(given[0], ast.Constant):
                yield str(given[0].value), []


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


def owners_of(module: str) -> set[str]:
    """Return the names of the distributions that a module is from; empty for the user's own files."""
    return _owners(module.partition(".")[0])
