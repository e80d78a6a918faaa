"""The pickles that the code of Nystromformer makes: read without trusting them, and never taken for other data."""

import pickle
from contextvars import Context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lra.data import pickled_rows
from lra.data.dataset import open_prepared
from lra.data.pickled_rows import read_pickled_rows
from lra.data.raw_files import FOLDER
from lra.data.split import SPLITS
from lra.errors import DataError, UsageError
from lra.tasks import get_task, pickles
from lra.trained import check_hidden

COUNTS = {"train": 9, "dev": 4, "test": 5}
STEMS = {
    "listops": "listops",
    "text": "text",
    "retrieval": "retrieval",
    "image": "image",
    "pathfinder": "pathfinder32-curv_contour_length_14",
}


def text_ids(text, length):
    ids = np.frombuffer(text, dtype=np.uint8).astype(np.int32) + 1
    return np.concatenate([ids, np.zeros(length - len(ids), dtype=np.int32)])


def example(task, split, number, brackets=True):
    """A row as the scripts of Nystromformer make it."""
    label = np.array([number % 2], dtype=np.int64)[0]
    if task in ("text", "retrieval"):
        length = 1024 if task == "text" else 4096
        row = {"input_ids_0": text_ids(b"%s %d \x00\xff" % (split.encode(), number), length)}
        return row | ({"input_ids_1": text_ids(b"other", length)} if task == "retrieval" else {}) | {"label": label}
    if task == "listops":
        symbols = [3, 9, 14, *([8] if brackets else [14 - number % 2])]
        return {"input_ids_0": np.array(symbols + [0] * (2048 - len(symbols)), dtype=np.int32), "label": label}
    pixels = np.full(1024, number, dtype=np.int32)
    pixels[-3:] = (255, 0, 0)
    return {"input_ids_0": pixels, "label": number % 2}


def write(folder, task, protocol=4, prefix="lra-", **options):
    folder.mkdir(exist_ok=True)
    for split, count in COUNTS.items():
        rows = [example(task, split, number, **options) for number in range(count)]
        (folder / f"{prefix}{STEMS[task]}.{split}.pickle").write_bytes(pickle.dumps(rows, protocol))
    return folder


def prepare(task, tmp_path, source, **values):
    options = get_task(task).options.model_validate({"source": "nystromformer"} | values)
    return get_task(task).prepare(options, tmp_path / "home", source=source, progress=False)


@pytest.mark.parametrize(("protocol", "prefix"), [(3, "lra-"), (4, "lra-"), (4, "")])
@pytest.mark.parametrize("task", STEMS)
def test_rows_come_back_in_order_and_are_marked(tmp_path, task, protocol, prefix):
    data = prepare(task, tmp_path, write(tmp_path / "folder", task, protocol, prefix))
    assert [len(data.split(name)) for name in SPLITS] == list(COUNTS.values())
    assert "pickles of Nystromformer" in data.manifest.dataset
    assert "9 / 4 / 5 examples" in data.manifest.dataset
    assert set(data.manifest.sources) == {f"{prefix}{STEMS[task]}.{split}.pickle" for split in COUNTS}
    assert open_prepared(data.path, verify=True).digest == data.digest
    split = data.split("validation")
    assert split.labels.tolist() == [0, 1, 0, 1]
    if task in ("text", "retrieval"):
        assert [split.tokens_of(n).tobytes() for n in range(4)] == [b"dev %d \x00\xff" % n for n in range(4)]
        assert split.token_offset == 1
    if task == "retrieval":
        assert split.tokens_of(2, 1).tobytes() == b"other"
    if task in ("image", "pathfinder"):
        assert split.tokens_of(3)[[0, 1020, 1021, 1023]].tolist() == [3, 3, 255, 0]  # black at the end is no padding
    if task == "listops":
        assert split.tokens_of(0).tolist() == [3, 9, 14, 8]


def test_a_set_of_links_to_nothing_is_not_passed_over_for_another(tmp_path):
    folder = write(tmp_path / "folder", "listops", prefix="")
    for split in COUNTS:
        (folder / f"lra-{STEMS['listops']}.{split}.pickle").symlink_to(tmp_path / "unmounted" / split)
    with pytest.raises(DataError, match=r"\.train\.pickle: a link to what is not there"):
        prepare("listops", tmp_path, folder)


def test_brackets_are_counted_or_missed(tmp_path):
    with_brackets = prepare("listops", tmp_path, write(tmp_path / "a", "listops"))
    assert ", 18 close brackets, " in with_brackets.manifest.dataset
    without = prepare("listops", tmp_path / "b", write(tmp_path / "old", "listops", brackets=False))
    assert ", without close brackets, " in without.manifest.dataset
    task = get_task("listops")
    assert task.show(without, "test", 1) == ("test example 1: label 1, symbols as numbered in the file\n3 9 14 13")
    with pytest.raises(UsageError, match="do not say which number is which symbol"):
        task.encode(["[MAX 1 2 ]"], task.options.model_validate({"source": "nystromformer"}))


