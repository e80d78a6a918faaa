"""Folders of parquet files, as Hugging Face has IMDb and CIFAR-10."""

import hashlib
import io
import os
import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from lra.data import parquet
from lra.data.split import SPLITS
from lra.errors import DataError, UsageError
from lra.tasks import get_task
from tests.lra.data.archive_cases import cifar_arrays, cifar_members, review_members, tar_bytes

pyarrow = pytest.importorskip("pyarrow", reason="the extra export is not installed")

NAME = "{}-00000-of-00001.parquet"
REVIEWS = {
    "train": [(f"train {n} <br /> caf\u00e9", n % 2) for n in range(10)],
    "test": [(f"test {n}", n % 2) for n in range(4)],
}


def write(folder, columns):
    """Write `train` and `test`; columns is a mapping from the split to its columns."""
    from pyarrow import parquet as files

    folder.mkdir(parents=True, exist_ok=True)
    for split, table in columns.items():
        files.write_table(pyarrow.table(table), folder / NAME.format(split))
    return folder


def reviews(**changes):
    return {
        split: {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
        for split, rows in (REVIEWS | changes).items()
    }


def png(pixels):
    """Return the PNG of a row of CIFAR-10: planes one after another."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.reshape(3, 32, 32).transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def images():
    """The same images as the archive of `cifar_members`."""
    parts = [cifar_arrays(4, seed) for seed in range(6)]
    train = [np.concatenate(arrays) for arrays in zip(*parts[:5], strict=True)]
    return {
        split: {"img": [{"bytes": png(row), "path": None} for row in rows], "label": labels.tolist()}
        for split, (rows, labels) in (("train", train), ("test", parts[5]))
    }


def prepare(task, tmp_path, source, **values):
    sizes = {"train_reviews": 10, "test_reviews": 4} if task == "text" else {"train_images": 20, "test_images": 4}
    options = get_task(task).options.model_validate(sizes | values)
    return get_task(task).prepare(options, tmp_path / "home", source=source, progress=False)


@pytest.mark.parametrize("below", ["", "plain_text"])
def test_reviews_keep_their_order_and_say_so(tmp_path, below):
    write(tmp_path / "imdb" / below, reviews())
    data = prepare("text", tmp_path, tmp_path / "imdb")
    test = data.split("test")
    assert [test.tokens_of(n).tobytes().decode() for n in range(4)] == [text for text, _ in REVIEWS["test"]]
    assert test.labels.tolist() == [0, 1, 0, 1]
    both = [*data.split("train").labels, *data.split("validation").labels]
    assert sorted(both) == [0] * 5 + [1] * 5
    assert data.manifest.dataset.endswith(", in the order of the parquet files")
    file = tmp_path / "imdb" / below / NAME.format("train")
    assert data.manifest.sources[file.name] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(data.manifest.sources) == 2
    archive = tmp_path / "aclImdb_v1.tar.gz"
    archive.write_bytes(tar_bytes(review_members()))
    assert "parquet" not in prepare("text", tmp_path / "other", archive).manifest.dataset


@pytest.mark.parametrize("task", ["image", "image_continuous"])
def test_images_are_those_of_the_archive(tmp_path, task):
    folder = write(tmp_path / "cifar10" / "plain_text", images()).parent
    data = prepare(task, tmp_path, folder)
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(tar_bytes(cifar_members()))
    other = prepare(task, tmp_path / "other", archive)
    assert data.digest == other.digest  # here the order is the same
    assert data.manifest.dataset == f"{other.manifest.dataset}, in the order of the parquet files"
    assert [len(data.split(name)) for name in SPLITS] == [18, 2, 4]


def spoiled(name, value):
    columns = images()
    columns["test"][name][2] = value
    return columns


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ("text", reviews(test=[("a", 0), ("", 1)]), "row 1 is not a review with the label 0 or 1"),
        ("text", reviews(test=[("a", 2), ("b", 1)]), "row 0 is not a review with the label 0 or 1"),
        ("text", reviews(test=[(None, 1)]), "row 0 is not a review with the label 0 or 1"),
        ("text", reviews(test=[("a", 1)]), "1 reviews in aclImdb/test, expected 4; --set test_reviews=1 admits them"),
        ("text", reviews() | {"test": {"review": ["a"], "label": [1]}}, "no column text; there are review, label"),
        ("image", spoiled("label", 10), "row 2: a label is outside 0 to 9"),
        ("image", spoiled("label", None), "row 2: a label is outside 0 to 9"),
        ("image", spoiled("img", {"bytes": b"\x89PNG", "path": None}), "row 2: a damaged image, or none"),
        ("image", spoiled("img", None), "row 2: a damaged image, or none"),
        ("image", images() | {"test": {"img": ["x"], "label": [1]}}, "row 0: a damaged image, or none"),
    ],
)
def test_other_rows_are_one_line(tmp_path, task, columns, message):
    folder = write(tmp_path / "folder", columns)
    with pytest.raises(DataError) as caught:
        prepare(task, tmp_path, folder)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)


def test_images_of_another_size_are_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (33, 32)).save(buffer, "PNG")
    folder = write(tmp_path / "folder", spoiled("img", {"bytes": buffer.getvalue(), "path": None}))
    with pytest.raises(DataError, match="row 2: not an RGB image of 32 x 32 pixels"):
        prepare("image", tmp_path, folder)


@pytest.mark.parametrize("before", [[], [(b"tEXt", b"a\0b")]])
def test_images_of_16_bits_per_colour_are_refused(before, tmp_path):
    """They would be cut to 8 bits without a word."""
    rows = zlib.compress(32 * (b"\0" + 32 * b"\x12\x34\x56\x78\x9a\xbc"))
    parts = [*before, (b"IHDR", struct.pack(">IIBBBBB", 32, 32, 16, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
              for name, data in parts]  # fmt: skip
    png = b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    assert Image.open(io.BytesIO(png)).mode == "RGB"
    folder = write(tmp_path / "folder", spoiled("img", {"bytes": png, "path": None}))
    with pytest.raises(DataError, match="row 2: not an RGB image of 32 x 32 pixels, of 8 bits per colour"):
        prepare("image", tmp_path, folder)


def test_a_damaged_file_a_large_one_and_none_are_one_line(tmp_path, monkeypatch):
    folder = write(tmp_path / "folder", reviews())
    file = folder / NAME.format("test")
    whole = file.read_bytes()
    for content in (b"", b"PAR1", whole[:-9], whole[: len(whole) // 2] + b"PAR1"):
        file.write_bytes(content)
        with pytest.raises(DataError) as caught:
            prepare("text", tmp_path, folder)
        assert str(caught.value).startswith(str(file))
        assert "\n" not in str(caught.value)
    file.write_bytes(whole)
    monkeypatch.setattr(parquet, "SIZE_LIMIT", 100)
    with pytest.raises(DataError, match="bytes once decompressed, more than the 100 it may have"):
        prepare("text", tmp_path, folder)
    monkeypatch.undo()
    file.rename(folder / "unsupervised-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"no test-\*.parquet in it; a folder must be of parquet files"):
        prepare("text", tmp_path / "other", folder)


def pipe(path):
    os.mkfifo(path)
    return "a pipe, not a file"


def endless(path):
    path.symlink_to("/dev/full")
    return "a device or socket, not a file"


def gone(path):
    path.symlink_to("gone")
    return "No such file or directory"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("place", [pipe, endless, gone])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, place):
    folder = write(tmp_path / "folder", reviews())
    words = place(folder / "train-1.parquet")
    with pytest.raises(DataError) as caught:
        prepare("text", tmp_path, folder)
    assert str(caught.value) == f"{folder / 'train-1.parquet'}: {words}"


def test_without_pyarrow_the_line_says_what_to_install(tmp_path, monkeypatch):
    folder = write(tmp_path / "folder", reviews())
    monkeypatch.setattr(parquet, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs pyarrow; pip install 'lra-harness\[export\]'"):
        prepare("text", tmp_path, folder)


def test_a_page_whose_checksum_is_wrong_is_not_read(tmp_path):
    from pyarrow import parquet as files

    folder = write(tmp_path / "imdb", reviews())
    file = folder / NAME.format("test")
    files.write_table(pyarrow.table(reviews()["test"]), file, write_page_checksum=True, compression="none")
    content = file.read_bytes()
    assert content.count(b"test 1") > 0
    file.write_bytes(content.replace(b"test 1", b"test 7"))
    with pytest.raises(DataError, match=re.escape(str(file))):
        prepare("text", tmp_path, folder)


def test_a_copy_of_a_file_in_place_of_another_and_files_of_two_folders_are_refused(tmp_path):
    folder = write(tmp_path / "imdb", reviews())
    first = folder / NAME.format("train")
    first.rename(folder / "train-00000-of-00002.parquet")
    (folder / "train-00001-of-00002.parquet").write_bytes((folder / "train-00000-of-00002.parquet").read_bytes())
    with pytest.raises(DataError, match=r"train-00001-of-00002\.parquet: a copy of train-00000-of-00002\.parquet"):
        prepare("text", tmp_path, folder, train_reviews=20)
    (folder / "plain_text").mkdir()
    (folder / NAME.format("test")).rename(folder / "plain_text" / NAME.format("test"))
    with pytest.raises(DataError, match="lie in several folders"):
        prepare("text", tmp_path, folder)


def test_an_image_whose_checksum_is_wrong_is_not_read(tmp_path):
    smooth = np.broadcast_to(np.arange(32, dtype=np.uint8), (3, 32, 32)).reshape(-1)
    columns = images()
    data = bytearray(png(smooth))
    start = data.index(b"IDAT")  # its length stands before it, its checksum behind it
    data[start + 4 + int.from_bytes(data[start - 4 : start], "big")] ^= 1
    columns["test"]["img"][0] = {"bytes": bytes(data), "path": None}
    with pytest.raises(DataError, match="row 0: a damaged image"):
        prepare("image", tmp_path, write(tmp_path / "cifar", columns))
