"""The Text task on tiny archives in the official layout."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lra.data.split import SPLITS
from lra.errors import DataError, UsageError
from lra.tasks import get_task
from lra.tasks import text as text_module
from tests.lra.data.archive_cases import link, review_members, tar_bytes

TASK = get_task("text")
SMALL = {"train_reviews": 10, "test_reviews": 4}


def options(**values):
    return TASK.options.model_validate(SMALL | values)


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "reviews"
    file.write_bytes(tar_bytes(review_members()))
    return file


def prepare(tmp_path, source, **values):
    return TASK.prepare(options(**values), tmp_path / "home", source=source, progress=False)


def texts(split):
    return [split.tokens_of(index).tobytes() for index in range(len(split))]


def refused(tmp_path, content, **values):
    file = tmp_path / "bad"
    file.write_bytes(content)
    home = tmp_path / "bad-home"
    with pytest.raises(DataError) as caught:
        TASK.prepare(options(**values), home, source=file, progress=False)
    assert "\n" not in str(caught.value)
    assert list(home.iterdir()) == []
    return str(caught.value)


def test_reviews_are_bytes_and_labels_are_the_folders(tmp_path, source):
    data = prepare(tmp_path, source)
    assert [len(data.split(name)) for name in SPLITS] == [9, 1, 4]
    assert data.split("train").token_offset == 1
    for name in SPLITS:
        split = data.split(name)
        for text, label in zip(texts(split), split.labels, strict=True):
            assert text.split()[1] == (b"neg", b"pos")[label]
            assert text.endswith("<br /> caf\u00e9".encode())
    assert data.manifest.baselines["chance"] == 50.0
    assert data.manifest.sources == {source.name: hashlib.sha256(source.read_bytes()).hexdigest()}


def test_held_out_reviews_are_no_training_reviews_and_the_seed_draws_them(tmp_path, source):
    drawn = {}
    for seed in range(6):
        data = prepare(tmp_path, source, seed=seed)
        train, validation = texts(data.split("train")), texts(data.split("validation"))
        assert len(set(train) | set(validation)) == 10
        assert texts(data.split("test")) == texts(prepare(tmp_path, source).split("test"))
        drawn[seed] = validation
    assert len(set(map(tuple, drawn.values()))) > 1


def test_validation_on_the_test_split_is_a_named_switch(tmp_path, source):
    data = prepare(tmp_path, source, validation="test")
    assert texts(data.split("validation")) == texts(data.split("test"))
    assert len(data.split("train")) == 10
    assert "validation is the test split" in data.manifest.dataset
    small = prepare(tmp_path, source, validation="test", max_validation=2, max_test=2)
    assert texts(small.split("validation")) == texts(small.split("test"))


def test_reviews_are_cut_from_the_end(tmp_path, source):
    data = prepare(tmp_path, source, max_length=5)
    assert set(texts(data.split("train"))) == {b"train"}
    assert "first 5 bytes" in data.manifest.dataset


def test_the_order_of_the_archive_does_not_matter(tmp_path, source):
    shuffled = tmp_path / "shuffled"
    shuffled.write_bytes(tar_bytes(review_members()[::-1], "w:xz"))
    other = TASK.prepare(options(), tmp_path / "other", source=shuffled, progress=False)
    assert other.digest == prepare(tmp_path, source).digest


def test_samples_are_drawn_and_named(tmp_path, source):
    data = prepare(tmp_path, source, max_train=3, max_test=2)
    assert [len(data.split(name)) for name in SPLITS] == [3, 1, 2]
    assert "at most train 3, test 2" in data.manifest.dataset
    assert set(texts(data.split("train"))) <= set(texts(prepare(tmp_path, source).split("train")))


def test_a_source_named_once_serves_other_editions(tmp_path, source):
    prepare(tmp_path, source)
    assert prepare(tmp_path, None, max_length=7).manifest.splits["train"].max_length == 7
    source.unlink()
    with pytest.raises(DataError, match="neither prepared nor kept"):
        prepare(tmp_path, None, max_length=8)


def test_missing_data_is_explained_in_three_lines(tmp_path):
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, None)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "aclImdb_v1.tar.gz" in lines[0]
    assert "lra-data fetch text" in lines[1]
    assert "lra-data prepare text --from FILE" in lines[2]
    assert caught.value.exit_code == 3


def test_show_escapes_what_a_terminal_must_not_see(tmp_path):
    members = review_members()
    members[-1] = (members[-1][0], b"\x1b[31mred\xff\x00 end")
    file = tmp_path / "reviews"
    file.write_bytes(tar_bytes(members))
    data = prepare(tmp_path, file)
    shown = TASK.show(data, "test", 3)
    assert "label 1 (positive)" in shown
    assert r"\x1b[31mred\xff\x00 end" in shown
    with pytest.raises(UsageError, match="0 to 3"):
        TASK.show(data, "test", 4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda members: members[:-1], "3 reviews in aclImdb/test, expected 4"),
        (lambda members: [], "0 reviews in aclImdb/train"),
        (lambda members: [*members, link("aclImdb/train/pos/99_9.txt")], "link"),
        (lambda members: [*members, ("/etc/passwd", b"")], "leads out"),
        (lambda members: [*members, ("../passwd", b"")], "leads out"),
        (lambda members: [*members, members[-1]], "twice"),
        (lambda members: [*members, ("aclImdb/test/pos/1_8.txt", b"x")], "twice"),
        (lambda members: [*members, ("aclImdb/test/pos/77_8.txt", b"")], "empty review"),
        (lambda members: [*members, ("aclImdb/test/pos/77_8.txt", bytes(2 << 20))], "more than"),
    ],
)
def test_wrong_archives_are_one_line_and_leave_nothing(tmp_path, spoil, message):
    assert message in refused(tmp_path, tar_bytes(spoil(review_members())))


def test_truncated_archives_leave_nothing(tmp_path):
    whole = tar_bytes(review_members())
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        refused(tmp_path, whole[:length])


@settings(deadline=None, max_examples=40)
@given(reviews=st.lists(st.binary(min_size=1, max_size=40), min_size=14, max_size=14))
def test_any_bytes_come_back(tmp_path_factory, reviews):
    folder = tmp_path_factory.mktemp("any")
    members = [(name, review) for (name, _), review in zip(review_members()[2:], reviews, strict=True)]
    (folder / "reviews").write_bytes(tar_bytes(members, "w"))
    data = prepare(folder, folder / "reviews")
    kept = [text for name in SPLITS for text in texts(data.split(name))]
    assert sorted(kept) == sorted(reviews)
    assert np.concatenate([data.split(name).tokens for name in SPLITS]).dtype == np.uint8


def test_an_archive_that_is_replaced_while_it_is_read_gives_no_data(tmp_path, source, monkeypatch):
    read = text_module.read_reviews

    def read_and_replace(place, *arguments, **keywords):
        reviews = read(place, *arguments, **keywords)
        (tmp_path / "new").write_bytes(b"another archive")
        (tmp_path / "new").replace(place)
        return reviews

    monkeypatch.setattr(text_module, "read_reviews", read_and_replace)
    with pytest.raises(DataError, match="reviews: changed while it was read"):
        prepare(tmp_path, source)
