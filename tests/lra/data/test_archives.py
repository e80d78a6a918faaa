"""Reading of archives and lines: what is wanted comes out whole, and everything else is one line of error."""

import gzip
import io
import os
import tarfile
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lra.data import archives
from lra.data.archives import read_lines, stream_members
from lra.errors import DataError
from tests.lra.data.archive_cases import link, tar_bytes

WANTED = {"a": 100, "b": 100}


def read(path, total=1 << 20, members=1000):
    found = stream_members(path, WANTED.get, total_limit=total, member_limit=members)
    return {member.name: member.read() for member in found}


def refused(path, total=1 << 20, members=1000):
    with pytest.raises(DataError) as caught:
        read(path, total, members)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def members_or_line(path, total=1 << 20):
    """Return the members, or the words `one line` where an error of one line was raised."""
    try:
        return read(path, total)
    except DataError as error:
        return "one line" if "\n" not in str(error) else str(error)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "archive"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_wanted_members_come_whole_whatever_the_compression(file, mode):
    file.write_bytes(tar_bytes([("a", b"1" * 70), ("other", b"x" * 5000), ("b", b"")], mode))
    assert read(file) == {"a": b"1" * 70, "b": b""}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_every_truncation_is_found(file, mode):
    whole = tar_bytes([("a", bytes(range(100))), ("b", bytes(range(100)))], mode)
    lengths = [n for n in range(1, len(whole), 7) if mode != "w" or n % 512]  # plain ones may end after any block
    for length in lengths[:: max(1, len(lengths) // 100)]:
        file.write_bytes(whole[:length])
        refused(file)
    file.write_bytes(whole)
    assert len(read(file)) == 2


def test_a_flipped_byte_of_a_gzip_archive_is_found_even_behind_the_last_member(file):
    whole = tar_bytes([("a", bytes(range(100)))])
    for position in (len(whole) // 2, len(whole) - 6):
        spoilt = bytearray(whole)
        spoilt[position] ^= 0x40
        file.write_bytes(bytes(spoilt))
        refused(file)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b", b"PK\x03\x04" + bytes(600), bytes(512) + b"x" * 600])
def test_what_is_no_archive_is_refused_or_empty(file, content):
    file.write_bytes(content)
    assert members_or_line(file) in ({}, "one line")


def test_a_missing_file_says_so(file):
    assert "no such file" in refused(file)


@pytest.mark.parametrize("name", ["/a", "../a", "x/../../a", "x\\a"])
def test_names_that_lead_out_are_refused(file, name):
    file.write_bytes(tar_bytes([(name, b"1")]))
    assert "leads out" in refused(file)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_a_wanted_member_must_be_a_file(file, kind):
    file.write_bytes(tar_bytes([link("a", kind)]))
    assert "link or special file" in refused(file)


def test_unwanted_links_are_passed_over(file):
    file.write_bytes(tar_bytes([link("other"), ("a", b"1")]))
    assert read(file) == {"a": b"1"}


def test_a_member_that_is_there_twice_is_refused(file):
    file.write_bytes(tar_bytes([("a", b"1"), ("a", b"2")]))
    assert "twice" in refused(file)


def test_limits_hold_for_a_member_and_for_the_whole(file):
    file.write_bytes(tar_bytes([("a", bytes(101))]))
    assert "more than the 100" in refused(file)
    file.write_bytes(tar_bytes([("other", bytes(3 << 20))]))
    assert len(file.read_bytes()) < 10_000
    assert "once decompressed" in refused(file)


def test_a_bomb_is_stopped_early_and_takes_no_memory(file):
    with gzip.open(file, "wb", compresslevel=1) as handle:
        header = tarfile.TarInfo("other")
        header.size = 1 << 30
        handle.write(header.tobuf())
        for _ in range(64):
            handle.write(bytes(1 << 20))
    tracemalloc.start()
    refused(file, total=8 << 20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_header_that_asks_for_memory_is_stopped(file):
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 1 << 30
    buffer = io.BytesIO()
    with gzip.open(buffer, "wb", compresslevel=1) as handle:
        handle.write(header.tobuf())
        for _ in range(32):
            handle.write(bytes(1 << 20))
    file.write_bytes(buffer.getvalue())
    assert "headers" in refused(file, total=1 << 40)


def header(name, size=0, kind=tarfile.REGTYPE, **fields):
    """Return a header in GNU format; `size` may be any number."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    for at, value in fields.items():
        block[int(at[1:]) : int(at[1:]) + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(body, size=None):
    return header("pax", len(body) if size is None else size, tarfile.XHDTYPE) + body + bytes(-len(body) % 512)


DIGITS = b"9" * 200_000
SPARSE = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
HOSTILE = {
    "sparse member of 2^60 bytes": header("other", 512, tarfile.GNUTYPE_SPARSE, _483=b"\x80\0\0\0\x10" + bytes(7))
    + bytes(1024),
    "wanted sparse member": header("a", 512, tarfile.GNUTYPE_SPARSE) + bytes(1024),
    "sparse member with a long map": header("other", 512, tarfile.GNUTYPE_SPARSE, _482=b"\1") + bytes(2048),
    "sparse member in extended headers": pax(SPARSE + b"33 GNU.sparse.realsize=9999999999\n")
    + header("a")
    + bytes(1024),
    "member of 2^60 bytes": header("other", 1 << 60) + bytes(1024),
    "wanted member of 2^60 bytes": header("a", 1 << 60) + bytes(1024),
    "extended header of 2^60 bytes": pax(b"", 1 << 60),
    "extended header of digits": pax(DIGITS),
    "extended header of digits and a space": pax(DIGITS + b" path=x\n"),
    "a size of 5,000 digits": pax(b"5011 size=" + b"9" * 5000 + b"\n") + header("a"),
    "a size below 0": header("a", -512) + bytes(1024),
    "a property that ends elsewhere": pax(b"99 path=b\n") + header("a"),
    "a property of length 0": pax(b"0 path=b\n") + header("a"),
    "many long names for one member": b"".join(header("x", 0, tarfile.GNUTYPE_LONGNAME) for _ in range(1000)),
    "more empty members than there may be": b"".join(header(f"other{n}") for n in range(2000)),
}
FINE = {"sparse member of 2^60 bytes"}  # nobody asked for it, and its data is 512 bytes


@pytest.mark.parametrize("case", HOSTILE)
def test_an_archive_that_asks_for_much_is_refused_at_once_and_in_little_memory(file, case):
    file.write_bytes(gzip.compress(HOSTILE[case], 1))
    tracemalloc.start()
    started = time.process_time()
    found = members_or_line(file, total=1 << 40)
    seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == ({} if case in FINE else "one line")
    assert seconds < 2
    assert peak < 8 << 20


def test_without_its_limits_the_reader_would_take_what_they_forbid(file, monkeypatch):
    file.write_bytes(gzip.compress(HOSTILE["more empty members than there may be"] + bytes(1024), 1))
    assert "more than 1,000 members" in refused(file, total=1 << 40)
    assert read(file, total=1 << 40, members=10_000) == {}
    long_name = header("x", 3 << 20, tarfile.GNUTYPE_LONGNAME) + b"y" * (3 << 20) + header("x") + bytes(1024)
    file.write_bytes(gzip.compress(long_name, 1))
    assert "bytes of headers" in refused(file, total=1 << 40)
    monkeypatch.setattr(archives, "HEADER_LIMIT", 4 << 20)
    assert read(file, total=1 << 40) == {}


def test_long_names_and_extended_headers_are_read(tmp_path):
    name = "folder/" + "long/" * 40 + "name"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        file = tmp_path / str(form)
        with tarfile.open(file, "w:xz", format=form) as archive:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 3, {"comment": "caf\u00e9\n", "mtime": "1.5"}
            archive.addfile(info, io.BytesIO(b"abc"))
        members = stream_members(file, {name: 3}.get, total_limit=1 << 20, member_limit=9)
        assert [(member.name, member.read()) for member in members] == [(name, b"abc")]


def test_a_pipe_is_no_archive(file):
    os.mkfifo(file)
    assert "a pipe" in refused(file)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_damaged_archives_give_members_or_one_line(tmp_path_factory, data):
    mode = data.draw(st.sampled_from(["w", "w:gz", "w:bz2", "w:xz"]))
    spoilt = bytearray(tar_bytes([("a", b"1" * 70), ("other", b"x" * 700), ("b", b"22")], mode))
    for _ in range(data.draw(st.integers(1, 4))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "fuzz"
    file.write_bytes(bytes(spoilt[: data.draw(st.integers(0, len(spoilt)))]))
    members = members_or_line(file)
    assert members == "one line" or all(len(content) <= 100 for content in members.values())


def test_lines_end_at_newlines_alone():
    text = 'a\u2028b\x85c\x0bd\x1ce\x00\r f\r\n\n"lone\nlast'.encode("utf-8") + b"\xff"
    lines = list(read_lines(io.BytesIO(text), "x"))
    assert lines == ["a\u2028b\x85c\x0bd\x1ce\x00\r f".encode(), b"", b'"lone', b"last\xff"]


def test_an_endless_line_is_refused_with_its_number(monkeypatch):
    monkeypatch.setattr(archives, "LINE_LIMIT", 10)
    assert list(read_lines(io.BytesIO(b"0123456789"), "x")) == [b"0123456789"]
    with pytest.raises(DataError, match=r"^x:2: a line of more than 10 bytes$"):
        list(read_lines(io.BytesIO(b"ab\n" + b"z" * 50), "x"))
