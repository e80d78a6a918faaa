"""Files that change, or that others take the places of, while they are read."""

import functools
import mmap

import pytest

from lra.data.raw_files import steady, untouched
from lra.errors import DataError


@pytest.fixture
def files(tmp_path):
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        for name in ("a", "b"):
            (tmp_path / version / name).write_text(f"{version} {name}")
    return [tmp_path / "one" / name for name in ("a", "b")]


def read_while(guard, files, *changes):
    """Read files behind a guard, and change them meanwhile."""
    with guard(files):
        for change in changes:
            change()


def places(path, other, aside):
    """Return the changes that put `other` in the place of `path` for a while."""
    moves = ((path, aside), (other, path), (path, other), (aside, path))
    return [functools.partial(source.rename, target) for source, target in moves]


@pytest.mark.parametrize("guard", [steady, untouched])
def test_a_file_that_had_the_place_of_another_for_a_while_is_told(tmp_path, files, guard):
    changes = places(files[0], tmp_path / "two" / "a", tmp_path / "aside")
    with pytest.raises(DataError, match=r"one/a: changed while it was read; prepare the data again$"):
        read_while(guard, files, *changes)
    assert files[0].read_text() == "one a"


@pytest.mark.parametrize("guard", [steady, untouched])
@pytest.mark.parametrize("moved", ["", "inner"])
def test_a_folder_that_had_the_place_of_another_for_a_while_is_told(tmp_path, guard, moved):
    for version in ("one", "two"):
        (tmp_path / version / "inner").mkdir(parents=True)
        (tmp_path / version / "inner" / "a").write_text(version)
    changes = places(tmp_path / "one" / moved, tmp_path / "two" / moved, tmp_path / "aside")
    with pytest.raises(DataError, match=rf"{moved or 'one'}: changed while it was read"):
        read_while(guard, [tmp_path / "one" / "inner" / "a"], *changes)


@pytest.mark.parametrize("of_folder", [True, False])
def test_a_link_that_led_elsewhere_for_a_while_is_told(tmp_path, files, of_folder):
    link, new = tmp_path / "link", tmp_path / "new"
    for place, version in ((link, "one"), (new, "two")):
        place.symlink_to(version if of_folder else f"{version}/a")
    named = link / "a" if of_folder else link
    seen = []
    changes = places(link, new, tmp_path / "aside")
    changes.insert(2, lambda: seen.append(named.read_text()))
    with pytest.raises(DataError, match=r"link: changed while it was read"):
        read_while(untouched, [named], *changes)
    assert seen == ["two a"]


def test_the_folder_that_a_link_leads_to_is_watched_too(tmp_path, files):
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(files[0])
    changes = places(tmp_path / "one", tmp_path / "two", tmp_path / "aside")
    with pytest.raises(DataError, match=r"one: changed while it was read"):
        read_while(untouched, [tmp_path / "links" / "a"], *changes)


def test_what_is_written_through_a_mapping_is_told(files):
    """The time of the file stays, since the mapping was written to before."""
    times = []
    with files[0].open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as mapped:
        mapped[0] = 1
        note_time = lambda: times.append(files[0].stat().st_ctime_ns)  # noqa: E731
        with pytest.raises(DataError, match=r"one/a: changed while it was read"):
            read_while(steady, files, note_time, lambda: mapped.__setitem__(0, 2), note_time)
    assert times[0] == times[1]


@pytest.mark.parametrize("guard", [steady, untouched])
def test_what_happens_beside_the_files_is_no_change(tmp_path, files, guard):
    """New entries in the folders above them, other files that change, folders that were moved before."""
    (tmp_path / "one").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "one")
    read_while(
        guard, files, files[0].read_text, lambda: (tmp_path / "one" / "c").write_text("new"),
        (tmp_path / "new").mkdir, lambda: (tmp_path / "two" / "a").write_text("changed"),
    )  # fmt: skip
    assert files[0].read_text() == "one a"
