"""Prepared folders: whole or absent, and never believed when damaged."""

import hashlib
import json
import multiprocessing
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from lra.config.schema import canonical_json
from lra.data.dataset import data_home, open_prepared, write_prepared
from lra.data.manifest import MANIFEST, SCHEMA
from lra.data.split import ARRAYS, SPLITS, Split, content_digest, write_split
from lra.errors import DataError


def make_splits(seed=0):
    generator = np.random.default_rng(seed)
    splits = {}
    for number, name in enumerate(SPLITS):
        lengths = generator.integers(1, 9, 12 - number)
        splits[name] = Split(
            tokens=generator.integers(1, 16, lengths.sum(), dtype=np.uint8),
            offsets=np.concatenate([[0], np.cumsum(lengths)]),
            labels=generator.integers(0, 10, len(lengths), dtype=np.uint8),
        )
    return splits


def write(target, splits=None):
    return write_prepared(
        target,
        task="toy",
        dataset="a toy",
        generated_by="test 1",
        options={"seed": 0},
        num_classes=10,
        splits=splits or make_splits(),
        baselines={"chance": 10.0},
    )


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "toy").path


def test_what_is_written_comes_back(tmp_path):
    splits = make_splits()
    data = write(tmp_path / "toy", splits)
    for name in SPLITS:
        for kind in ARRAYS:
            np.testing.assert_array_equal(getattr(data.split(name), kind), getattr(splits[name], kind))
            assert getattr(data.split(name), kind).dtype == getattr(splits[name], kind).dtype
    train = data.split("train")
    assert len(train) == 12
    np.testing.assert_array_equal(train.tokens_of(3), splits["train"].tokens[train.offsets[3] : train.offsets[4]])
    assert data.manifest.splits["train"].label_counts == np.bincount(train.labels, minlength=10).tolist()
    assert sum(data.manifest.splits["test"].label_counts) == data.manifest.splits["test"].examples
    assert open_prepared(data.path, verify=True).digest == content_digest(splits)


def test_tokens_are_mapped_not_loaded(folder):
    tokens = open_prepared(folder, verify=False).split("train").tokens
    assert isinstance(tokens.base, np.memmap)
    assert not tokens.flags.writeable


def test_digest_depends_on_every_array_and_on_where_it_ends():
    splits = make_splits()
    digests = {content_digest(splits)}
    for name in SPLITS:
        for kind in ARRAYS:
            arrays = {k: getattr(splits[name], k).copy() for k in ARRAYS}
            arrays[kind][-1] ^= 1
            digests.add(content_digest({**splits, name: Split(**arrays)}))
    assert len(digests) == 10


@pytest.mark.parametrize("schema", [1, 2])
def test_a_folder_without_a_checksum_of_its_manifest_is_refused(folder, schema):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["checksum"]
    (folder / MANIFEST).write_text(json.dumps(manifest | {"schema_number": schema, "token_offset": 1}))
    with pytest.raises(DataError, match=r"older version .* have no checksum; remove the folder and prepare it again"):
        open_prepared(folder, verify=False)


def test_a_folder_of_schema_3_knows_no_sources_and_has_a_checksum(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    old = {key: value for key, value in manifest.items() if key not in ("sources", "checksum")} | {"schema_number": 3}
    checksum = hashlib.sha256(canonical_json(old)).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(old | {"checksum": checksum}))
    assert open_prepared(folder, verify=True).manifest.sources == {}
    (folder / MANIFEST).write_text(json.dumps(old | {"checksum": checksum, "dataset": "another"}))
    with pytest.raises(DataError, match="its checksum does not match"):
        open_prepared(folder, verify=False)


def test_a_split_written_as_it_comes_is_the_split_itself(tmp_path):
    splits = make_splits()
    prepared = open_prepared(write(tmp_path / "a", splits).path, verify=True)
    streamed = {}
    for name, split in splits.items():
        examples = [(int(split.labels[i]), [split.tokens_of(i).tobytes()]) for i in range(len(split))]
        streamed[name] = write_split(tmp_path / f"{name}.npy", iter(examples), token_offset=0)
        np.testing.assert_array_equal(streamed[name].tokens_of(3), split.tokens_of(3))
    again = write(tmp_path / "b", streamed)
    assert again.manifest == prepared.manifest
    assert {file.name for file in tmp_path.iterdir()} == {"a", "b"}  # the files of tokens were moved, not copied
    for file in (tmp_path / "a").iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", SPLITS)
def test_a_split_that_changes_before_it_is_prepared_is_refused(tmp_path, name):
    """As baselines are measured between the reading of data and its writing, which takes minutes for large data."""
    examples = [(0, [b"abc"]), (1, [b"de"])]
    splits = {split: write_split(tmp_path / f"{split}.npy", examples, token_offset=0) for split in SPLITS}
    file = tmp_path / f"{name}.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"E")
    with pytest.raises(DataError, match=f"{name}.npy: changed since it was written"):
        write(tmp_path / "a", splits)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", [f"{split}-{kind}.npy" for split in SPLITS for kind in ARRAYS])
