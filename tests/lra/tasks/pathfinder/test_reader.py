"""The reader of official Pathfinder folders, on folders in the official layout made here, sound and malformed."""

import shutil
import struct
import tracemalloc
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lra.data.split import SPLITS
from lra.errors import DataError
from lra.tasks import get_task
from lra.tasks.pathfinder import reader
from lra.tasks.pathfinder import task as task_module
from lra.tasks.pathfinder.reader import (
    copy_in_release,
    find_dataset,
    read_entries,
    read_png,
    split_order,
)
from lra.tasks.pathfinder.task import PathfinderOptions

HARD, EASY = "curv_contour_length_14", "curv_baseline"


def line(batch, index, label, length=14):
    return f"imgs/{batch} sample_{index}.png {index} {label} 1.8 {length} 4.0 2 0.5 1 1"


def write_dataset(folder, batches=(0, 2, 10), per_batch=10, size=32, array=False):
    """Write a dataset whose images are constant but for their first pixel, which numbers them in sorted order."""
    (folder / "metadata").mkdir(parents=True)
    number = 0
    for batch in batches:
        (folder / "imgs" / str(batch)).mkdir(parents=True)
        lines = []
        for index in range(per_batch):
            pixels = np.full((size, size), 40, dtype=np.uint8)
            pixels[0, 0] = number
            Image.fromarray(pixels).save(folder / "imgs" / str(batch) / f"sample_{index}.png")
            lines.append(line(batch, index, number % 2, 6 if folder.name == EASY else 14))
            number += 1
        file = folder / "metadata" / f"{batch}.npy"
        if array:
            np.save(file, np.array([text.split() for text in lines]))
        else:
            file.write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "pathfinder32" / HARD)


def prepare(tmp_path, source, name="pathfinder", **options):
    options = {"source": "official", "count": 30, **options}
    return get_task(name).prepare(PathfinderOptions(**options), tmp_path / "home", source=source, progress=False)


@pytest.mark.parametrize("array", [False, True])
def test_images_are_split_by_the_seeded_permutation_of_their_sorted_order(tmp_path, array):
    write_dataset(tmp_path / "pathfinder32" / HARD, array=array)
    data = prepare(tmp_path, tmp_path)
    numbers = [int(data.split(name).tokens_of(i)[0]) for name in SPLITS for i in range(len(data.split(name)))]
    assert numbers == split_order(30)
    assert [len(data.split(name)) for name in SPLITS] == [24, 3, 3]
    assert [int(label) for name in SPLITS for label in data.split(name).labels] == [n % 2 for n in numbers]
    assert data.manifest.generated_by.startswith("official reader 1, ")
    assert "test ids " in data.manifest.generated_by


def test_the_test_ids_depend_on_the_images_only(tmp_path):
    makers = []
    for name, array in (("a", False), ("b", True)):
        write_dataset(tmp_path / name / "pathfinder32" / HARD, array=array)
        makers.append(prepare(tmp_path / name, tmp_path / name).manifest.generated_by)
    write_dataset(tmp_path / "c" / "pathfinder32" / HARD, batches=(0, 2, 11))
    makers.append(prepare(tmp_path / "c", tmp_path / "c").manifest.generated_by)
    assert makers[0] == makers[1] != makers[2]


def test_the_inner_of_two_copies_is_taken_and_named(tmp_path):
    outer = write_dataset(tmp_path / "lra_release" / "pathfinder128" / HARD, size=128)
    inner = write_dataset(tmp_path / "lra_release" / "lra_release" / "pathfinder128" / HARD, size=128)
    assert find_dataset(tmp_path, 128, "hard") == inner
    assert find_dataset(tmp_path / "lra_release", 128, "hard").resolve() == inner
    assert find_dataset(outer, 128, "hard") == outer
    data = prepare(tmp_path, tmp_path, name="pathx")
    assert f"pathfinder128/{HARD}, inner copy" in data.manifest.generated_by


