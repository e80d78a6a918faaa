"""The reader of the official ListOps files, well formed and otherwise."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lra.errors import DataError
from lra.tasks.listops import reader
from lra.tasks.listops.reader import read_split
from lra.tasks.listops.task import ListOps, ListOpsOptions
from lra.tasks.listops.vocabulary import CLOSE, WORDS

SHORT = {"min_length": 11, "max_length": 63, "max_depth": 4, "max_args": 5}
TINY = {**SHORT, "train": 60, "validation": 20, "test": 20}
FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ListOps().prepare(ListOpsOptions(**TINY), tmp_path_factory.mktemp("home"), progress=False)


def official_source(tokens):
    """Write a tree as the released files do: brackets nested two by two, `( ( ( [MAX 1 ) 2 ) ] )`."""
    open_texts = []
    for token in tokens:
        if token < CLOSE:
            open_texts.append(WORDS[token])
            continue
        text = f"( {open_texts.pop()} ] )" if token == CLOSE else WORDS[token]
        if not open_texts:
            return text
        open_texts[-1] = f"( {open_texts[-1]} {text} )"
    raise AssertionError("not a tree")


@pytest.fixture
def official(data, tmp_path):
    """A folder with the three files, holding the examples of `data`."""
    folder = tmp_path / "listops-1000"
    folder.mkdir()
    for name, file in FILES.items():
        split = data.split(name)
        rows = [f"{official_source(split.tokens_of(i))}\t{split.labels[i]}" for i in range(len(split))]
        (folder / file).write_text("\n".join(["Source\tTarget", *rows]) + "\n")
    return folder


OFFICIAL_TINY = ListOpsOptions(source="official", train=60, validation=20, test=20, min_length=11, max_length=63)


def read(official, options=OFFICIAL_TINY):
    return ListOps().prepare(options, official.parent / "home", source=official, progress=False)


def test_official_files_give_the_same_arrays_as_the_trees_in_them(data, official):
    assert "( ( " in (official / "basic_test.tsv").read_text()
    assert read(official).digest == data.digest


@pytest.mark.parametrize(
    "below",
    [".", "listops-1000", "lra_release/listops-1000", "lra_release/lra_release/listops-1000", "listops/listops"],
)
def test_a_folder_above_is_searched_where_the_release_has_the_files(data, official, tmp_path, below):
    folder = tmp_path / "top" / below
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(official)
    (official / "._basic_train.tsv").write_bytes(b"Mac OS X")
    assert read(tmp_path / "top").digest == data.digest


def test_copies_with_short_names_are_read_and_digests_name_the_files(data, official):
    long, short = read(official), official.parent / "kaggle" / "listops" / "listops"
    short.mkdir(parents=True)
    for name, copy in (("basic_train", "train"), ("basic_val", "val"), ("basic_test", "test")):
        (short / f"{copy}.tsv").write_bytes((official / f"{name}.tsv").read_bytes())
    options = OFFICIAL_TINY
    copied = ListOps().prepare(options, official.parent / "other", source=short.parents[1], progress=False)
    assert copied.digest == long.digest == data.digest
    assert set(long.manifest.sources) == {"basic_train.tsv", "basic_val.tsv", "basic_test.tsv"}
    assert set(copied.manifest.sources) == {"train.tsv", "val.tsv", "test.tsv"}
    assert set(copied.manifest.sources.values()) == set(long.manifest.sources.values())


def test_crlf_is_accepted(data, official):
    for file in official.iterdir():
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert read(official).digest == data.digest


def test_a_missing_last_line_end_is_accepted(data, official):
    file = official / "basic_test.tsv"
    file.write_bytes(file.read_bytes().removesuffix(b"\n"))
    assert read(official).digest == data.digest


GOOD = b"( ( ( [MAX 1 ) 2 ) ] )\t2"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"( ( ( [MAX 1 ) 2 ) ] )\t1", "the label is 1, but the value of the tree is 2"),
        (b"( ( ( [MAX 1 ) 2 ) ] )", "expected 2 fields separated by a tab, got 1"),
        (b"( ( ( [MAX 1 ) 2 ) ] )\t2\t", "expected 2 fields separated by a tab, got 3"),
        (b"( ( ( [MAX 1 ) 2 ) ] )\t10", "the label must be 0 to 9, got '10'"),
        (b"( ( ( [MAX 1 ) 2 ) ] )\t", "the label must be 0 to 9, got ''"),
        (b"( ( ( [MAX 1 ) 2 ) ] )\t2 ", "the label must be 0 to 9"),
        (b"( ( ( [MAX 1 ) 12 ) ] )\t2", "'12' is not a ListOps token"),
        (b"( ( ( [MEAN 1 ) 2 ) ] )\t2", r"'\[MEAN' is not a ListOps token"),
        (b"( ( ( [MAX 1 ) 2 ) \x00 ] )\t2", r"'\\x00' is not a ListOps token"),
        (b"( ( ( [MAX 1 ) 2 ) \xff\xfe ] )\t2", r"'\\xff\\xfe' is not a ListOps token"),
        (b'"( ( ( [MAX 1 ) 2 ) ] )\t2', "is not a ListOps token"),
        (b"( ( ( [MAX 1\r) 2 ) ] )\t2", "is not a ListOps token"),
        (b"( ( ( [MAX 1 ) \xe2\x80\xa8 2 ) ] )\t2", "is not a ListOps token"),
        (b"( ( )\t2", "no tokens"),
        (b"", "expected 2 fields"),
        (b"( ( ( [MAX 1 ) 2 )\t2", "the brackets do not enclose exactly one tree"),
        (b"[MAX 1 2 ] ]\t2", "the brackets do not enclose exactly one tree"),
        (b"[MAX ]\t2", "the brackets do not enclose exactly one tree"),
        (b"x" * 5_000_000 + b"\t2", r"'x{40}'\.\.\. is not a ListOps token"),
    ],
)
def test_a_malformed_row_is_one_line_with_its_place(official, row, message):
    (official / "basic_val.tsv").write_bytes(b"\n".join([b"Source\tTarget", GOOD, GOOD, row, GOOD, b""]))
    with pytest.raises(DataError, match=rf"basic_val\.tsv:4: .*{message}") as caught:
        read(official)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert not list(official.parent.rglob("*.npy"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the header must be 'Source<TAB>Target', got ''"),
        (b"Source,Target\n" + GOOD, "the header must be"),
        (GOOD + b"\n", "the header must be"),
        (b"Source\tTarget\n", "no rows after the header"),
        (b"\x1f\x8b\x08" + bytes(50), "the header must be"),
    ],
)
def test_a_file_that_is_something_else_is_one_line(official, content, message):
    (official / "basic_train.tsv").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(official)
    assert "\n" not in str(caught.value)


def test_row_counts_are_the_released_ones_unless_told_otherwise(official):
    with pytest.raises(DataError, match=r"basic_train.tsv: 60 rows, expected 96000; --set train=60 admits them"):
        read(official, ListOpsOptions(source="official", min_length=11))


def test_lengths_are_the_released_ones_unless_told_otherwise(official):
    options = ListOpsOptions(source="official", train=60, validation=20, test=20)
    with pytest.raises(DataError, match=r"basic_train.tsv:2: \d+ tokens, not 501 to 1999"):
        read(official, options)


def test_missing_files_are_told_in_three_lines(official):
    (official / "basic_test.tsv").unlink()
    for source in (official, None):
        with pytest.raises(DataError, match=r"basic_test\.tsv not found") as caught:
            ListOps().prepare(OFFICIAL_TINY, official.parent / "home", source=source)
        assert str(caught.value).count("\n") == 2
        assert "lra-data prepare listops" in str(caught.value)


def test_another_set_below_does_not_stand_in_for_one_that_is_not_whole(official):
    """Be it that a file is missing, or on a disk that is not mounted."""
    shutil.copytree(official, official / "listops-1000")
    (official / "basic_test.tsv").unlink()
    with pytest.raises(DataError, match=r"basic_test\.tsv not found"):
        read(official, OFFICIAL_TINY)
    (official / "basic_test.tsv").symlink_to(official / "unmounted")
    with pytest.raises(DataError, match="a link to what is not there"):
        read(official, OFFICIAL_TINY)


def test_a_link_to_a_folder_that_is_gone_is_told_and_no_other_read(tmp_path):
    (tmp_path / "lra_release").mkdir()
    (tmp_path / "lra_release" / "listops-1000").symlink_to(tmp_path / "unmounted")
    with pytest.raises(DataError, match="lra_release/listops-1000: a link to what is not there"):
        read(tmp_path, OFFICIAL_TINY)


def test_show_writes_the_tree_with_the_value_of_each_node(official, tmp_path):
    row = "( ( ( ( [SM 9 ) ( ( ( ( [MED 1 ) 4 ) 2 ) ] ) ) ( ( ( [MIN 8 ) ( ( ( [MAX 0 ) 3 ) ] ) ) ] ) ) ] )\t4"
    for file in official.iterdir():
        file.write_text(f"Source\tTarget\n{row}\n")
    options = ListOpsOptions(source="official", train=1, validation=1, test=1, min_length=4, max_length=63)
    shown = ListOps().show(read(official, options), "test", 0)
    assert shown.splitlines() == [
        "test example 0: 15 tokens, label 4",
        "[SM  = 4",
        "  9",
        "  [MED  = 2",
        "    1",
        "    4",
        "    2",
        "  [MIN  = 3",
        "    8",
        "    [MAX  = 3",
        "      0",
        "      3",
    ]


HEADER = b"Source\tTarget\n"
PIECES = [
    HEADER,
    GOOD,
    b"\n",
    b"\r\n",
    b"\t",
    b" ",
    b"[MAX ",
    b"[SM ",
    b"] ",
    b"( ",
    b") ",
    b"3 ",
    b"2",
    b"\x00",
    b"\xff",
]
damaged = st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)).map(
    lambda change: HEADER + GOOD[: change[0]] + bytes([change[1]]) + GOOD[change[0] + 1 :] + b"\n"
)


@settings(deadline=None, max_examples=300)
@given(content=st.binary(max_size=80) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join) | damaged)
def test_any_file_gives_true_trees_or_one_line(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("fuzz") / "basic_train.tsv"
    file.write_bytes(content)
    try:
        split = read_split(file, progress=False)
    except DataError as error:
        split, message = None, str(error)
    if split is None:
        assert message.startswith(str(file))
        assert "\n" not in message
        return
    rows = content.split(b"\n")[1:]
    assert [int(row.split(b"\t")[1]) for row in rows if row] == split.labels.tolist()
    for index, row in enumerate(row for row in rows if row):
        kept = [word.decode() for word in row.split(b"\t")[0].translate(None, b"()").split()]
        assert [WORDS[token] for token in split.tokens_of(index)] == kept


@pytest.mark.parametrize("content", [HEADER + GOOD, HEADER + GOOD + b"\r\n" + GOOD])
def test_what_the_fuzzed_files_are_made_of_is_good(tmp_path, content):
    (tmp_path / "x.tsv").write_bytes(content)
    assert set(read_split(tmp_path / "x.tsv", progress=False).labels) == {2}


def test_files_that_change_while_they_are_read_give_no_data(official, monkeypatch):
    """The manifest would else name the digest of a file that was not read."""
    read_one = reader.read_split

    def read_and_change(file, *, progress):
        split = read_one(file, progress=progress)
        file.write_bytes(file.read_bytes() + b"\n")
        return split

    monkeypatch.setattr(reader, "read_split", read_and_change)
    with pytest.raises(DataError, match=r"basic_train.tsv: changed while it was read; prepare the data again$"):
        read(official)
    assert list((official.parent / "home").iterdir()) == []
