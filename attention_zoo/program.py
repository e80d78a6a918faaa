# SPDX-License-Identifier: Apache-2.0
"""Which program a variant of a third party is: its files, found by loading it where nothing else is loaded.

Only Python knows which files an import takes, so the variant is imported, and trained for a moment with its options, in
a clean process; a layer or a task of a third party is tried there, too. That process is forked for each question from
one with torch and this package, which starts with the first question and ends with this process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from urllib.parse import unquote, urlsplit

from attention_zoo.foreign import ForeignError, check_helpers, search_path
from attention_zoo.source_digest import (
    Program,
    file_digest,
    files_that_count,
    loaded_files,
    loaded_program,
    user_modules,
)

DIGITS = 16
"""Digits of a digest in a configuration."""
_START = """
import json, sys
sys.path[:] = json.loads(sys.stdin.buffer.readline())
from attention_zoo.trial import serve
serve()
"""
_imported: dict[str, str] = {}
"""SHA-256 of the files of the user's modules when they were imported here, and of what these read then, by path."""
_hashed: dict[str, str] = {}
"""SHA-256 of each file that is no module, as it was when a program with it was first asked for, by path."""
_read_at_import: dict[str, set[str]] = {}
"""What was read here when a file was imported, by its path."""
_asked: dict[str, Program] = {}
"""Programs that were asked for, by their text."""
_refused: dict[str, str] = {}
"""Why programs were refused since they read something late; this process may have kept what it read. By their text."""


class ProgramError(TypeError):
    """The program of a variant cannot be found, or is not the one that this process has loaded."""


def remember_imports() -> None:
    """Note which files the user's modules are from. Call it after an import; a file may change afterwards."""
    for spec in user_modules().values():
        path = str(spec.origin)
        if path not in _imported:
            with contextlib.suppress(OSError):  # in a zip archive, or gone already
                _imported[path] = file_digest(path)


@contextlib.contextmanager
def remembering_reads(module: str) -> Iterator[None]:
    """Note what is read during an import, by whatever code, and what these files are like; they may change afterwards.

    Args:
        module: Name of what is imported.
    """
    read: set[str] = set()
    _watch_reads()
    _importing.append(read)
    try:
        yield
    finally:
        _importing.remove(read)
        for path in {path for path in read if not path.endswith(".pyc")} - _imported.keys():
            with contextlib.suppress(OSError):  # gone already, or no file
                _imported[path] = file_digest(path)
        file = getattr(sys.modules.get(module), "__file__", None)
        _read_at_import.setdefault(str(file), set()).update(read)


def check_programs(texts: str, read: Iterable[str] = ()) -> None:
    """Check that programs are what this process runs; call it once all that they need is imported and read.

    Args:
        texts: What `program_text` gave for them, in one text.
        read: What their code has read since, see `reads_below`.

    Raises:
        ProgramError: A file has changed since it was hashed, and this process may have taken either; a file was read
            that was not hashed; or a helper of another plug-in stands in for one of the same name.
    """
    asked = {text: program for text, program in _asked.items() if text in texts}
    programs = list(asked.values())
    if programs:
        if before := [reason for text, reason in _refused.items() if text in asked]:
            raise ProgramError(before[0])
        try:
            check_helpers()
        except ForeignError as error:
            raise ProgramError(str(error)) from error
        remember_imports()
    for program in programs:
        _compare(program, _imported)
    known = {path for program in programs for path in program.files}
    here = [*read, *(path for file in known for path in _read_at_import.get(file, ()))]
    installed = loaded_files() - {str(spec.origin) for spec in user_modules().values()}
    for path in sorted(files_that_count(here, known).keys() - known - installed):
        reason = (
            f"{path} was read now, but not in the trial from which the run id comes, so a change of it could not be "
            "told; read it where the module is imported (a script is none)"
        )
        _refused.update(dict.fromkeys(asked, reason))
        raise ProgramError(reason)