@pytest.mark.parametrize("same", [True, False])
def test_what_another_process_made_meanwhile_is_taken_only_if_it_has_the_same_images(tmp_path, monkeypatch, same):
    """The lists of both releases are equal, and one pixel of one image is not."""
    ours, theirs = (write_dataset(tmp_path / name / "pathfinder32" / HARD) for name in ("ours", "theirs"))
    if not same:
        Image.fromarray(np.full((32, 32), 41, dtype=np.uint8)).save(theirs / "imgs" / "0" / "sample_3.png")
    alone = task_module.sole_owner

    def wait_for_another(work):
        monkeypatch.setattr(task_module, "sole_owner", alone)
        prepare(tmp_path, theirs)
        return alone(work)

    monkeypatch.setattr(task_module, "sole_owner", wait_for_another)
    if same:
        assert len(prepare(tmp_path, ours).split("train")) == 24
    else:
        with pytest.raises(DataError, match="another process made it from other files meanwhile"):
            prepare(tmp_path, ours)


@pytest.mark.parametrize("below", ["pathfinder/pathfinder", "pathfinder"])
def test_the_folders_of_another_copy_are_found_and_the_list_of_labels_has_a_digest(tmp_path, below):
    write_dataset(tmp_path / "kaggle" / below / "pathfinder32" / HARD)
    write_dataset(tmp_path / "release" / "pathfinder32" / HARD)
    data = prepare(tmp_path / "a", tmp_path / "kaggle")
    other = prepare(tmp_path / "b", tmp_path / "release")
    assert data.manifest.sources == other.manifest.sources
    assert list(data.manifest.sources) == [f"list of images and labels of {HARD}"]
    metadata = sorted((tmp_path / "release" / "pathfinder32" / HARD / "metadata").iterdir())[0]
    metadata.write_bytes(metadata.read_bytes().replace(b" 1 ", b" 0 "))
    changed = prepare(tmp_path / "c", tmp_path / "release")
    assert changed.manifest.sources != other.manifest.sources


def test_the_known_empty_image_is_left_out_and_no_other(tmp_path):
    folder = write_dataset(tmp_path / "pathfinder32" / EASY, batches=(0,), per_batch=200)
    (folder / "imgs" / "0" / "sample_172.png").write_bytes(b"")
    data = prepare(tmp_path, tmp_path, difficulty="easy", count=200)
    assert [len(data.split(name)) for name in SPLITS] == [161, 19, 19]
    assert data.manifest.dataset == "official files, easy, 161 / 19 / 19 examples"
    (folder / "imgs" / "0" / "sample_171.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"sample_171\.png: empty file"):
        prepare(tmp_path, tmp_path, difficulty="easy", count=199)
    (folder / "imgs" / "0" / "sample_171.png").write_bytes((folder / "imgs" / "0" / "sample_170.png").read_bytes())
    (folder / "imgs" / "0" / "sample_172.png").write_bytes((folder / "imgs" / "0" / "sample_170.png").read_bytes())
    listed = folder / "metadata" / "0.npy"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="199 images, expected 200"):
        prepare(tmp_path / "cut", tmp_path, difficulty="easy", count=200)
    part = write_dataset(tmp_path / "part" / "pathfinder32" / EASY)  # the known image is nowhere in it
    listed = part / "metadata" / "0.npy"
    listed.write_text("".join(listed.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match="29 images, expected 30"):
        prepare(tmp_path / "cut", part, difficulty="easy", count=30)


def test_images_of_another_difficulty_than_their_folder_is_named_after_are_named(tmp_path, capsys):
    folder = write_dataset(tmp_path / "pathfinder32" / HARD)
    assert "by the metadata" not in prepare(tmp_path / "hard", tmp_path).manifest.dataset
    assert capsys.readouterr().err == ""
    folder.rename(folder.with_name(EASY))
    data = prepare(tmp_path / "easy", tmp_path, difficulty="easy", count=30)
    assert data.manifest.dataset.endswith(", hard by the metadata")
    assert "by their metadata, images are hard" in capsys.readouterr().err
    (listed := folder.with_name(EASY) / "metadata" / "0.npy").write_text(listed.read_text().replace(" 14 ", " 12 "))
    data = prepare(tmp_path / "other", tmp_path, difficulty="easy", count=30)
    assert data.manifest.dataset.endswith(", hard and of another contour length by the metadata")


@pytest.mark.parametrize("broken", ["no metadata", "link at metadata", "link at a place", "link to the set"])
def test_the_first_set_counts_whole_or_not(tmp_path, broken):
    first = tmp_path / "pathfinder32" / HARD
    write_dataset(tmp_path / "pathfinder" / "pathfinder32" / HARD)
    if broken in ("no metadata", "link at metadata"):
        shutil.rmtree(write_dataset(first) / "metadata")
    link = {
        "link at metadata": first / "metadata",
        "link at a place": tmp_path / "pathfinder" / "pathfinder",
        "link to the set": first,
    }.get(broken)
    if link is not None:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path / "disk that is not mounted")
    with pytest.raises(DataError, match="no images are listed" if link is None else "a link to what is not"):
        prepare(tmp_path, tmp_path)


