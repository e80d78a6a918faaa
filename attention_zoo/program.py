# SPDX-License-Identifier: Apache-2.0
"""Which program a variant of a third party is: its files, found by loading it where nothing else is loaded.

Only Python knows which files an import takes, so the variant is imported, and tried once, in a clean process. That is
forked for each question from a process with torch and this package, which starts with the first question and ends with
this process.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attention_zoo.source_digest import Program, libraries, loaded_program, owners_of, user_modules

DIGITS = 16
"""Digits of a digest in a configuration."""
_START = """
import json, sys
sys.path[:] = json.loads(sys.stdin.buffer.readline())
from attention_zoo.program import serve
serve()
"""
_imported: dict[str, str] = {}
"""SHA-256 of the files of the user's modules when they were imported here, by path."""
_asked: dict[str, Program] = {}
"""Programs that were asked for, by their text."""


class ProgramError(TypeError):
    """The program of a variant cannot be found, or is not the one that this process has loaded."""


def remember_imports() -> None:
    """Note which files the user's modules are from. Call it after an import; a file may change afterwards."""
    for spec in user_modules().values():
        path = str(spec.origin)
        if path not in _imported:
            with contextlib.suppress(OSError):  # in a zip archive, or gone already
                _imported[path] = hashlib.sha256(Path(path).read_bytes()).hexdigest()


def check_programs(texts: str) -> None:
    """Check that programs are what this process runs; call it once all that they need is imported.

    Args:
        texts: What `program_text` gave for them, in one text.

    Raises:
        ProgramError: A file has changed since it was hashed, and this process may have imported either.
    """
    programs = [program for text, program in _asked.items() if text in texts]
    if programs:
        remember_imports()
    for program in programs:
        _compare(program)


def program_text(label: str, modules: Sequence[str], variant: str = "") -> str:
    """Return a short text for a program: a label and the beginning of its digest.

    Args:
        label: Whose program it is, such as a distribution with its version.
        modules: Modules or files to import, such as `package.module` or `folder/file.py`.
        variant: A variant that they define, which is tried, so that what it imports and reads then counts too.

    Raises:
        ProgramError: It cannot be imported alone, or has changed since this process imported it.
    """
    program = program_of(tuple(modules), variant, tuple(sys.path), str(Path.cwd()))
    _compare(program)
    text = f"{label} source {program.digest[:DIGITS]}"
    _asked[text] = program
    return text


@functools.cache  # the code that runs is the code that was imported, once per process
def program_of(modules: tuple[str, ...], variant: str, path: tuple[str, ...], folder: str) -> Program:
    """Return the program of modules, and of a variant in them, as a clean process finds it.

    Args:
        modules: Modules or files to import; `__main__` is taken from this process, since it cannot be imported.
        variant: Name of the variant, or empty.
        path: Where Python looks for modules.
        folder: The working folder.

    Raises:
        ProgramError: They cannot be imported there.
    """
    if "__main__" in modules:
        try:
            return loaded_program((), {})
        except (OSError, ImportError) as error:
            raise ProgramError(str(error)) from error
    answer = _ask({"modules": modules, "variant": variant, "path": path, "folder": folder})
    if "error" in answer:
        raise ProgramError(answer["error"])
    return Program(answer["digest"], answer["files"])


def _compare(program: Program) -> None:
    for path, digest in program.files.items():
        if _imported.get(path, digest) != digest:
            raise ProgramError(f"{path} has changed since it was imported; start again")


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
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps([entry for entry in sys.path if entry]).encode() + b"\n")
    process.stdin.flush()
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


def serve() -> None:
    """Answer the questions on standard input, each in a fork of this process, until it ends."""
    import attention_zoo.registry  # noqa: F401 - loaded once, for all forks

    libraries.update(sys.modules)
    owners_of("attention_zoo")  # reads the installed distributions, once for all forks
    answers = os.fdopen(os.dup(1), "wb")
    quiet = os.open(os.devnull, os.O_WRONLY)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # What ends the process may be the trial of the variant: then only what its import loads counts.
        content = _forked(request, quiet) or _forked(request | {"variant": ""}, quiet)
        answers.write((content or b'{"error": "importing it ended the process"}') + b"\n")
        answers.flush()


def _forked(request: dict[str, Any], quiet: int) -> bytes:
    """Answer a question in a fork of this process; empty if that ends without an answer."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(quiet, 1)  # what the user's code prints was printed by the process that asks
        os.dup2(quiet, 2)
        with os.fdopen(send, "wb") as reply:
            reply.write(json.dumps(_find(**request)).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as reply:
        content = reply.read()
    os.waitpid(child, 0)
    return content


def _find(modules: list[str], variant: str, path: list[str], folder: str) -> dict[str, Any]:
    from attention_zoo.faults import fault_line
    from attention_zoo.foreign import import_place

    read: list[str] = []
    names: dict[str, str] = {}

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str):
            mode, flags = arguments[1:]
            if mode.startswith("r") if mode else flags & os.O_ACCMODE == os.O_RDONLY:
                read.append(arguments[0])

    try:
        os.chdir(folder)
        sys.path[:] = path
        sys.addaudithook(note)
        for module in modules:
            imported = import_place(module)
            if module.endswith(".py"):
                names[imported.__name__] = Path(module).name
        if variant:
            _try(variant)
        distributions = {owner for module in modules if not module.endswith(".py") for owner in owners_of(module)}
        program = loaded_program(distributions, names, read)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever the user's code raises
        return {"error": fault_line(error)}
    return {"digest": program.digest, "files": program.files}


def _try(variant: str) -> None:
    """Build a variant and call it, so that it imports and reads what it needs; whether that works does not matter."""
    import torch

    from attention_zoo.base import LayerDims
    from attention_zoo.registry import get_variant

    torch.set_num_threads(1)
    with contextlib.suppress(Exception), torch.no_grad():
        spec = get_variant(variant)
        spec.build(spec.config(), LayerDims(dim=64, num_heads=4, max_length=16))(torch.randn(2, 16, 64))
