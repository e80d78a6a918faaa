"""Downloads from a server on this machine that breaks off, lies and forgets."""

import hashlib
import re
import time

import pytest

from lra.data import download
from lra.data.download import REMOTES, Remote, fetch
from lra.errors import DataError, UsageError
from tests.lra.data.archive_cases import tar_bytes
from tests.lra.data.loopback import Server

CONTENT = bytes(range(256)) * 2000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    running = Server(CONTENT)
    yield running
    running.close()


def remote(**changes):
    return Remote(**{"url": "https://example.org/f.tar.gz", "size_limit": 1 << 20, "sha256": DIGEST} | changes)


def get(server, tmp_path, waits=None, **changes):
    waits = [] if waits is None else waits
    return fetch(remote(**changes), tmp_path, mirror=server.url, progress=False, pause=waits.append)


def test_a_file_comes_whole_and_is_not_fetched_again(server, tmp_path):
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert get(server, tmp_path).name == "f.tar.gz"
    assert server.ranges == [None]
    assert [file.name for file in tmp_path.iterdir()] == ["f.tar.gz"]


def test_a_damaged_file_is_fetched_again(server, tmp_path):
    (tmp_path / "f.tar.gz").write_bytes(b"damaged")
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_transfer_that_breaks_off_goes_on_where_it_ended(server, tmp_path):
    server.behaviours, waits = ["break", "break", "good"], []
    assert get(server, tmp_path, waits).read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert server.ranges == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]
    assert waits == [4.0, 16.0]


def test_three_tries_then_the_part_stays_for_the_next_command(server, tmp_path):
    server.behaviours = ["break"]
    with pytest.raises(DataError, match="broke off after") as caught:
        get(server, tmp_path)
    assert "\n" not in str(caught.value)
    part = tmp_path / "f.tar.gz.part"
    assert str(caught.value).endswith(f"; the same command goes on from {part}")
    assert part.read_bytes() == CONTENT[: len(CONTENT) * 7 // 8]
    server.behaviours = ["good"]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert not part.exists()


@pytest.mark.parametrize("behaviour", ["no range", "earlier", "good"])
def test_servers_may_send_more_than_was_asked(server, tmp_path, behaviour):
    (tmp_path / "f.tar.gz.part").write_bytes(CONTENT[:5000])
    server.behaviours = [behaviour]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=5000-"]


def test_an_answer_that_leaves_a_gap_is_refused(server, tmp_path):
    (tmp_path / "f.tar.gz.part").write_bytes(CONTENT[:5000])
    server.behaviours = ["later"]
    with pytest.raises(DataError, match="does not go on where the file ends"):
        get(server, tmp_path)


def test_a_part_that_is_complete_needs_nothing_more(server, tmp_path):
    (tmp_path / "f.tar.gz.part").write_bytes(CONTENT)
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_started_again(server, tmp_path):
    (tmp_path / "f.tar.gz.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_wrong_digest_names_both_and_leaves_nothing(server, tmp_path):
    server.behaviours = ["wrong"]
    with pytest.raises(DataError, match=f"expected {DIGEST}") as caught:
        get(server, tmp_path)
    assert hashlib.sha256(bytes(len(CONTENT))).hexdigest() in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("behaviour", ["good", "no length"])
def test_too_large_a_file_is_refused(server, tmp_path, behaviour):
    server.behaviours = [behaviour]
    with pytest.raises(DataError, match="more than the 1,000"):
        get(server, tmp_path, size_limit=1000)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 1000


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (403, 1), (500, 3), (503, 3)])
def test_refusals_are_final_or_tried_again(server, tmp_path, code, requests):
    server.behaviours = [code]
    with pytest.raises(DataError, match=f"{code}.*; do it by hand$"):
        fetch(remote(), tmp_path, mirror=server.url, progress=False, otherwise="do it by hand", pause=[].append)
    assert len(server.ranges) == requests


def test_redirections_stay_on_the_server(server, tmp_path):
    server.behaviours = [f"redirect {server.url}/other", "good"]
    assert get(server, tmp_path).read_bytes() == CONTENT
    server.behaviours = ["redirect https://example.org/f.tar.gz"]
    with pytest.raises(DataError, match=re.escape("redirected to https://example.org")):
        get(server, tmp_path / "other")


PAGE = b"<html>Please log in</html>" * 40
ARCHIVE = tar_bytes([("a", bytes(range(256)) * 400)], "w")


def test_where_no_digest_is_known_a_page_never_becomes_the_archive(server, tmp_path):
    server.content = PAGE
    with pytest.raises(DataError, match=r"what came is no archive .*; the file was removed"):
        get(server, tmp_path, sha256=None)
    assert list(tmp_path.iterdir()) == []
    server.content = ARCHIVE[:-1200]
    with pytest.raises(DataError, match="what came is no archive"):
        get(server, tmp_path, sha256=None)
    server.content = ARCHIVE
    assert get(server, tmp_path, sha256=None).read_bytes() == ARCHIVE
    assert [file.name for file in tmp_path.iterdir()] == ["f.tar.gz"]