def test_a_path_with_dots_behind_a_link_is_that_of_the_folder_it_leads_to(tmp_path):
    """Without its links, it names another folder, in which the set does not lie."""
    write_dataset(tmp_path / "colleague" / "pathfinder128" / HARD, size=128)
    (tmp_path / "colleague" / "below").mkdir()
    here = tmp_path / "lra_release" / "lra_release"
    here.mkdir(parents=True)
    (here / "shared").symlink_to(tmp_path / "colleague" / "below")
    assert copy_in_release(find_dataset(here / "shared" / "..", 128, "hard")) == "unknown"
    write_dataset(here / "pathfinder128" / HARD, size=128)
    assert copy_in_release(find_dataset(here / "shared" / "..", 128, "hard")) == "unknown"


def png(width=32, height=32, depth=8, colour=0, body=None):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = zlib.compress(bytes(33 * 32)) if body is None else body
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def two_headers():
    """A second header, of 60,000 x 60,000 pixels, behind the first."""
    small, huge = png(), png(60_000, 60_000)
    return small[:33] + huge[8:33] + small[33:]


def no_data():
    start, end = png().index(b"IDAT") - 4, png().index(b"IEND") - 4
    return png()[:start] + png()[end:]


def test_the_hand_made_png_is_sound(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    assert (read_png(tmp_path / "a.png", 32) == np.zeros((32, 32))).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"GIF89a" + bytes(60), "not a PNG"),
        (png()[:40], "does not end like a PNG"),
        (png()[:-20], "does not end like a PNG"),
        (png(body=b"not deflate"), "damaged PNG"),
        (png(body=zlib.compress(bytes(10))), "damaged PNG"),
        (png(depth=16), "16 bits"),
        (png(colour=2), "colour type 2"),
        (png(width=64, height=64), "64 x 64 pixels, expected 32 x 32"),
        (png(width=50_000, height=50_000), "50000 x 50000 pixels"),
        (png() + bytes(1 << 20), "larger than"),
        (two_headers(), "not one header"),
        (no_data(), "not one header"),
        (png() + b"more", "does not end like a PNG"),
        (png().replace(b"IDATx", b"IDATy"), "damaged PNG"),
    ],
)
def test_a_bad_image_is_named(tmp_path, dataset, content, message):
    file = dataset / "imgs" / "2" / "sample_3.png"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        prepare(tmp_path, tmp_path)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "home").glob("pathfinder-*"))


def test_a_missing_image_is_named(tmp_path, dataset):
    (dataset / "imgs" / "2" / "sample_3.png").unlink()
    with pytest.raises(DataError, match=r"sample_3\.png: No such file"):
        prepare(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"imgs/2 sample_0.png 0\n", ":1: expected 11 fields, got 3"),
        ((line(2, 0, 1) + "\n\n" + line(2, 1, 0)).encode(), ":2: expected 11 fields, got 0"),
        (line(2, 0, 2).encode(), ":1: the label must be 0 or 1"),
        (line("../2", 0, 1).encode(), ":1: .* is not the path"),
        (line(2, "0/../../x", 1).encode(), ":1: .* is not the path"),
        (line(0, 0, 1).encode(), "listed twice"),
        (b"\xff\xfe\x00", "neither text nor"),
        (b"\x93NUMPY", "damaged NumPy array"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': '<U9'}", "damaged NumPy array"),
    ],
)
def test_bad_metadata_is_named(dataset, content, message):
    (dataset / "metadata" / "2.npy").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_entries(dataset)


def test_arrays_that_are_not_strings_or_claim_too_much_are_refused(dataset):
    file = dataset / "metadata" / "2.npy"
    for array in (
        np.zeros((3, 11)),
        np.array([["a"]], dtype=object),
        np.array("a"),
        np.asfortranarray([["a", "b"]] * 2),
    ):
        np.save(file, array)
        with pytest.raises(DataError, match="expected rows of strings"):
            read_entries(dataset)
    np.save(file, np.array([["a"] * 11]))
    content = file.read_bytes().replace(b"(1, 11), }   ", b"(11111, 11), }")[:-1]
    file.write_bytes(content.replace(b"(1, 11), }", b"(9, 11), }"))
    with pytest.raises(DataError, match="do not hold"):
        read_entries(dataset)