def test_a_truncated_or_missing_file_is_refused_without_verification(folder, name):
    file = folder / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{name}: damaged"):
        open_prepared(folder, verify=False)
    file.unlink()
    with pytest.raises(DataError, match=name):
        open_prepared(folder, verify=False)


@pytest.mark.parametrize("name", [f"{split}-{kind}.npy" for split in SPLITS for kind in ARRAYS])
def test_a_flipped_bit_is_refused_on_verification(folder, name):
    file = folder / name
    data = bytearray(file.read_bytes())
    data[-1 if "offsets" not in name else -16] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        open_prepared(folder, verify=True)


def test_any_damage_to_an_array_header_is_one_line(folder):
    file = folder / "train-tokens.npy"
    original = file.read_bytes()
    refused = 0
    for position in range(128):
        for value in (0, original[position] ^ 1, ord("("), 255):
            file.write_bytes(original[:position] + bytes([value]) + original[position + 1 :])
            try:
                open_prepared(folder, verify=False)
            except DataError as error:
                refused += 1
                assert "\n" not in str(error)  # noqa: PT017 - most flips are refused, flips of blanks are not
    assert refused > 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_number": SCHEMA + 1}, "newer version"),
        ({"schema_number": 0}, "older version"),
        ({"schema_number": "1"}, "schema_number"),
        ({"surprise": 1}, "surprise"),
        ({"digest": "f" * 64}, "checksum does not match"),
        ({"digest": "short"}, "digest"),
        ({"files": {}}, "not the expected ones"),
        ({"splits": {}}, "not the expected ones"),
    ],
)
def test_a_changed_manifest_is_refused(folder, change, message):
    file = folder / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(DataError, match=message) as caught:
        open_prepared(folder, verify=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe", b"null"])
def test_an_unreadable_manifest_is_refused(folder, text):
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(DataError, match=MANIFEST):
        open_prepared(folder, verify=False)


def test_arrays_that_do_not_fit_together_are_refused(folder):
    file = folder / "train-offsets.npy"
    offsets = np.load(file)
    offsets[-1] += 1
    np.save(file, offsets)
    with pytest.raises(DataError, match="do not fit together"):
        open_prepared(folder, verify=False)


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(DataError, match=MANIFEST):
        open_prepared(tmp_path, verify=False)
    with pytest.raises(DataError, match=MANIFEST):
        open_prepared(tmp_path / "absent", verify=False)


@pytest.mark.parametrize("label", [10, 255])
def test_labels_out_of_range_are_not_written(tmp_path, label):
    splits = make_splits()
    splits["test"].labels[0] = label
    with pytest.raises(DataError, match=r"test split is outside 0\.\.9"):
        write(tmp_path / "toy", splits)
    assert not list(tmp_path.iterdir())


def test_an_empty_split_is_not_written(tmp_path):
    empty = Split(tokens=np.empty(0, np.uint8), offsets=np.zeros(1, np.int64), labels=np.empty(0, np.uint8))
    with pytest.raises(DataError, match="validation split is empty"):
        write(tmp_path / "toy", {**make_splits(), "validation": empty})
    assert not list(tmp_path.iterdir())


def test_a_failing_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DataError, match="No space left on device"):
        write(tmp_path / "toy")
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_hold_a_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write prepared data"):
        write(tmp_path / "file" / "toy")


def test_the_first_of_two_writers_wins_and_another_content_is_refused(tmp_path):
    first, second = write(tmp_path / "toy", make_splits(0)), write(tmp_path / "toy", make_splits(0))
    assert first.digest == second.digest == content_digest(make_splits(0))
    with pytest.raises(DataError, match="another process made it from other files meanwhile"):
        write(tmp_path / "toy", make_splits(1))
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def _write_many(target, start, results):
    start.wait()
    results.put(write(Path(target)).digest)


def test_processes_writing_at_once_end_with_one_good_copy(tmp_path):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    target = str(tmp_path / "toy")
    processes = [context.Process(target=_write_many, args=(target, start, results)) for _ in range(4)]
    for process in processes:
        process.start()
    start.set()
    digests = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert digests == {open_prepared(tmp_path / "toy", verify=True).digest}
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_complete_folder_is_opened_without_writing(folder):
    for path in [*folder.iterdir(), folder, folder.parent]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        before = {path: path.stat().st_mtime_ns for path in [*folder.iterdir(), folder, folder.parent]}
        open_prepared(folder, verify=True)
        assert {path: path.stat().st_mtime_ns for path in [*folder.iterdir(), folder, folder.parent]} == before
    finally:
        folder.parent.chmod(0o755)
        folder.chmod(0o755)