def test_they_never_stand_for_the_data_of_another_source(tmp_path):
    folder = write(tmp_path / "folder", "text")
    data = prepare("text", tmp_path, folder)
    assert (tmp_path / "home" / "sources" / "text-nystromformer").resolve() == folder
    other = get_task("text").options()
    with pytest.raises(DataError, match="neither prepared nor kept"):
        get_task("text").prepare(other, tmp_path / "home", progress=False)
    shorter = prepare("text", tmp_path, None, max_length=3)
    assert shorter.split("test").tokens_of(0).tobytes() == b"tes"
    assert shorter.path != data.path
    with pytest.raises(UsageError, match="source nystromformer does not take seed, max_train"):
        prepare("text", tmp_path, folder, seed=1, max_train=5)
    with pytest.raises(DataError, match="Read them with: lra-data prepare image --set source=nystromformer --from"):
        prepare("image", tmp_path, None)
    with pytest.raises(DataError, match=r"lra-pathfinder128-curv_contour_length_14.train.pickle not found"):
        prepare("pathx", tmp_path, folder)


def spoiled(task, **changes):
    rows = [example(task, "dev", number) for number in range(3)]
    rows[2] |= changes
    return pickle.dumps(rows, 4)


class Hostile:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/owned-by-a-pickle",)


