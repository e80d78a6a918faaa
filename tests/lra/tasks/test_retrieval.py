"""The Retrieval task on tiny files of pairs, and pairs on their way through batches and the model."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.data import archives
from lra.data.batching import collate, evaluation_batches
from lra.data.dataset import open_prepared
from lra.data.split import SPLITS
from lra.errors import DataError, UsageError
from lra.models.transformer import build_model
from lra.tasks import get_task, pairs
from lra.tasks import retrieval as module
from tests.lra.data.archive_cases import link, tar_bytes

TASK = get_task("retrieval")
SUFFIXES = {"train": "train", "validation": "eval", "test": "test"}
COUNTS = {"train": 6, "validation": 3, "test": 2}
CPU = torch.device("cpu")


def row(label=b"1.0", first=b"one paper", second=b"another", end=b"\n"):
    return b"\t".join([label, b"id1", b"id2", first, second]) + end


def files(stem="aan_sub", **contents):
    """The three files; a keyword replaces the content of one of them."""
    rows = {
        name: b"".join(row(b"%d.0" % (n % 2), b"%s %d" % (name.encode(), n)) for n in range(count))
        for name, count in COUNTS.items()
    } | contents
    return [(f"{stem}.{SUFFIXES[name]}.tsv", content) for name, content in rows.items()]


def prepare(tmp_path, members, **values):
    file = tmp_path / "pairs.tar.xz"
    file.write_bytes(tar_bytes(members, "w:xz"))
    options = TASK.options.model_validate({"source": "substitute"} | values)
    return TASK.prepare(options, tmp_path / "home", source=file, progress=False)


def refused(tmp_path, members, **values):
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, members, **values)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "home").iterdir()) == []
    return str(caught.value)


def test_pairs_come_back_in_order_and_are_labelled_as_a_substitute(tmp_path):
    data = prepare(tmp_path, files())
    train = data.split("train")
    assert train.documents == 2
    assert [len(data.split(name)) for name in SPLITS] == list(COUNTS.values())
    for index in range(6):
        assert train.tokens_of(index).tobytes() == b"train %d" % index
        assert train.tokens_of(index, 1).tobytes() == b"another"
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert "substitute" in data.manifest.dataset
    assert "6 / 3 / 2 pairs" in data.manifest.dataset
    assert open_prepared(data.path, verify=True).split("test").documents == 2


@pytest.mark.parametrize(("packed", "part"), [(True, ""), (False, "train"), (False, "eval")])
def test_files_that_change_while_they_are_read_give_no_data(tmp_path, packed, part, monkeypatch):
    """Be it one that was read already, while another is."""
    source = tmp_path / "pairs.tar.xz"
    if packed:
        source.write_bytes(tar_bytes(files(), "w:xz"))
    else:
        source = tmp_path / "tsv_data"
        source.mkdir()
        for name, content in files():
            (source / name).write_bytes(content)
    parse = pairs.parse_row

    def parse_and_change(line, place):
        if packed or ".train." in place:  # the last of them
            (source if packed else source / f"aan_sub.{part}.tsv").touch()
        return parse(line, place)

    monkeypatch.setattr(pairs, "parse_row", parse_and_change)
    with pytest.raises(DataError, match="changed while it was read; prepare the data again"):
        TASK.prepare(TASK.options(source="substitute"), tmp_path / "home", source=source, progress=False)


def test_a_folder_reads_like_an_archive(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in [*files(), ("aan_sub.train.ids.tsv", b"other")]:
        (folder / name).write_bytes(content)
    options = TASK.options.model_validate({"source": "substitute"})
    data = TASK.prepare(options, tmp_path / "other", source=folder, progress=False)
    assert data.digest == prepare(tmp_path, files()).digest


@pytest.mark.parametrize("below", ["", "tsv_data", "lra_release/tsv_data", "lra_release/lra_release/tsv_data"])
def test_a_folder_above_is_searched_where_the_release_has_the_files_and_hidden_ones_are_passed_over(tmp_path, below):
    (tmp_path / "disk").mkdir()
    for name, content in files():
        (tmp_path / "disk" / name).write_bytes(content)
        (tmp_path / "disk" / f"._{name}").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    folder = tmp_path / "top" / below
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(tmp_path / "disk")
    options = TASK.options.model_validate({"source": "substitute"})
    data = TASK.prepare(options, tmp_path / "other", source=tmp_path / "top", progress=False)
    hidden = [(f"x/._{name}", b"junk") for name, _ in files()] + [(f".x/{name}", b"junk") for name, _ in files()]
    assert data.digest == prepare(tmp_path, [*hidden, *files()]).digest


def test_official_files_are_held_to_their_names_and_counts(tmp_path, monkeypatch):
    deep = [(f"lra_release/lra_release/tsv_data/{name}", content) for name, content in files("new_aan_pairs")]
    assert "147,086 / 18,090 / 17,437" in refused(tmp_path, deep, source="official")
    assert "new_aan_pairs.train.tsv" in refused(tmp_path, files(), source="official")
    monkeypatch.setattr(module, "OFFICIAL_COUNTS", COUNTS)
    data = prepare(tmp_path, deep, source="official")
    assert "substitute" not in data.manifest.dataset
    with pytest.raises(DataError, match="substitute for AAN"):
        TASK.prepare(TASK.options.model_validate({"source": "substitute"}), tmp_path / "home", progress=False)


@pytest.mark.parametrize(
    "text",
    [b'a lone " quote', b"NUL \x00", b"\xff\xfe not UTF-8", "a\u2028b\u0085c\x0bd\x1c".encode(), b"NA", b"null", b""],
)
def test_odd_bytes_are_kept(tmp_path, text):
    data = prepare(tmp_path, files(test=row(first=text) + row(second=text, end=b"\r\n")))
    test = data.split("test")
    assert [test.tokens_of(0).tobytes(), test.tokens_of(1, 1).tobytes()] == [text, text]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (row() + b"1\ta\tb\tc\n", ":2: expected 5 fields, got 4"),
        (row() + row(second=b"x\ty"), ":2: expected 5 fields, got 6"),
        (row() + b"\n", ":2: expected 5 fields, got 1"),
        (row(b"2.0"), ":1: the label must be 0 or 1, got '2.0'"),
        (row(b"nan"), "the label must be 0 or 1"),
        (row(b"0.5"), "the label must be 0 or 1"),
        (row(b"\xef\xbb\xbf1"), "the label must be 0 or 1"),
        (row(b""), "the label must be 0 or 1"),
        (b"", "no rows"),
    ],
)
def test_wrong_rows_are_named_by_their_line(tmp_path, content, message):
    assert message in refused(tmp_path, files(validation=content))


def test_a_line_without_end_is_refused(tmp_path):
    long = row() + row(first=b"x" * (archives.LINE_LIMIT + 1))
    assert ":2: a line of more than" in refused(tmp_path, files(test=long))


def test_wrong_archives_are_refused(tmp_path):
    assert "NAME.test.tsv not found" in refused(tmp_path, files()[:2])
    assert "both" in refused(tmp_path, [*files(), *files("other")])
    assert "link" in refused(tmp_path, [*files()[1:], link("x.train.tsv")])
    assert "leads out" in refused(tmp_path, [("../x.train.tsv", b"")])


def test_documents_are_cut_and_splits_sampled(tmp_path):
    data = prepare(tmp_path, files(), max_length=4, max_train=3)
    train = data.split("train")
    assert (len(train), train.documents) == (3, 2)
    assert {train.tokens_of(n, d).tobytes() for n in range(3) for d in range(2)} == {b"trai", b"anot"}
    whole = prepare(tmp_path, files(), max_train=3).split("train")
    numbers = [int(whole.tokens_of(n).tobytes().split()[1]) for n in range(3)]
    assert [number % 2 for number in numbers] == whole.labels.tolist()


def test_show_has_both_documents(tmp_path):
    data = prepare(tmp_path, files())
    assert TASK.show(data, "test", 1).splitlines() == [
        "test example 1: label 1 (one cites the other)",
        "document 1, 6 bytes:",
        "test 1",
        "document 2, 7 bytes:",
        "another",
    ]
    with pytest.raises(UsageError):
        TASK.show(data, "test", -1)


def subfolder(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    return folder


def papers(count=30, size=400):
    """Texts of a few letters, so that counts of bytes are alike, in rows of pairs."""
    rng = np.random.default_rng(0)
    texts = [bytes(rng.integers(97, 105, size=size + n).astype(np.uint8)) for n in range(count)]
    return texts, files(**{name: b"".join(row(b"1.0", a, b) for a, b in pairwise(texts)) for name in SUFFIXES})


def grams(text, n=7):
    return {text[start : start + n] for start in range(len(text) - n + 1)}


def test_passages_share_a_half_or_come_from_papers_that_look_alike(tmp_path):
    texts, members = papers()
    counts = {"max_train": 60, "max_validation": 20, "max_test": 20}
    data = prepare(tmp_path, members, pairs="passages", max_length=40, **counts)
    assert data.manifest.dataset == (
        "passages of 40 bytes of AAN substitute papers that share a half or not, 60 / 20 / 20 pairs"
    )
    homes = {}
    for name in SPLITS:
        split = data.split(name)
        assert len(split) == counts[f"max_{name}"]
        assert 0.2 < split.labels.mean() < 0.8
        firsts = set()
        for index, label in enumerate(split.labels):
            pair = [split.tokens_of(index, document).tobytes() for document in range(2)]
            assert [len(passage) for passage in pair] == [40, 40]
            places = [next(n for n, text in enumerate(texts) if passage in text) for passage in pair]
            homes.setdefault(name, set()).update(places)
            if label:
                assert places[0] == places[1]
                firsts.add(pair[0][20:] == pair[1][:20])
                assert pair[0][20:] == pair[1][:20] or pair[1][20:] == pair[0][:20]
                assert len(grams(pair[0]) & grams(pair[1])) >= 14
            else:
                assert places[0] != places[1]
                assert len(grams(pair[0]) & grams(pair[1])) <= 1
        assert firsts == {True, False}  # either may come first
    assert (
        not homes["train"] & homes["validation"] | homes["train"] & homes["test"] | homes["validation"] & homes["test"]
    )
    label = int(data.split("test").labels[0])
    assert TASK.show(data, "test", 0).startswith(
        f"test example 0: label {label} ({('of two papers', 'half shared')[label]})"
    )


def test_the_other_paper_is_the_most_alike_of_those_drawn(tmp_path, monkeypatch):
    """With one candidate alone, counts of bytes would tell the labels apart better."""
    _, members = papers(count=60)

    def mean_difference(folder):
        split = prepare(folder, members, pairs="passages", max_length=40, max_train=200).split("train")
        histograms = [
            [np.bincount(split.tokens_of(n, d), minlength=256) for d in range(2)]
            for n in np.flatnonzero(split.labels == 0)
        ]
        return np.mean([np.abs(first - second).sum() for first, second in histograms])

    nearest = mean_difference(subfolder(tmp_path, "nearest"))
    monkeypatch.setattr("lra.tasks.passages.CANDIDATES", 1)
    assert nearest < 0.8 * mean_difference(subfolder(tmp_path, "any"))


def test_passages_do_not_depend_on_the_order_of_the_rows_and_are_cut_by_the_seed(tmp_path):
    _, members = papers()
    options = {"pairs": "passages", "max_length": 40, "max_train": 8, "max_validation": 2, "max_test": 2}
    digest = prepare(subfolder(tmp_path, "a"), members, **options).digest
    turned = [(name, b"\n".join(reversed(content.splitlines())) + b"\n") for name, content in members]
    assert prepare(subfolder(tmp_path, "b"), turned, **options).digest == digest
    assert prepare(subfolder(tmp_path, "c"), members, **options, seed=1).digest != digest


def test_passages_need_long_papers_of_the_substitute_and_are_not_cut(tmp_path):
    assert "too few for passages of 40 bytes" in refused(tmp_path, files(), pairs="passages", max_length=40)
    with pytest.raises(ValidationError, match="source substitute, not of official"):
        TASK.options(pairs="passages")
    default = TASK.options()
    assert TASK.folder_name(default) == "retrieval-4000-5be837063e"
    assert TASK.info_for(default).crops
    assert not TASK.info_for(TASK.options(source="substitute", pairs="passages")).crops


@settings(deadline=None, max_examples=60)
@given(
    content=st.binary(max_size=200) | st.lists(st.sampled_from([b"\t", b"1", b"0.0", b"\n", b"x", b"\r"])).map(b"".join)
)
def test_any_file_gives_pairs_or_one_line(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("fuzz")
    try:
        split = prepare(folder, files(test=content)).split("test")
    except DataError as error:
        message = str(error)
        split = None
    assert "\n" not in message if split is None else set(split.labels) <= {0, 1}


def test_batches_hold_both_documents_with_ids_that_leave_zero_to_padding(tmp_path):
    split = prepare(tmp_path, files()).split("train")
    batch = collate(split, [4, 1], None, 4000, CPU)
    assert batch.tokens.shape == batch.mask.shape == (2, 2, 8)
    assert bytes((batch.tokens[0, 1, :7] - 1).tolist()) == b"another"
    assert torch.equal(batch.tokens == 0, ~batch.mask)
    assert batch.num_tokens == 2 * (len(b"train 4") + len(b"another"))
    assert [part.tokens.shape for part in batch.parts(2)] == [(1, 2, 8)] * 2
    seen = [
        (indices, made)
        for indices, made in evaluation_batches(split, max_tokens=32, padded_length=8, limit=4000, device=CPU)
    ]
    assert sorted(np.concatenate([indices for indices, _ in seen])) == list(range(6))
    assert max(made.tokens.numel() for _, made in seen) == 32


@pytest.mark.parametrize(("head", "pooling"), [("paper", "masked_mean"), ("code", "first")])
def test_the_model_encodes_both_alike_and_ignores_padding(tmp_path, head, pooling):
    overrides = {"model.dim": 16, "model.mlp_dim": 32, "model.pair_head": head, "model.pooling": pooling}
    config = resolve(
        task="retrieval", variant="full", profile=load_profile("modern"), seed=0, track="open", overrides=overrides
    )
    model = build_model(config, 257, 2).double().eval()
    split = prepare(tmp_path, files()).split("train")
    short, long = (collate(split, [0, 1, 2], length, 4000, CPU) for length in (None, 24))
    logits = model(short.tokens, short.mask)
    assert logits.shape == (3, 2)
    torch.testing.assert_close(model(long.tokens, long.mask), logits, rtol=1e-9, atol=1e-9)
    swapped = model(short.tokens.flip(1), short.mask.flip(1))
    assert not torch.allclose(swapped, logits, rtol=1e-3, atol=1e-3)
    alone = torch.cat([model(short.tokens[n : n + 1], short.mask[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(alone, logits, rtol=1e-9, atol=1e-9)
    width = {"paper": 4, "code": 2}[head] * 16
    assert model.head.hidden[0].in_features == width
    assert len(model.head.hidden) == {"paper": 1, "code": 2}[head]


def test_files_of_two_folders_of_an_archive_are_not_mixed(tmp_path):
    """They may be two versions of one set."""
    archive = tmp_path / "pairs.tar"
    options = TASK.options.model_validate({"source": "substitute"})
    for number, folders in enumerate((("v1", "v1"), ("v1", "v2"))):
        members = [(f"{folders['.test.' in name]}/{name}", content) for name, content in files()]
        archive.write_bytes(tar_bytes(members, "w"))
        if number == 0:
            assert len(TASK.prepare(options, tmp_path / "home", source=archive, progress=False).split("test"))
    with pytest.raises(DataError, match=r"v2/.*test\.tsv is of another set than .*v1/"):
        TASK.prepare(options, tmp_path / "other", source=archive, progress=False)


@pytest.mark.parametrize("packed", [True, False])
def test_files_of_two_sets_are_not_mixed(tmp_path, packed):
    mixed = [("other.test.tsv" if ".test." in name else name, content) for name, content in files()]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, content in mixed:
        (folder / name).write_bytes(content)
    archive = tmp_path / "pairs.tar"
    archive.write_bytes(tar_bytes(mixed, "w"))
    options = TASK.options.model_validate({"source": "substitute"})
    with pytest.raises(DataError, match=r"test\.tsv is of another set than .*|is of another set than .*other"):
        TASK.prepare(options, tmp_path / "home", source=archive if packed else folder, progress=False)
