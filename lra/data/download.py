# SPDX-License-Identifier: Apache-2.0
"""Download of the files that tasks are read from: resumable, checked, and only from where they are known to be."""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from lra.atomic_io import file_digest, sync_folder
from lra.data.archives import check_archive
from lra.errors import DataError, UsageError
from lra.reading import reading, reason
from lra.terminal import print_above_bars, progress_bar

TRIES = 3
TIMEOUT_SECONDS = 60.0
CHUNK = 1 << 20
LOOPBACK = ("127.0.0.1", "localhost", "::1")

RATE_SECONDS, LEAST_RATE = 60.0, 1_000
"""A body that brings fewer bytes per second than this, over so long a time, is broken off."""
OPEN_SECONDS = 180.0
"""Time for an answer to begin, redirections included."""
SHOWN = 200
"""Characters of an address that are shown."""

_LENGTH = re.compile(r"[0-9]{1,15}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,15})-[0-9]{1,15}/([0-9]{1,15})")
_COMPLETE_LENGTH = re.compile(r"bytes \*/([0-9]{1,15})")
_GONE = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
"""Answers that another try does not change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A file on a server."""

    url: str
    size_limit: int
    """Bytes past which this is another file."""
    sha256: str | None
    """None where nobody has published a digest; the file is then read to its end as an archive."""
    archive_limit: int = 64 << 30
    """Bytes that the archive may have once it is decompressed."""

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return urlsplit(self.url).path.rpartition("/")[2]


