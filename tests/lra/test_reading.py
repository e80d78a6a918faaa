"""Whatever goes wrong while a file is read is one line with its name, soon, and hidden files are passed over."""

import os
from pathlib import Path

import pytest

from lra.errors import DataError, StoreError, UsageError
from lra.reading import is_hidden, is_there, read_file, reading, visible
from lra.results.records import Store

ERRORS = [
    ValueError("a\nb"), KeyError("a"), TypeError(), OSError(5, "Input/output error"), OSError("odd"), MemoryError(),
    RecursionError("deep"), ZeroDivisionError("division by zero"), AssertionError(), StopIteration(),
    UnicodeDecodeError("utf-8", b"", 0, 1, "x"), OverflowError("x" * 10_000),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("kind", [DataError, UsageError])
def test_any_error_is_one_line_with_the_name(error, kind):
    with pytest.raises(kind) as caught, reading("the/file", kind):
        raise error
    message = str(caught.value)
    assert message.startswith("the/file: ")
    assert len(message) > len("the/file: ")
    assert "\n" not in message
    assert len(message) < 300


def test_errors_of_ours_and_requests_to_stop_pass():
    for error in (UsageError("ours"), KeyboardInterrupt(), SystemExit(75)):
        with pytest.raises(type(error)) as caught, reading("file", DataError):
            raise error
        assert caught.value is error


def test_a_regular_file_is_read_up_to_its_limit(tmp_path):
    file, other = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"12345")
    other.symlink_to(file)
    assert read_file(file, 5) == read_file(other, 5) == b"12345"
    with pytest.raises(DataError, match="larger than 4 bytes"):
        read_file(file, 4)


@pytest.mark.timeout(10)
def test_what_might_never_end_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("pipe", "a pipe"), ("", "a folder"), ("absent", "No such file")):
        with pytest.raises(UsageError, match=message):
            read_file(tmp_path / name, 10, UsageError)
    with pytest.raises(DataError, match="a device"):
        read_file(tmp_path.__class__("/dev/zero"), 10)


def test_hidden_names_are_passed_over(tmp_path):
    for name in ("b.npy", "a.npy", "._a.npy", ".DS_Store", "c.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in visible(tmp_path, "*.npy")] == ["a.npy", "b.npy"]
    assert [is_hidden(name) for name in ("a/b", "./a", "../a", ".a/b", "a/._b", "a.b")] == [
        False, False, False, True, True, False,
    ]  # fmt: skip


def test_a_folder_that_cannot_be_listed_is_an_error_and_one_that_is_not_there_is_empty(tmp_path, monkeypatch):
    """`Path.glob` passes over it, and what it holds would be left out without a word."""
    (tmp_path / "results" / "ab").mkdir(parents=True)
    listed = Path.iterdir

    def refused(folder):
        if folder.name == "ab":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", refused)
    with pytest.raises(StoreError, match=r"results/ab: Permission denied$"):
        visible(tmp_path, "results/*/*.json", StoreError)
    assert visible(tmp_path / "missing", "*.json") == []


def test_a_link_to_a_folder_that_is_gone_is_an_error(tmp_path):
    """Records on a disk that is not mounted would be left out without a word."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "ab").symlink_to(tmp_path / "unmounted")
    with pytest.raises(StoreError, match=r"results/ab: "):
        visible(tmp_path, "results/*/*.json", StoreError)
    assert visible(tmp_path / "results") == [tmp_path / "results" / "ab"]
    assert Store(tmp_path).find("cd" * 32) is None
    with pytest.raises(StoreError, match=r"results/ab: "):
        Store(tmp_path).find("ab" * 32)


def test_below_a_link_to_nothing_nobody_knows_what_is_there(tmp_path):
    (tmp_path / "a file").touch()
    assert visible(tmp_path / "attempts" / "ab") == visible(tmp_path, "*/*.json") == []
    for look in (lambda: visible(tmp_path, "a file/*"), lambda: is_there(tmp_path / "a file" / "b")):
        with pytest.raises(DataError, match=r"/a file(/b)?: Not a directory$"):
            look()
    (tmp_path / "attempts").symlink_to(tmp_path / "unmounted")
    with pytest.raises(DataError, match=r"/attempts: a link to what is not there$"):
        visible(tmp_path / "attempts" / "ab")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(DataError, match=r"/loop/a: Too many levels of symbolic links$"):
        is_there(tmp_path / "loop" / "a")
