"""Files that change, or that others take the places of, while they are read."""

import mmap
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lra
from lra.data.raw_files import steady, untouched
from lra.errors import DataError
from lra.reading import open_regular

CHANGED = "changed while it was read; prepare the data again$"


@pytest.fixture
def versions(tmp_path):
    """Two folders with files of the same names, and a link to the first one."""
    for version in ("one", "two"):
        (tmp_path / version / "inner").mkdir(parents=True)
        for name in ("a", "inner/b"):
            (tmp_path / version / name).write_text(f"{version} {name}")
    (tmp_path / "current").symlink_to("one")
    (tmp_path / "link").symlink_to("current")
    return tmp_path


def content(path):
    with open_regular(path) as handle:
        return handle.read().decode()


def exchange(path, other):
    aside = path.with_name("aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


def read_while_exchanged(guard, file, path, other):
    """Read a file while `other` has the place of `path`, which gets it back."""
    with guard([file]):
        exchange(path, other)
        try:
            return content(file)
        finally:
            exchange(path, other)


@pytest.mark.parametrize("guard", [steady, untouched])
@pytest.mark.parametrize("moved", ["a", ".", "inner", "inner/b"])
@pytest.mark.parametrize("through", ["one", "current", "link"])
def test_what_had_the_place_of_a_file_for_a_while_is_not_read(versions, guard, moved, through):
    """Another file, or another folder above it, also behind links."""
    file = versions / through / ("inner/b" if "inner" in moved else "a")
    with pytest.raises(DataError, match=f"{file.name}: {CHANGED}"):
        read_while_exchanged(guard, file, versions / "one" / moved, versions / "two" / moved)


@pytest.mark.parametrize("guard", [steady, untouched])
@pytest.mark.parametrize("through", ["current", "link"])
def test_a_link_that_led_elsewhere_for_a_while_is_told(versions, guard, through):
    (versions / "other").symlink_to("two")
    with pytest.raises(DataError, match=f"a: {CHANGED}"):
        read_while_exchanged(guard, versions / through / "a", versions / "current", versions / "other")


def test_what_is_written_through_a_mapping_is_told(versions):
    """The time of the file stays, since the mapping was written to before."""
    file, times = versions / "one" / "a", []

    def write_while_watched():
        with steady([file]):
            times.append(file.stat().st_ctime_ns)
            mapped[0] = 2
            times.append(file.stat().st_ctime_ns)

    with file.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as mapped:
        mapped[0] = 1
        with pytest.raises(DataError, match=f"a: {CHANGED}"):
            write_while_watched()
    assert times[0] == times[1]


@pytest.mark.parametrize("guard", [steady, untouched])
def test_what_happens_beside_the_files_is_no_change(versions, guard):
    file = versions / "current" / "a"
    with guard([file]):
        (versions / "one" / "c").write_text("new")
        (versions / "new").mkdir()
        (versions / "two" / "a").write_text("changed")
        (versions / "one").touch()
        assert content(file) == "one a"
        with guard([file]):
            assert content(file) == "one a"
    exchange(versions / "one", versions / "two")
    assert content(file) == "changed"  # nobody watches it any more


def test_a_file_that_came_after_the_others_were_noted_is_not_read(versions):
    def read_late():
        with untouched([versions / "late"]):
            (versions / "late").write_text("late")
            content(versions / "late")

    with pytest.raises(DataError, match=f"late: {CHANGED}"):
        read_late()


@pytest.mark.parametrize("guard", [steady, untouched])
def test_a_block_inside_another_reads_what_the_outer_one_noted(versions, guard):
    """A folder has the place of another for as long as the inner block lasts."""

    def read_inside():
        file = versions / "current" / "a"
        with steady([file]):
            exchange(versions / "one", versions / "two")
            try:
                with guard([file]):
                    content(file)
            finally:
                exchange(versions / "one", versions / "two")

    with pytest.raises(DataError, match=f"a: {CHANGED}"):
        read_inside()


def test_a_block_reads_no_file_that_was_not_noted(versions):
    """Such as one that is in another folder only, which had the place of this one for a while."""
    with untouched([versions / "one" / "a"]):
        with pytest.raises(DataError, match=f"b: {CHANGED}"):
            content(versions / "one" / "inner" / "b")
        with untouched([versions / "one" / "inner" / "b"]):
            assert content(versions / "one" / "inner" / "b") == "one inner/b"


def test_blocks_of_two_threads_are_apart(versions):
    with untouched([versions / "one" / "a"]), ThreadPoolExecutor(1) as pool:
        assert pool.submit(content, versions / "two" / "a").result() == "two a"


def test_no_reader_opens_a_file_past_the_guard():
    """What is listed opens files of the project's own."""
    root = Path(lra.__file__).parent
    readers = [*root.glob("tasks/**/*.py")]
    readers += [root / "data" / f"{name}.py" for name in ("archives", "parquet", "pickled_rows")]
    opens = re.compile(r"(?<!Image)\.open\(|(?<![._a-z])open\(|read_bytes\(|read_text\(|fromfile|np\.(load|memmap)\(")
    lines = [(file, line.strip()) for file in readers for line in file.read_text().splitlines()]
    found = {f"{file.name}: {line[:40]}" for file, line in lines if opens.search(line)}
    assert found == {
        'corpus.py: (folder / IMAGES).open("a+b") as images,',
        'corpus.py: (folder / LOG).open("a+b") as log,',
        'pairs_fetch.py: with kept.open("a+b") as handle, context',
    }
