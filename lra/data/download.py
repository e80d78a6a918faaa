# SPDX-License-Identifier: Apache-2.0
"""Download of the files that tasks are read from: resumable, checked, and only from where they are known to be."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from lra.atomic_io import file_digest, sync_folder
from lra.errors import DataError, UsageError, refusals_as
from lra.reading import reading, reason
from lra.terminal import print_above_bars, progress_bar

TRIES = 3
"""In a row that brought less than `PROGRESS` bytes each."""
PROGRESS = 64 << 20
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
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
_GONE = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND, HTTPStatus.GONE)
"""Answers that another try does not change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """A file on a server."""

    url: str
    size_limit: int
    """Bytes past which this is another file."""
    sha256: str | None
    """None where nobody has published a digest. The size must then be as it should be, and what comes is checked row
    by row."""
    least_size: int = 0
    """Bytes below which this is another file, such as the page of a login."""
    hosts: tuple[str, ...] = ()
    """Hosts that the server may redirect to, besides itself; `.example.org` stands for all below `example.org`."""

    @property
    def file_name(self) -> str:
        """The last part of the address."""
        return urlsplit(self.url).path.rpartition("/")[2]


class _RefusedError(Exception):
    """The server does not give the file, now or later."""


class _TryAgainError(Exception):
    """The transfer broke off, or the server asked for patience."""


class _TooLongError(DataError):
    """What an earlier attempt left is longer than the file."""


