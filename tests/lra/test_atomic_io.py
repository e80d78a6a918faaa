"""The order of calls that makes a write survive a power cut: no test can cut the power, so the calls are watched."""

import os
from pathlib import Path

import pytest

from lra.atomic_io import atomic_write, build_folder, create_exclusive


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