VERSIONS = [({"ETag": '"one"'}, {"ETag": '"two"'}), ({"Last-Modified": "Mon"}, {"Last-Modified": "Tue"})]


@pytest.mark.parametrize(("before", "after"), VERSIONS)
@pytest.mark.parametrize("behaviour", ["good", "ignores If-Range"])
@pytest.mark.parametrize("changed", [False, True])
def test_a_file_that_changed_on_the_server_is_fetched_anew(server, tmp_path, before, after, behaviour, changed):
    server.content, server.behaviours, server.versions = ARCHIVE, ["break", "break", "break", behaviour], before
    with pytest.raises(DataError, match="broke off"):
        get(server, tmp_path, sha256=None)
    if changed:
        server.content, server.versions = tar_bytes([("b", bytes(range(255, -1, -1)) * 400)], "w"), after
    assert get(server, tmp_path, sha256=None).read_bytes() == server.content
    assert server.conditions[3] == next(iter(before.values()))
    assert server.ranges[3] is not None
    assert [file.name for file in tmp_path.iterdir()] == ["f.tar.gz"]


def test_without_a_version_or_a_digest_nothing_is_gone_on_with(server, tmp_path):
    (tmp_path / "f.tar.gz.part").write_bytes(ARCHIVE[:5000])
    server.content = ARCHIVE
    assert get(server, tmp_path, sha256=None).read_bytes() == ARCHIVE
    assert server.ranges == [None]
    server.versions = {"ETag": 'W/"weak"'}
    server.behaviours = ["break", "good"]
    assert get(server, tmp_path / "weak", sha256=None).read_bytes() == ARCHIVE
    assert server.ranges[1:] == [None, None]


@pytest.mark.parametrize(("behaviour", "message"), [("drip", "too slow"), ("drip headers", "no answer within")])
def test_an_answer_that_never_ends_is_broken_off(server, tmp_path, monkeypatch, behaviour, message):
    monkeypatch.setattr(download, "RATE_SECONDS", 0.2)
    monkeypatch.setattr(download, "OPEN_SECONDS", 0.2)
    server.behaviours = [behaviour]
    started = time.monotonic()
    with pytest.raises(DataError, match=message):
        get(server, tmp_path)
    assert time.monotonic() - started < 3


def test_a_slow_answer_of_the_least_rate_is_waited_for(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RATE_SECONDS", 0.0)
    assert get(server, tmp_path).read_bytes() == CONTENT


HEAD = b"HTTP/1.0 200 OK\r\n"
PLACES = [
    b"", b"http://[", b"https://[::1", b"http://\xff\xfe/", b"https://" + b"a" * 300 + b"/", b"//",
    b"http://example.org/x", b"ftp://127.0.0.1/x", b"https://example.org/\x1b[2J", b"http://127.0.0.1:99999999/",
    b"http://127.0.0.1:x/", b"/loop",
]  # fmt: skip
MALFORMED = [
    b"", b"\r\n\r\n", b"nonsense\r\n\r\n", b"HTTP/1.0 abc OK\r\n\r\n", b"HTTP/1.0 99999 \x1b[2J\r\n\r\n",
    HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", HEAD + b"Content-Length: -5\r\n\r\nabc",
    HEAD + b"Content-Length: x\r\n\r\nabc", HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc",
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 5000 + b"\r\n", HEAD + b"x: y\r\n" * 500 + b"\r\n",
    HEAD + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
    b"HTTP/1.0 206 OK\r\nContent-Range: bytes 0-1/" + b"9" * 5000 + b"\r\n\r\n",
    *(b"HTTP/1.0 302 Found\r\nLocation: " + place + b"\r\n\r\n" for place in PLACES),
]  # fmt: skip


@pytest.mark.parametrize("answer", MALFORMED)
def test_any_malformed_answer_is_one_line(server, tmp_path, answer):
    server.behaviours = [answer]
    with pytest.raises(DataError) as caught:
        get(server, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).startswith(server.url)


@pytest.mark.parametrize("mirror", ["http://example.org/a", "ftp://example.org", "file:///etc", "folder"])
def test_only_https_leaves_this_machine(tmp_path, mirror):
    with pytest.raises(UsageError, match="only https"):
        fetch(remote(), tmp_path, mirror=mirror, progress=False)


def test_a_server_that_is_not_there_is_one_line(server, tmp_path):
    server.close()
    for otherwise in ("", "do it by hand"):
        with pytest.raises(DataError, match="no answer") as caught:
            fetch(remote(), tmp_path, mirror=server.url, progress=False, otherwise=otherwise, pause=[].append)
        assert re.search(r"no answer \(.*\)" + (f"; {otherwise}" if otherwise else "") + "$", str(caught.value))
    assert "\n" not in str(caught.value)
    server.__init__(CONTENT)


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot write"):
        fetch(remote(), tmp_path / "file" / "below", mirror=server.url, progress=False)


def test_the_official_addresses_are_https_with_digests_where_they_are_known():
    assert set(REMOTES) == {"text", "image", "retrieval"}
    for key, entry in REMOTES.items():
        assert entry.url.startswith("https://")
        assert (entry.sha256 is None) == (key == "retrieval")
