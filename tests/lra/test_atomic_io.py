"""The order of calls that makes a write survive a power cut: no test can cut the power, so the calls are watched."""

import errno
import os
from pathlib import Path

import pytest

from lra.atomic_io import (
    atomic_write,
    build_folder,
    create_exclusive,
    leftovers,
    process_start,
    remove_folder,
    temporary_name,
)
from lra.errors import StoreError
from lra.results.records import Store


@pytest.fixture
def calls(monkeypatch):
    """Record what is flushed to the disk and what is given its final name, in order."""
    told = []

    def watch(owner, name, describe):
        call = getattr(owner, name)

        def watched(*arguments, **options):
            result = call(*arguments, **options)
            told.append(describe(*arguments))
            return result

        monkeypatch.setattr(owner, name, watched)

    def flushed(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return "folder" if path.is_dir() else f"file of {path.stat().st_size}"

    watch(os, "fsync", flushed)
    watch(os, "link", lambda source, target: "named")
    watch(Path, "replace", lambda source, target: "named")
    watch(Path, "rename", lambda source, target: "named")
    return told


@pytest.mark.parametrize("write", [atomic_write, create_exclusive])
def test_content_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_end(tmp_path, calls, write):
    write(tmp_path / "it", b"12345")
    assert calls == ["file of 5", "named", "folder"]
    assert (tmp_path / "it").read_bytes() == b"12345"


def test_a_folder_is_flushed_file_by_file_before_it_has_its_name(tmp_path, calls):
    with build_folder(tmp_path / "it") as folder:
        (folder / "a").write_bytes(b"1")
        (folder / "b").write_bytes(b"22")
    assert calls == ["file of 1", "file of 2", "folder", "named", "folder"]


def refusing(number):
    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_hard_links_is_told_with_what_helps(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "link", refusing(number))
    with pytest.raises(OSError, match=r"refuses hard links.*name a folder on another file system"):
        create_exclusive(tmp_path / "it", b"1")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match=r"cannot write to the store .*refuses hard links"):
        Store(tmp_path).check_writable()


@pytest.mark.parametrize("write", [atomic_write, create_exclusive])
def test_a_file_system_that_cannot_flush_folders_is_told_with_what_helps(tmp_path, monkeypatch, write):
    flush = os.fsync

    def refuse(descriptor):
        if Path(f"/proc/self/fd/{descriptor}").readlink() == tmp_path:
            refusing(errno.EINVAL)()
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=r"cannot flush a folder.*name a folder on another file system"):
        write(tmp_path / "it", b"1")


def test_other_errors_keep_their_words(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refusing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        create_exclusive(tmp_path / "it", b"1")


def test_what_a_process_of_the_same_number_made_is_left_behind(tmp_path):
    """In a container every command may be process 1."""
    pid = os.getpid()
    theirs = tmp_path / f".it.{pid}-1-0123abcd.tmp"
    for path in (theirs, temporary_name(tmp_path / "it"), tmp_path / f".of-an-older-version.{pid}-0123abcd.tmp"):
        path.mkdir()
    assert leftovers(tmp_path) == [theirs]


def test_what_a_process_made_that_the_system_hides_is_in_use(tmp_path, monkeypatch):
    """`/proc` with the option `hidepid` shows nobody the processes of others."""
    theirs = tmp_path / f".it.{2**22 + 1}-1-0123abcd.tmp"
    theirs.mkdir()
    assert leftovers(tmp_path) == [theirs]
    monkeypatch.setattr(os, "kill", lambda pid, number: (_ for _ in ()).throw(PermissionError))
    assert leftovers(tmp_path) == []


def test_of_a_linked_folder_the_link_is_removed(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    remove_folder(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_process_whose_name_the_kernel_cuts_inside_a_letter_has_a_start():
    name = Path("/proc/self/comm")
    before, start = name.read_bytes(), process_start(os.getpid())
    try:
        name.write_bytes("\N{CYRILLIC SMALL LETTER A}".encode() * 7 + b"\xd0")
        assert process_start(os.getpid()) == start != ""
    finally:
        name.write_bytes(before)