@pytest.mark.parametrize(
    ("task", "content", "message"),
    [
        ("text", spoiled("text", label=2), "row 2: label 2 and 1 documents are not of this task"),
        ("text", spoiled("text", input_ids_1=text_ids(b"x", 9)), "row 2: label 0 and 2 documents are not of this"),
        ("text", spoiled("text", input_ids_0=np.array([5, 0, 7], np.int32)), "row 2: ids outside 1 to 256, or none"),
        ("text", spoiled("text", input_ids_0=np.array([257], np.int32)), "row 2: ids outside 1 to 256, or none"),
        ("text", spoiled("text", input_ids_0=np.zeros(4, np.int32)), "row 2: ids outside 1 to 256, or none"),
        ("listops", spoiled("listops", input_ids_0=np.array([16], np.int32)), "row 2: numbers outside 1 to 15"),
        (
            "listops",
            spoiled("listops", input_ids_0=np.full(2000, 3)),
            "row 2: 2,000 tokens, more than the 1,999",
        ),
        ("image", spoiled("image", input_ids_0=np.zeros(1023, np.int32)), "row 2: not 1,024 gray levels of 0 to 255"),
        ("image", spoiled("image", input_ids_0=np.full(1024, 256)), "row 2: not 1,024 gray levels of 0 to 255"),
        (
            "text",
            spoiled("text", input_ids_0=np.ones(4)),
            "not as the pickles of Nystromformer: an array of 'f8'",
        ),
        ("text", spoiled("text", input_ids_0=np.ones((2, 2), np.int32)), "an array of another form"),
        ("text", spoiled("text", label="1"), "the label is no whole number"),
        ("text", spoiled("text", more=1), "no dictionary of input_ids_0, perhaps input_ids_1, and label"),
        ("text", spoiled("text", label=Hostile()), "posix.system is called"),
        ("text", pickle.dumps([Hostile()], 4), "posix.system is called"),
        ("text", pickle.dumps({"a": 1}, 4), "no list"),
        ("text", pickle.dumps([[1]], 4), "a list inside the list"),
        ("text", spoiled("text")[:-300], "damaged"),
        ("text", b"", "damaged"),
        ("text", b"<html>", "damaged"),
        ("text", b"\x80\x04B\xff\xff\xff\x7f", "a piece of 2,147,483,647 bytes"),
        ("text", b"\x80\x04" + b"]" * 200_000, "too much that waits or is remembered"),
        ("text", b"\x80\x04" + b"(" * 200_000, "too much that waits or is remembered"),
    ],
)
def test_other_files_are_one_line_and_run_nothing(tmp_path, task, content, message):
    folder = write(tmp_path / "folder", task)
    file = folder / f"lra-{STEMS[task]}.dev.pickle"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        prepare(task, tmp_path, folder)
    assert str(caught.value).startswith(f"{file}: row ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "home").iterdir()) == []


def test_memory_stays_small_whatever_the_length(tmp_path, monkeypatch):
    rows = [example("retrieval", "train", number) for number in range(3_000)]
    file = tmp_path / "x.pickle"
    file.write_bytes(pickle.dumps(rows, 4))
    assert sum(1 for _ in read_pickled_rows(file)) == 3_000
    monkeypatch.setattr(pickled_rows, "MEMO_LIMIT", 30)  # names and types only, not what each row has
    assert sum(1 for _ in read_pickled_rows(file)) == 3_000


@settings(deadline=None, max_examples=200)
@given(position=st.integers(0, 20_000), value=st.integers(0, 255), cut=st.booleans())
def test_any_damage_is_rows_or_one_line(tmp_path_factory, position, value, cut):
    content = bytearray(spoiled("text"))
    position %= len(content)
    content[position] = value
    file = tmp_path_factory.mktemp("fuzz") / "x.pickle"
    file.write_bytes(content[: position + 1] if cut else content)
    message = ""
    try:
        assert all(isinstance(label, int) for label, _ in read_pickled_rows(file))
    except DataError as error:
        message = str(error)
    assert "\n" not in message


def test_a_validation_that_is_the_test_split_is_named_and_pretrains_nothing(tmp_path):
    """As the text of that code is."""
    source = write(tmp_path / "folder", "text")
    (source / "lra-text.dev.pickle").write_bytes((source / "lra-text.test.pickle").read_bytes())
    data = prepare("text", tmp_path, source)
    assert data.manifest.dataset.endswith("9 / 5 / 5 examples, validation is the test split")
    with pytest.raises(UsageError, match=r"pretrain.share: 100% of the test examples .* in its validation split"):
        check_hidden(data)
    check_hidden(prepare("text", tmp_path / "other", write(tmp_path / "sound", "text")))


def test_a_training_split_that_has_the_test_examples_pretrains_nothing(tmp_path):
    source = write(tmp_path / "folder", "text")
    (source / "lra-text.train.pickle").write_bytes((source / "lra-text.test.pickle").read_bytes())
    with pytest.raises(UsageError, match=r"pretrain.share: 100% of the test examples .* in its train split"):
        check_hidden(prepare("text", tmp_path, source))


def test_test_examples_in_training_are_named(tmp_path):
    source = write(tmp_path / "folder", "text")
    (source / "lra-text.train.pickle").write_bytes((source / "lra-text.test.pickle").read_bytes())
    assert prepare("text", tmp_path, source).manifest.dataset.endswith("100% of the test examples in train")


@pytest.mark.parametrize("place", ["elsewhere", "home"])
def test_files_that_are_read_again_without_being_named_are_told(place, tmp_path, capsys):
    """Also where they lie in the data folder; what was fetched into it needs no line."""
    (tmp_path / place).mkdir()
    source = write(tmp_path / place / "folder", "text")
    prepare("text", tmp_path, source, max_length=100)
    assert capsys.readouterr().err == ""
    prepare("text", tmp_path, None, max_length=50)
    assert f"text: reading {source}, which was read before; --from names another." in capsys.readouterr().err
    fetched = tmp_path / "home" / FOLDER / "text-of-a-server"
    source.rename(fetched)
    prepare("text", tmp_path, fetched, max_length=40)
    prepare("text", tmp_path, None, max_length=30)
    assert "read before" not in capsys.readouterr().err


def test_data_that_another_process_made_meanwhile_from_other_files_is_not_taken(tmp_path, monkeypatch):
    read = pickles.read_pickles
    source, other = write(tmp_path / "folder", "text"), write(tmp_path / "other", "text", prefix="")

    def read_and_meet_another(*arguments, **keywords):
        monkeypatch.setattr(pickles, "read_pickles", read)
        Context().run(prepare, "text", tmp_path, other)
        return read(*arguments, **keywords)

    monkeypatch.setattr(pickles, "read_pickles", read_and_meet_another)
    with pytest.raises(DataError, match="another process made it from other files meanwhile"):
        prepare("text", tmp_path, source)
    assert [entry.resolve() for entry in (tmp_path / "home" / "sources").iterdir()] == [other]


def test_files_that_change_while_they_are_read_give_no_data(tmp_path, monkeypatch):
    read = pickles.read_pickles

    def read_and_change(files, *arguments, **keywords):
        splits = read(files, *arguments, **keywords)
        files["test"].write_bytes(b"other rows")
        return splits

    monkeypatch.setattr(pickles, "read_pickles", read_and_change)
    with pytest.raises(DataError, match="changed while it was read"):
        prepare("listops", tmp_path, write(tmp_path / "rows", "listops"))


def test_pickles_that_were_written_one_behind_the_other_are_refused(tmp_path):
    source = write(tmp_path / "folder", "text")
    file = source / "lra-text.train.pickle"
    file.write_bytes(2 * file.read_bytes())
    with pytest.raises(DataError, match="more behind the list"):
        prepare("text", tmp_path, source)


def test_files_of_two_sets_in_a_folder_are_not_mixed(tmp_path):
    folder = write(tmp_path / "folder", "listops", prefix="")
    (folder / "lra-listops.train.pickle").write_bytes((folder / "listops.train.pickle").read_bytes())
    with pytest.raises(DataError, match=r"holds files of two sets, lra-listops\.\* and listops\.\*"):
        prepare("listops", tmp_path, folder)