@pytest.mark.parametrize(
    "content",
    [
        b"\n" * (60 << 20),
        (line(0, 0, 1) + "\n").encode() + b"\n" * (15 << 20) + b"x",
        b"ab " * (5 << 20),
        b"\x93NUMPY\x01\x00v\x00"
        + b"{'descr': '|S1', 'fortran_order': False, 'shape': (1500000, 11), }".ljust(117)
        + b"\n"
        + b"a" * 16_500_000,
    ],
)  # fmt: skip
def test_metadata_that_would_fill_the_memory_is_refused_in_little_of_it(dataset, content):
    (dataset / "metadata" / "2.npy").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"2\.npy"):
        read_entries(dataset)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 << 20


def test_hidden_files_are_no_metadata(tmp_path, dataset):
    (dataset / "metadata" / "._0.npy").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X\xff")
    assert len(read_entries(dataset)) == 30


def test_links_are_followed_under_their_names(tmp_path):
    elsewhere = write_dataset(tmp_path / "disk" / "images" / HARD)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pathfinder32").symlink_to(elsewhere.parent)
    (tmp_path / "direct" / "pathfinder32").mkdir(parents=True)
    (tmp_path / "direct" / "pathfinder32" / HARD).symlink_to(elsewhere)
    for source in (tmp_path / "data", tmp_path / "data" / "pathfinder32" / HARD, tmp_path / "direct"):
        assert len(read_entries(find_dataset(source, 32, "hard"))) == 30
    with pytest.raises(DataError, match="not found"):
        find_dataset(tmp_path / "disk", 32, "hard")


@pytest.mark.parametrize("unpacked", ["lra_release/lra_release", "data/lra_release", "lra_release"])
def test_the_copies_are_told_apart_wherever_the_release_was_unpacked(unpacked, tmp_path):
    """Also in a folder with the name of the release."""
    outer = write_dataset(tmp_path / unpacked / "pathfinder128" / HARD, size=128)
    inner = write_dataset(tmp_path / unpacked / "lra_release" / "pathfinder128" / HARD, size=128)
    assert (copy_in_release(outer), copy_in_release(inner)) == ("outer", "inner")
    (tmp_path / "mine").mkdir()
    for link in (tmp_path / "mine" / "pathfinder128", tmp_path / "pathx"):
        link.symlink_to(outer.parent)
        assert copy_in_release(link / HARD) == "outer"


@pytest.mark.parametrize("places", [
    ("data", "data/lra_release"),  # the first part of the paths is gone, or the inner copy was moved to the top
    ("data",), ("lra_release", ""),
])  # fmt: skip
def test_a_copy_of_which_nothing_or_too_much_tells_is_unknown(places, tmp_path):
    copies = [write_dataset(tmp_path / place / "pathfinder128" / HARD, size=128) for place in places]
    assert [copy_in_release(copy) for copy in copies] == ["unknown"] * len(copies)


@pytest.mark.parametrize("moved", ["big/pathx", "big/pathfinder128", "lra_release_2/pathx"])
@pytest.mark.parametrize("both", [True, False])
def test_a_copy_that_was_moved_is_known_by_the_link_at_its_place(moved, both, tmp_path):
    outer, inner = (tmp_path / place / "pathfinder128" for place in ("lra_release", "lra_release/lra_release"))
    for copy, name in ((outer, "outer"), (inner, "inner")):
        other = inner if copy == outer else outer
        for folder in (copy, other):
            if both or folder == copy:
                write_dataset(folder / HARD, size=128)
        real = tmp_path / moved
        real.parent.mkdir()
        copy.rename(real)
        copy.symlink_to(real)
        assert copy_in_release(copy / HARD) == name
        copy.unlink()
        copy.mkdir()
        (real / HARD).rename(real.parent / HARD)  # the link is of the difficulty alone
        (copy / HARD).symlink_to(real.parent / HARD)
        assert copy_in_release(copy / HARD) == name
        shutil.rmtree(tmp_path / "lra_release")
        shutil.rmtree(real.parent)