REMOTES: dict[str, Remote] = {
    "text": Remote(
        url="https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
        size_limit=100_000_000,
        sha256="c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
    ),
    "image": Remote(
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        size_limit=200_000_000,
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "retrieval": Remote(
        url="https://storage.googleapis.com/long-range-arena/lra_release.gz",
        size_limit=10_000_000_000,
        sha256=None,
    ),
}
"""By the key of a task's source, see `Task.source_key`."""


class _RefusedError(Exception):
    """The server does not give the file, now or later."""


class _TryAgainError(Exception):
    """The transfer broke off, or the server asked for patience."""


def fetch(
    remote: Remote,
    folder: Path,
    *,
    mirror: str | None = None,
    progress: bool = True,
    otherwise: str = "",
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Download a file into a folder, going on from an earlier attempt's `.part` file.

    It gets its name once it is known to be the file: by its digest, or, where none is known, as a whole archive. What
    an earlier attempt left is gone on with if the server says that the file is still the same (`If-Range`), or if the
    digest will tell.

    Args:
        remote: What to fetch.
        folder: Where to.
        mirror: Address of a folder that holds a copy, in place of the official server.
        progress: Whether to show a bar, when there is a terminal.
        otherwise: What to do where nothing came at all, for the error message.
        pause: Waits some seconds between two tries.

    Returns:
        The file, whole, on the disk, and of the right digest where one is known, else an archive that can be read.

    Raises:
        UsageError: The address is not https. (Plain http is admitted on this machine.)
        DataError: The server does not have the file or has another one, or the file cannot be written.
    """
    url = remote.url if mirror is None else f"{mirror.rstrip('/')}/{remote.file_name}"
    target = folder / remote.file_name
    if target.is_file() and (remote.sha256 is None or file_digest(target) == remote.sha256):
        return target
    host = _https_host(url)
    if host is None:
        raise UsageError(f"{url[:SHOWN]}: only https addresses are fetched from")
    opener = urllib.request.build_opener(_Redirects(host))
    part = target.with_name(f"{target.name}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror or error}") from error
    with reading(url[:SHOWN]):
        for attempt in range(1, TRIES + 1):
            try:
                _transfer(opener, url, part, remote, progress=progress)
                break
            except _RefusedError as error:
                raise DataError(f"{url}: {error}" + (f"; {otherwise}" if otherwise else "")) from error
            except _TryAgainError as error:
                if attempt == TRIES:
                    advice = f"the same command goes on from {part}" if part.exists() else otherwise
                    raise DataError(f"{url}: {error}" + (f"; {advice}" if advice else "")) from error
                if progress:
                    print_above_bars(f"{error}; try {attempt + 1} of {TRIES} in {4**attempt} seconds")
                pause(4.0**attempt)
        _verify(part, url, remote)
        try:
            part.replace(target)
            sync_folder(folder)
        except OSError as error:
            raise DataError(f"cannot write {target}: {error.strerror or error}") from error
        _note_version(part, "")
    return target


def _verify(part: Path, url: str, remote: Remote) -> None:
    """Check that what came is the file; remove it if it is not.

    Raises:
        DataError: It has another digest, or none is known and it is not a whole archive, such as the page of a login.
    """
    digest = file_digest(part)
    if remote.sha256 is not None and digest != remote.sha256:
        problem = f"the SHA-256 is {digest}, expected {remote.sha256}"
    elif remote.sha256 is None:
        try:
            check_archive(part, total_limit=remote.archive_limit)
            return
        except DataError as error:
            problem = f"what came is no archive ({str(error).removeprefix(f'{part}: ')})"
    else:
        return
    part.unlink()
    _note_version(part, "")
    raise DataError(f"{url[:SHOWN]}: {problem}; the file was removed")


def _https_host(url: str) -> str | None:
    """Return the host of an address; None if it is not https, which only this machine may do without."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return None
    return host if host and (parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK)) else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to the host that was asked, and never out of https."""

    def __init__(self, host: str) -> None:
        self.host = host

    def http_error_302(self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any) -> Any:
        """Follow it, and close the connection where that fails, which urllib leaves to the garbage collector."""
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except BaseException:
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if _https_host(newurl) != self.host:
            raise DataError(
                f"{req.full_url[:SHOWN]}: redirected to {newurl[:SHOWN]}, which is not the server that was asked"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _transfer(opener: urllib.request.OpenerDirector, url: str, part: Path, remote: Remote, *, progress: bool) -> None:
    """Bring `part` to its full length, or raise `_TryAgainError` with what has come so far in it."""
    limit, version = remote.size_limit, _known_version(part)
    have = part.stat().st_size if part.exists() and (version or remote.sha256 is not None) else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers=headers | ({"If-Range": version} if have and version else {}))
    try:
        response = _open(opener, request)
    except urllib.error.HTTPError as error:
        with error:
            _check_version(error, part, version)
            _refused(error, part, have)
        return
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(f"no answer ({reason(error)})") from error
    with response:
        start, total = _extent(response, have)
        if start:
            _check_version(response, part, version)
        else:
            _note_version(part, _version(response))
        if total is not None and total > limit:
            raise DataError(f"{url}: {total:,} bytes, more than the {limit:,} that this file may have")
        with (
            part.open("r+b" if start else "wb") as handle,
            progress_bar(title=part.stem, total=total, start=start, unit="B", scaled=True, shown=progress) as bar,
        ):
            handle.truncate(start)
            handle.seek(start)
            since, came = time.monotonic(), 0
            while chunk := _read(response):
                came += len(chunk)
                if (seconds := time.monotonic() - since) > RATE_SECONDS:
                    if came < LEAST_RATE * seconds:
                        raise _TryAgainError(f"too slow: {came / seconds:.0f} bytes per second")
                    since, came = time.monotonic(), 0
                if handle.tell() + len(chunk) > limit:
                    raise DataError(f"{url}: more than the {limit:,} bytes that this file may have")
                handle.write(chunk)
                bar.update(len(chunk))
            handle.flush()
            os.fsync(handle.fileno())
            if total is not None and handle.tell() != total:
                raise _TryAgainError(f"broke off after {handle.tell():,} of {total:,} bytes")


def _open(opener: urllib.request.OpenerDirector, request: urllib.request.Request) -> Any:
    """Open an address within `OPEN_SECONDS`; the timeout of the socket begins anew with each byte of the answer."""
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(opener.open(request, timeout=TIMEOUT_SECONDS))
        except Exception as error:  # noqa: BLE001 - raised below
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(OPEN_SECONDS)
    if not answers:
        raise _TryAgainError(f"no answer within {OPEN_SECONDS:.0f} seconds")
    answer = answers.pop()
    try:
        if isinstance(answer, Exception):
            raise answer
        return answer
    finally:
        del answer  # its traceback refers to this frame, and a socket must not wait for the garbage collector


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.version")


def _note_version(part: Path, version: str) -> None:
    """Write down which version of the file is in `part`, or that this is not known."""
    if version:
        _version_file(part).write_text(version)
    else:
        _version_file(part).unlink(missing_ok=True)


def _known_version(part: Path) -> str:
    """Return what the server said of the version of the file that `part` holds the beginning of; empty if unknown."""
    file = _version_file(part)
    text = file.read_bytes()[:SHOWN].decode("latin-1") if file.is_file() else ""
    return text if text.isprintable() else ""


def _version(response: Any) -> str:
    """Return the strong entity tag of an answer, else its date; empty if it has neither."""
    tag = str(response.headers.get("ETag", ""))
    version = tag if tag.startswith('"') else str(response.headers.get("Last-Modified", ""))
    return version if len(version) <= SHOWN and version.isascii() and version.isprintable() else ""


def _check_version(response: Any, part: Path, known: str) -> None:
    """Start again where a server goes on with another version of the file."""
    now = _version(response)
    if known and now and now != known:
        part.unlink(missing_ok=True)
        raise _TryAgainError("the file on the server is another one than that of the earlier attempt")


def _read(response: Any) -> bytes:
    """Read a chunk; what comes before a break is kept by the caller, chunk by chunk."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _TryAgainError(f"broke off ({reason(error)})") from error


def _extent(response: Any, have: int) -> tuple[int, int | None]:
    """Return where the body starts in the file, and the length of the file if it is known.

    A server may ignore the range and send everything, or start earlier than asked.
    """
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) > have:
            raise _TryAgainError("the server's answer does not go on where the file ends")
        return int(match[1]), int(match[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if _LENGTH.fullmatch(length) else None


def _refused(error: urllib.error.HTTPError, part: Path, have: int) -> None:
    """Return if the refusal means that the file is complete.

    Raises:
        _RefusedError: Another try would not help.
        _TryAgainError: It may.
    """
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        match = _COMPLETE_LENGTH.fullmatch(error.headers.get("Content-Range", ""))
        if match is not None and int(match[1]) == have:
            return
        part.unlink(missing_ok=True)
        raise _TryAgainError("the earlier attempt does not fit the server's file") from error
    if error.code in _GONE:
        raise _RefusedError(f"the server answers {error.code} {reason(error.reason)}") from error
    raise _TryAgainError(f"the server answers {error.code} {reason(error.reason)}") from error
