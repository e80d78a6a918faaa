"""Downloads from a server on this machine that breaks off, lies and forgets."""

import fcntl
import hashlib
import re
import time

import pytest

from lra.data import download
from lra.data.download import Remote, Transfer, fetch
from lra.data.places import REMOTES
from lra.errors import DataError, UsageError
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
    assert str(caught.value).endswith("; the same command goes on where this one ended")
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


def test_two_commands_do_not_write_into_one_part(server, tmp_path):
    with (tmp_path / "f.tar.gz.part").open("ab") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"f\.tar\.gz\.part: another process is fetching it"):
            get(server, tmp_path)
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_part_that_another_command_finishes_before_it_is_locked_is_left_alone(server, tmp_path, monkeypatch):
    part, final, lock = tmp_path / "f.tar.gz.part", tmp_path / "f.tar.gz", fcntl.flock

    def finished(handle, how):
        part.write_bytes(CONTENT)
        part.rename(final)
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", finished)
    with pytest.raises(DataError, match=r"part: another process has just fetched it"):
        get(server, tmp_path)
    assert final.read_bytes() == CONTENT


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


def stream(server, start=0, waits=None, **changes):
    size, pause = changes.pop("size", None), [].append if waits is None else waits.append
    known = remote(**{"sha256": None, "least_size": 400_000} | changes)
    transfer = Transfer(known, mirror=server.url, size=size, progress=False, pause=pause)
    return b"".join(transfer.chunks(start)), transfer


def refused(server, *arguments, **changes):
    with pytest.raises(DataError) as caught:
        stream(server, *arguments, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(server.url)


def test_a_stream_begins_anywhere_and_goes_on_where_an_answer_broke_off(server):
    server.behaviours, waits = ["break", "break", "good"], []
    content, transfer = stream(server, 1000, waits)
    assert (content, transfer.size, transfer.stated_sha256) == (CONTENT[1000:], len(CONTENT), None)
    assert waits == [4.0, 16.0]


@pytest.mark.parametrize("behaviour", ["no range", "earlier", "good"])
@pytest.mark.parametrize("start", [5000, len(CONTENT) - 1])
def test_what_a_server_sends_again_is_passed_over(server, behaviour, start):
    server.behaviours = [behaviour]
    assert stream(server, start)[0] == CONTENT[start:]


def test_a_stream_that_brings_much_may_break_off_often(server, monkeypatch):
    monkeypatch.setattr(download, "PROGRESS", 1000)
    server.behaviours, waits = [*["break"] * 8, "good"], []
    assert stream(server, 0, waits)[0] == CONTENT
    assert set(waits) == {4.0}


@pytest.mark.parametrize(
    ("behaviours", "changes", "message"),
    [
        ([403], {}, "/f.tar.gz: the server answers 403 Forbidden"),
        (["no length"], {}, "/f.tar.gz: the server does not say how long the file is, and no digest is known"),
        (["good"], {"size": 5}, "/f.tar.gz: 512,000 bytes, but an earlier answer had 5"),
        (["good"], {"size_limit": 9}, "/f.tar.gz: 512,000 bytes, more than the 9 that this file may have"),
        (["break"], {}, "/f.tar.gz: broke off after 448,000 of 512,000 bytes; the same command goes on where this"),
    ],
)
def test_a_stream_that_cannot_be_is_one_line(server, behaviours, changes, message):
    server.behaviours = behaviours
    assert refused(server, **changes).startswith(message)


def test_the_page_of_a_login_is_no_stream(server):
    server.content, server.headers = PAGE, {"Content-Type": "text/html"}
    problem = "1,040 bytes of text/html, less than the 400,000 of this file; is it the page of a login?"
    assert refused(server) == f"/f.tar.gz: {problem}"


def test_what_was_read_already_is_not_more_than_there_is(server):
    assert refused(server, len(CONTENT) + 1).endswith("an earlier attempt read 512,001 bytes, and the file has fewer")
    assert stream(server, len(CONTENT))[0] == b""


def test_redirections_lead_to_named_hosts_only(server):
    other = server.url.replace("127.0.0.1", "localhost")
    server.behaviours = [f"redirect {other}/cdn", "good"]
    assert stream(server, hosts=("localhost",))[0] == CONTENT
    for place in (f"{other}/cdn", "https://evil.hf.co.example.org/x", "https://xhf.co/x", "http://a.hf.co/x"):
        server.behaviours = [f"redirect {place}"]
        message = refused(server, hosts=(".hf.co", "hub.example.org"))
        assert f"redirected to {place}, which is no server of this file (127.0.0.1, .hf.co, hub.example.org)" in message
    server.behaviours = ["redirect https://a.b.hf.co.invalid/x"]
    assert "no answer" in refused(server, hosts=(".hf.co.invalid",))  # it was followed


def test_what_the_hub_states_of_a_file_is_held_against_what_comes(server):
    other = server.url.replace("127.0.0.1", "localhost")
    server.linked = {"X-Linked-Size": str(len(CONTENT)), "X-Linked-ETag": f'"{DIGEST}"'}
    server.behaviours = [f"redirect {other}/cdn", "good"]
    assert stream(server, hosts=("localhost",))[1].stated_sha256 == DIGEST
    server.linked = {"X-Linked-Size": "7"}
    server.behaviours = [f"redirect {other}/cdn", "good"]
    assert "512,000 bytes, but the server that was asked stated 7" in refused(server, hosts=("localhost",))


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


def test_the_known_addresses_are_https_and_redirect_nowhere_else():
    assert set(REMOTES) == {"text", "image", "retrieval"}
    for key, remotes in REMOTES.items():
        for entry in remotes:
            assert entry.url.startswith("https://")
            assert (entry.sha256 is None) == (key == "retrieval")
            assert (entry.least_size > 1_000_000_000) == (key == "retrieval")
            assert entry.hosts == ((".huggingface.co", ".hf.co") if key == "retrieval" else ())
            assert 0 <= entry.least_size < entry.size_limit