def test_a_link_at_the_place_of_one_copy_to_the_other_is_unknown(tmp_path):
    """Whoever moved it knows; both places tell, and not the same."""
    inner = write_dataset(tmp_path / "lra_release" / "lra_release" / "pathfinder128" / HARD, size=128)
    place = tmp_path / "lra_release" / "pathfinder128"
    place.symlink_to(inner.parent)
    assert copy_in_release(place / HARD) == "unknown"
    lone = write_dataset(tmp_path / "disk" / "lra_release" / "pathfinder128" / HARD, size=128)
    (tmp_path / "new" / "lra_release" / "lra_release").mkdir(parents=True)
    doubtful = tmp_path / "new" / "lra_release" / "lra_release" / "pathfinder128"
    doubtful.symlink_to(lone.parent)
    assert copy_in_release(doubtful / HARD) == "unknown", "names disagree"
    write_dataset(doubtful.parent.parent / "pathfinder128" / HARD, size=128)
    assert copy_in_release(doubtful / HARD) == "unknown", "the other beside the link"


def test_the_outer_copy_is_named_in_the_data_and_warned_of(tmp_path, capsys):
    outer = write_dataset(tmp_path / "lra_release" / "pathfinder128" / HARD, size=128)
    data = prepare(tmp_path, outer, name="pathx")
    assert data.manifest.dataset.endswith("outer copy of the release")
    assert f"official reader 1, pathfinder128/{HARD}, outer copy, " in data.manifest.generated_by
    assert "Warning" in capsys.readouterr().err
    write_dataset(tmp_path / "lra_release" / "lra_release" / "pathfinder128" / HARD, size=128)
    inner = prepare(tmp_path / "other", tmp_path, name="pathx")
    assert "outer" not in inner.manifest.dataset
    assert f"official reader 1, pathfinder128/{HARD}, inner copy, " in inner.manifest.generated_by
    assert capsys.readouterr().err == ""


def test_counts_and_folders_must_be_the_expected_ones(tmp_path, dataset):
    with pytest.raises(DataError, match="30 images, expected 200000; --set count=30 admits them"):
        prepare(tmp_path, tmp_path, count=200_000)
    with pytest.raises(DataError, match="pathfinder64"):
        prepare(tmp_path, tmp_path, name="pathfinder64")
    for file in (dataset / "metadata").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="no images are listed"):
        read_entries(dataset)


@pytest.mark.parametrize("changed", ["metadata/10.npy", "imgs/0/sample_3.png"])
def test_a_release_that_changes_while_it_is_read_gives_no_data(tmp_path, dataset, changed, monkeypatch):
    read, file, left = reader.read_png, dataset / changed, [15]

    def read_and_change(path, size):
        left[0] -= 1
        if not left[0]:
            content = file.read_bytes()
            file.unlink()
            file.write_bytes(content)
        return read(path, size)

    monkeypatch.setattr(reader, "read_png", read_and_change)
    with pytest.raises(DataError, match=rf"{file.name}: changed while it was read; prepare the data again"):
        prepare(tmp_path, dataset)


def outcome(call):
    try:
        return call(), ""
    except DataError as error:
        return None, str(error)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=6), cut=st.integers(0, 120))
def test_any_damage_to_an_image_is_an_image_or_one_error(tmp_path, changes, cut):
    content = bytearray(png())
    for place, value in changes:
        content[place % len(content)] = value
    (tmp_path / "a.png").write_bytes(content[: len(content) - cut] if cut < 60 else content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, error = outcome(lambda: read_png(tmp_path / "a.png", 32))
    assert "a.png: " in error if image is None else image.shape == (32, 32)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_metadata_is_entries_or_one_error(tmp_path, data):
    folder = tmp_path / "e"
    (folder / "metadata").mkdir(parents=True, exist_ok=True)
    file = folder / "metadata" / "0.npy"
    np.save(file, np.array([line(0, 0, 1).split()]))
    sound = data.draw(st.sampled_from([file.read_bytes(), line(0, 0, 1).encode(), b"\x93NUMPY\x01\x00"]))
    content = bytearray(sound + data.draw(st.binary(max_size=30)))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=5)):
        content[place % len(content)] = value
    file.write_bytes(content)
    entries, error = outcome(lambda: read_entries(folder))
    assert "metadata" in error if entries is None else all(entry.label in (0, 1) for entry in entries)