def test_data_home_order(tmp_path, monkeypatch):
    monkeypatch.setenv("LRA_HOME", str(tmp_path / "variable"))
    assert data_home(tmp_path / "option") == tmp_path / "option"
    assert data_home() == tmp_path / "variable"
    monkeypatch.delenv("LRA_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert data_home().name == "lra-harness"
    assert os.environ.get("LRA_HOME") is None


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", [MANIFEST, "train-tokens.npy", "test-labels.npy"])
def test_a_pipe_in_place_of_a_file_is_refused(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(DataError, match="a pipe"):
        open_prepared(folder, verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest["splits"]["test"].update(examples=0), "splits.test.examples: "),
        (lambda manifest: manifest["baselines"].update(chance=float("nan")), "baselines.chance: "),
        (lambda manifest: manifest["baselines"].update(chance=float("inf")), "baselines.chance: "),
        (lambda manifest: manifest.update(options="x" * (2 << 20)), "larger than"),
    ],
)
def test_a_manifest_of_an_empty_split_or_no_numbers_is_one_line(folder, change, message):
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=message) as caught:
        open_prepared(folder, verify=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"schema_number": ' + b"9" * 5000 + b"}", b"\xff", b"null"])
def test_any_manifest_is_one_line(folder, content):
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(DataError, match="not a manifest") as caught:
        open_prepared(folder, verify=False)
    assert "\n" not in str(caught.value)


def test_a_changed_field_of_the_manifest_is_noticed_by_its_checksum(folder):
    file = folder / MANIFEST
    whole = json.loads(file.read_text())
    changes = {"token_offset": 1, "baselines": {"chance": 50.0}, "dataset": "another", "options": {"seed": 1}}
    for name, value in changes.items():
        file.write_text(json.dumps(whole | {name: value}))
        with pytest.raises(DataError, match=r"manifest.json: damaged, its checksum does not match"):
            open_prepared(folder, verify=False)


def flip(file, position=-1):
    """Flip a bit in place, and leave size, inode and times as they were."""
    times = file.stat()
    with file.open("r+b") as handle:
        content = bytearray(handle.read())
        content[position] ^= 1
        handle.seek(0)
        handle.write(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("name", [f"{split}-{kind}.npy" for split in SPLITS for kind in ARRAYS if kind != "offsets"])
def test_a_change_in_place_is_noticed_when_a_run_starts(folder, name):
    data = open_prepared(folder, verify=False)
    assert data.verified().digest == data.digest
    flip(folder / name)
    with pytest.raises(DataError, match="its content is not what its manifest says"):
        open_prepared(folder, verify=False).verified()
    if "labels" in name:
        assert data.verified().digest == data.digest  # it holds a copy from before
    else:
        with pytest.raises(DataError, match="its content is not what its manifest says"):
            data.verified()


def test_what_was_verified_cannot_change_under_its_reader(folder):
    mapped = open_prepared(folder, verify=False)
    data = mapped.verified()
    train, before = data.split("train"), mapped.split("train").tokens_of(11).copy()
    for name in ("train-labels.npy", "train-offsets.npy", "train-tokens.npy"):
        flip(folder / name)
    np.testing.assert_array_equal(train.labels, make_splits()["train"].labels)
    np.testing.assert_array_equal(train.offsets, make_splits()["train"].offsets)
    np.testing.assert_array_equal(train.tokens_of(0), make_splits()["train"].tokens_of(0))
    with pytest.raises(DataError, match=r"train-tokens.npy: changed while a run was reading it"):
        train.tokens_of(11)
    assert mapped.split("train").tokens_of(11)[-1] == before[-1] ^ 1  # the broken twin: a map shows what comes later
    with (folder / "train-tokens.npy").open("r+b") as file:
        file.truncate(140)
    with pytest.raises(DataError, match=r"train-tokens.npy: became shorter"):
        train.tokens_of(11)  # a map would be killed here


def test_documents_are_hashed_in_pieces_of_any_size(folder, monkeypatch):
    for size in (1, 7, 10**6):
        monkeypatch.setattr("lra.data.split.CHUNK_BYTES", size)
        data = open_prepared(folder, verify=False).verified()
        for name, split in make_splits().items():
            for index in range(len(split)):
                np.testing.assert_array_equal(data.split(name).tokens_of(index), split.tokens_of(index))


def test_a_document_that_keeps_its_crc_is_not_the_one_that_was_hashed(tmp_path):
    """CRC-32 is linear: what is added may be a multiple of its polynomial."""
    document = bytes(range(1, 20))
    split = write_split(tmp_path / "tokens.npy", [(1, [document])], token_offset=0)
    split.hash_tokens(lambda _: None)
    polynomial = int(f"{0x104C11DB7:033b}"[::-1], 2).to_bytes(5, "little")  # bits of a byte come lowest first
    forged = bytes(a ^ b for a, b in zip(document, polynomial.ljust(len(document), b"\0"), strict=True))
    assert zlib.crc32(forged) == zlib.crc32(document)
    file = tmp_path / "tokens.npy"
    file.write_bytes(file.read_bytes().replace(document, forged))
    with pytest.raises(DataError, match=r"tokens.npy: changed while a run was reading it"):
        split.tokens_of(0)