class Transfer:
    """A file on its way from a server, which is asked again where an answer broke off.

    Args:
        remote: What to fetch.
        mirror: Address of a folder that holds a copy, in place of the known server.
        size: Bytes that the file has, as an earlier attempt was told; None if there was none.
        progress: Whether to show a bar, when there is a terminal.
        otherwise: What to do where nothing came at all, for the error message.
        pause: Waits some seconds between two tries.

    Raises:
        UsageError: The address is not https. (Plain http is admitted on this machine.)
    """

    def __init__(
        self,
        remote: Remote,
        *,
        mirror: str | None = None,
        size: int | None = None,
        progress: bool = True,
        otherwise: str = "",
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.remote, self.size, self.progress, self.otherwise, self.pause = remote, size, progress, otherwise, pause
        self.url = remote.url if mirror is None else f"{mirror.rstrip('/')}/{remote.file_name}"
        host = _https_host(self.url)
        if host is None:
            raise UsageError(f"{self.url[:SHOWN]}: only https addresses are fetched from")
        self._redirects = _Redirects((host, *remote.hosts))
        self._opener = urllib.request.build_opener(self._redirects)

    @property
    def stated_sha256(self) -> str | None:
        """The digest of the file as the server that was asked stated it on the way; None if it did not."""
        match = _SHA256.fullmatch(self._redirects.stated_digest)
        return match[1] if match is not None else None

    def chunks(self, start: int) -> Generator[bytes]:
        """Yield the bytes of the file from `start` on.

        A server that does not know ranges sends everything, and what comes before `start` is passed over.

        Raises:
            DataError: The server does not have the file or has another one, or three tries in a row brought little.
        """
        position, failures = start, 0
        while True:
            began = position
            try:
                for chunk in self._answer(position):
                    position += len(chunk)
                    yield chunk
                return
            except _RefusedError as error:
                raise DataError(self._line(error, self.otherwise)) from error
            except _TryAgainError as error:
                failures = 1 if position - began >= PROGRESS else failures + 1
                if failures >= TRIES:
                    advice = "the same command goes on where this one ended" if position else self.otherwise
                    raise DataError(self._line(error, advice)) from error
                if self.progress:
                    print_above_bars(f"{error}; try {failures + 1} of {TRIES} in {4**failures} seconds")
                self.pause(4.0**failures)

    def _line(self, problem: object, advice: str) -> str:
        return f"{self.url[:SHOWN]}: {problem}" + (f"; {advice}" if advice else "")

    def _answer(self, start: int) -> Generator[bytes]:
        """Yield what one answer brings of the file from `start` on, or raise `_TryAgainError` where it breaks off."""
        request = urllib.request.Request(self.url, headers={"Range": f"bytes={start}-"} if start else {})
        try:
            response = _open(self._opener, request)
        except urllib.error.HTTPError as error:
            with error:
                _refused(error, start)
            return
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgainError(f"no answer ({reason(error)})") from error
        with response:
            position, total = _extent(response, start)
            self._check_size(total, response)
            title, shown = self.remote.file_name, self.progress
            with progress_bar(title=title, total=total, start=position, unit="B", scaled=True, shown=shown) as bar:
                since, came = time.monotonic(), 0
                while chunk := _read(response):
                    came += len(chunk)
                    if (seconds := time.monotonic() - since) > RATE_SECONDS:
                        if came < LEAST_RATE * seconds:
                            raise _TryAgainError(f"too slow: {came / seconds:.0f} bytes per second")
                        since, came = time.monotonic(), 0
                    position += len(chunk)
                    if position > self.remote.size_limit:
                        limit = self.remote.size_limit
                        raise DataError(self._line(f"more than the {limit:,} bytes that this file may have", ""))
                    bar.update(len(chunk))
                    if position > start:
                        yield chunk[-(position - start) :]
            if total is not None and position != total:
                raise _TryAgainError(f"broke off after {position:,} of {total:,} bytes")

    def _check_size(self, total: int | None, response: Any) -> None:
        """Compare the length of the file that a server gives with all that is known of it, before anything is read.

        Raises:
            DataError: This is another file.
        """
        remote, stated = self.remote, self._redirects.stated_size
        if total is None:
            if remote.sha256 is None:
                raise DataError(self._line("the server does not say how long the file is, and no digest is known", ""))
            return
        problem = ""
        if total > remote.size_limit:
            problem = f"more than the {remote.size_limit:,} that this file may have"
        elif total < remote.least_size:
            kind = str(response.headers.get("Content-Type", "unknown kind"))[:40]
            problem = f"of {kind}, less than the {remote.least_size:,} of this file; is it the page of a login?"
        elif _LENGTH.fullmatch(stated) and int(stated) != total:
            problem = f"but the server that was asked stated {int(stated):,}"
        elif self.size not in (None, total):
            problem = f"but an earlier answer had {self.size:,}"
        if problem:
            raise DataError(self._line(f"{total:,} bytes{' ' if problem.startswith('of') else ', '}{problem}", ""))
        self.size = total


def fetch(
    remote: Remote,
    folder: Path,
    *,
    mirror: str | None = None,
    progress: bool = True,
    otherwise: str = "",
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Download a file of known digest into a folder, going on from an earlier attempt's `.part` file.

    Args:
        remote: What to fetch.
        folder: Where to.
        mirror: See `Transfer`, as for the other arguments.
        progress: Whether to show a bar.
        otherwise: What to do where nothing came at all.
        pause: Waits some seconds between two tries.

    Returns:
        The file, whole, on the disk, and of the right digest.

    Raises:
        UsageError: The address is not https.
        DataError: The server does not have the file or has another one, or the file cannot be written.
    """
    target = folder / remote.file_name
    if target.is_file() and file_digest(target) == remote.sha256:
        return target
    transfer = Transfer(remote, mirror=mirror, progress=progress, otherwise=otherwise, pause=pause)
    part = target.with_name(f"{target.name}.part")
    with refusals_as(DataError, f"cannot write {target}"):
        folder.mkdir(parents=True, exist_ok=True)
    with reading(transfer.url[:SHOWN]):
        try:
            _append(transfer, part)
        except _TooLongError:
            part.unlink()
            _append(transfer, part)
        digest = file_digest(part)
        if digest != remote.sha256:
            part.unlink()
            problem = f"the SHA-256 is {digest}, expected {remote.sha256}; the file was removed"
            raise DataError(f"{transfer.url[:SHOWN]}: {problem}")
        with refusals_as(DataError, f"cannot write {target}"):
            part.replace(target)
            sync_folder(folder)
    return target


def _append(transfer: Transfer, part: Path) -> None:
    """Write what is missing of a file behind what there is of it."""
    with part.open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{part}: another process is fetching it") from error
        if not (part.exists() and os.path.samestat(os.fstat(handle.fileno()), part.stat())):
            raise DataError(f"{part}: another process has just fetched it")
        with contextlib.closing(transfer.chunks(handle.seek(0, os.SEEK_END))) as chunks:
            for chunk in chunks:
                handle.write(chunk)
        handle.flush()
        os.fsync(handle.fileno())


def _https_host(url: str) -> str | None:
    """Return the host of an address; None if it is not https, which only this machine may do without."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return None
    return host if host and (parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK)) else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to hosts that are named, and never out of https."""

    def __init__(self, hosts: tuple[str, ...]) -> None:
        self.hosts = hosts
        self.stated_size = self.stated_digest = ""
        """What the server that was asked says of the file whose place it names (headers of Hugging Face)."""

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
        host = _https_host(newurl)
        if host is None or not any(host == name or (name[0] == "." and host.endswith(name)) for name in self.hosts):
            raise DataError(
                f"{req.full_url[:SHOWN]}: redirected to {newurl[:SHOWN]}, which is no server of this file "
                f"({', '.join(self.hosts)})"
            )
        if urlsplit(req.full_url).hostname == self.hosts[0] and "X-Linked-Size" in headers:
            self.stated_size = str(headers.get("X-Linked-Size", ""))
            self.stated_digest = str(headers.get("X-Linked-ETag", ""))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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


def _refused(error: urllib.error.HTTPError, have: int) -> None:
    """Return if the refusal means that the file is complete.

    Raises:
        _TooLongError: There is more already than the server has.
        _RefusedError: Another try would not help.
        _TryAgainError: It may.
    """
    if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        match = _COMPLETE_LENGTH.fullmatch(error.headers.get("Content-Range", ""))
        if match is not None and int(match[1]) == have:
            return
        raise _TooLongError(f"{error.url[:SHOWN]}: an earlier attempt read {have:,} bytes, and the file has fewer")
    if error.code in _GONE:
        raise _RefusedError(f"the server answers {error.code} {reason(error.reason)}") from error
    raise _TryAgainError(f"the server answers {error.code} {reason(error.reason)}") from error