_OPENING = frozenset({"open", "sqlite3.connect", "ctypes.dlopen", "import"})
"""Audit events of Python by which a file is opened."""
_watched: list[tuple[CodeType, set[str]]] = []
"""Functions below which reads are noted, and what was read."""
_importing: list[set[str]] = []
"""What was read during imports that are going on."""


@contextlib.contextmanager
def reads_below(function: Callable[..., Any]) -> Iterator[set[str]]:
    """Note the paths that code of third parties reads in calls below a function, for `check_programs`.

    Args:
        function: One that is running, so that what calls it is not taken for a plug-in.
    """
    _watch_reads()
    entry = (function.__code__, set[str]())
    _watched.append(entry)
    try:
        yield entry[1]
    finally:
        _watched.remove(entry)


@functools.cache
def _watch_reads() -> None:
    sys.addaudithook(_note_reads)  # for good: there is no way to remove one


def _note_reads(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _OPENING or not (_watched or _importing):  # first what is so mostly
        return
    paths = opened(event, arguments)
    for read in _importing:
        read.update(paths)
    if not paths or not _watched:
        return
    programs = {path for program in _asked.values() for path in program.files}
    packages = {top for program in _asked.values() for top in program.packages}
    frame: FrameType | None = sys._getframe(1)
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    alone = threading.current_thread() is not threading.main_thread()  # such as one that loads batches
    theirs = (place for place, each in enumerate(frames) if _files_of(each) & programs or _top(each) in packages)
    own = next(theirs, None)
    if own is None and not (alone and all(map(_is_of_a_library, frames))):
        return  # a thread with no code of anybody runs what a plug-in gave to a pool
    callers = {each.f_code for each in frames[own:]}
    for code, read in _watched:
        if alone or code in callers:
            read.update(paths)


def _files_of(frame: FrameType) -> set[str]:
    """Return the file of the code of a frame, and of its module: code may be made of a text, or compiled elsewhere."""
    named = (frame.f_code.co_filename, frame.f_globals.get("__file__"))
    return {os.path.abspath(name) for name in named if isinstance(name, str)}  # noqa: PTH100 - links keep their names


def _is_of_a_library(frame: FrameType) -> bool:
    """Say whether the code of a frame is Python's, numpy's or torch's."""
    return _top(frame) in sys.stdlib_module_names or _top(frame) in ("numpy", "torch")


def _top(frame: FrameType) -> str:
    """Return the top-level name of the module whose code runs in a frame."""
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def opened(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """Return the paths that an audit event of Python opens for reading, as data or as a library.

    They are absolute, since the working folder may be another one later.
    """
    if event in _OPENING and (event != "open" or _reads(*arguments[1:])):
        with contextlib.suppress(TypeError, ValueError, OSError):  # a descriptor; no address; no working folder
            place = os.fsdecode(arguments[1 if event == "import" else 0])  # a compiled module, or None
            address = unquote(urlsplit(place).path) if place.startswith("file:") else place  # of a database
            return [os.path.abspath(path) for path in (place, address)]  # noqa: PTH100 - links keep their names
    return []


def _reads(mode: str | None, flags: int) -> bool:
    """Say whether a file is opened to be read, by Python's text for that or by the flags of the system."""
    if mode:
        return "r" in mode or {"a", "+"} <= set(mode)  # "w+" and "x+" read only what they have written
    return flags & os.O_ACCMODE != os.O_WRONLY and not flags & (os.O_TRUNC | os.O_EXCL)


def program_text(
    label: str,
    modules: Sequence[str],
    variant: str = "",
    options: Mapping[str, Any] | None = None,
    *,
    trial: str = "",
    sizes: Mapping[str, Any] | None = None,
) -> str:
    """Return a short text for a program: a label and the beginning of its digest.

    Args:
        label: Whose program it is, such as a distribution with its version.
        modules: Modules or files to import, such as `package.module` or `folder/file.py`.
        variant: A variant that they define, which is tried, so that what it imports and reads then counts too.
        options: Its options, which may name files.
        trial: A function of this project, as `module:name`, that tries in its place what else they define: it is
            called with the options.
        sizes: Those of a run, with which the variant is tried too: the fields of `LayerDims` of its last layer, for all
            layers up to it; or of a whole model what `TRIAL_SIZES` has.

    Raises:
        ProgramError: It cannot be imported alone, or has changed since this process imported it.
    """
    written = [json.dumps(dict(values or {}), sort_keys=True) for values in (options, sizes)]
    program = program_of(tuple(modules), variant, *written, trial, search_path(), str(Path.cwd()))
    for module in modules:
        if module.endswith(".py") and str(Path(module).resolve()) not in program.files:
            raise ProgramError(
                f"{module} is in a folder of this project or of Python, whose files are no part of a run id; "
                "move it elsewhere"
            )
    _compare(program, _imported)
    _compare(program, {})  # a notebook has kept the code of a file that was edited since
    for path, digest in program.files.items():
        # Of a file that is no module, nobody knows whether this process still holds what it read before.
        if not path.endswith(".py") and _hashed.setdefault(path, digest) != digest:
            raise ProgramError(f"{path} has changed since it was imported or read; start again")
    text = f"{label} source {program.digest[:DIGITS]}"
    _asked[text] = program
    return text


@functools.cache  # the code that runs is the code that was imported, once per process
def program_of(
    modules: tuple[str, ...], variant: str, options: str, sizes: str, trial: str, path: tuple[str, ...], folder: str
) -> Program:
    """Return the program of modules, and of a variant in them, as a clean process finds it.

    Args:
        modules: Modules or files to import; `__main__` is taken from this process, since it cannot be imported.
        variant: Name of the variant, or empty.
        options: Its options, as JSON.
        sizes: Those of a run, as JSON; see `program_text`.
        trial: What tries something else, or empty; see `program_text`.
        path: Where Python looks for modules.
        folder: The working folder.

    Raises:
        ProgramError: They cannot be imported there.
    """
    if "__main__" in modules:
        file = getattr(sys.modules["__main__"], "__file__", None)
        if not file:
            raise ProgramError("it is in a notebook or was typed in")
        try:
            program = loaded_program((), {})
        except (OSError, ImportError) as error:
            raise ProgramError(str(error)) from error
        if os.path.abspath(file) not in program.files:  # noqa: PTH100 - links keep their names
            raise ProgramError(f"it is in a script that {file} runs, which hides its file; put it into a module")
        return program
    request = {"modules": modules, "variant": variant, "options": json.loads(options), "trial": trial}
    request |= {"sizes": json.loads(sizes), "path": path, "folder": folder}
    answer = _ask(request)
    if "error" in answer:
        raise ProgramError(answer["error"])
    return Program(answer["digest"], answer["files"], frozenset(answer["packages"]))


def check_files(texts: str) -> None:
    """Check that the files of programs still are what they were, for processes that were started meanwhile.

    Args:
        texts: What `program_text` gave for them, in one text.

    Raises:
        ProgramError: One has changed.
    """
    for text, program in _asked.items():
        if text in texts:
            _compare(program, {})


def _compare(program: Program, imported: Mapping[str, str]) -> None:
    for path, digest in program.files.items():
        inside = any(parent.is_file() for parent in Path(path).parents)  # of an archive, which is a file of its own
        here = imported.get(path) or (file_digest(path) if Path(path).is_file() else digest if inside else "")
        if here != digest:
            raise ProgramError(f"{path} has changed since it was imported or read; start again")


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    process = _clean_process()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        _clean_process.cache_clear()
        raise ProgramError("the process that looks for its source ended; out of memory?")
    answer: dict[str, Any] = json.loads(line)
    return answer


@functools.cache
def _clean_process() -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C is for this process to handle. It ends with its standard input.
    process = subprocess.Popen(
        [sys.executable, "-B", "-c", _START],  # -B: it leaves no compiled code behind
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps([entry for entry in sys.path if entry]).encode() + b"\n")
    process.stdin.flush()
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()
