"""The ListOps task: editions, the reader of the official files, rails, and the view for a person."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from lra.errors import DataError, UsageError
from lra.generate.listops import Grammar, generate_chunk
from lra.generate.listops_tokens import CLOSE, VOCAB_SIZE, WORDS
from lra.prepared import SPLITS, Split, open_prepared
from lra.tasks import get_task, listops_rails
from lra.tasks.listops import ListOps, ListOpsOptions

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"min_length": 11, "max_length": 63, "max_depth": 4, "max_args": 5}
TINY = {**SHORT, "train": 60, "validation": 20, "test": 20}
FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ListOps().prepare(ListOpsOptions(**TINY), tmp_path_factory.mktemp("home"), progress=False)


# --- options and editions


def test_the_default_is_the_benchmark():
    options = ListOpsOptions()
    assert options.counts == {"train": 96_000, "validation": 2_000, "test": 2_000}
    assert options.grammar == Grammar(
        min_length=501, max_length=1999, max_depth=10, max_args=10, operator_probability=0.25
    )
    assert ListOps().edition(options) == "generated, 500 < length < 2000"
    assert ListOps().edition(ListOpsOptions(source="official")) == "official files"
    assert ListOps().max_length(options) == 1999
    assert (get_task("ListOps").info.vocab_size, get_task("listops").info.num_classes) == (16, 10)


@pytest.mark.parametrize(
    ("change", "edition"),
    [
        (SHORT, "short: generated, 10 < length < 64, depth 4, 5 arguments"),
        ({"max_length": 1000}, "short: generated, 500 < length < 1001"),
        ({"max_depth": 11}, "altered: generated, 500 < length < 2000, depth 11"),
        ({"operator_probability": 0.3}, "altered: generated, 500 < length < 2000, P(operator) 0.3"),
        ({"train": 100}, "generated, 500 < length < 2000, 100 / 2000 / 2000 examples"),
        ({"source": "official", "test": 9}, "official files, 96000 / 2000 / 9 examples"),
        ({"source": "official", "max_length": 600}, "short: official files, 500 < length < 601"),
    ],
)
def test_any_other_edition_says_what_it_is(change, edition):
    assert ListOps().edition(ListOpsOptions(**change)) == edition


def test_editions_never_share_a_folder():
    changes = [{}, SHORT, TINY, {"seed": 1}, {"train": 1}, {"source": "official"}, {"operator_probability": 0.3}]
    names = {ListOps().folder_name(ListOpsOptions(**change)) for change in changes}
    assert len(names) == len(changes)
    assert {name.rpartition("-")[0] for name in names} == {
        "listops-generated",
        "listops-short",
        "listops-official",
        "listops-altered",
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 1}, "Extra inputs"),
        ({"seed": "1"}, "valid integer"),
        ({"seed": True}, "valid integer"),
        ({"train": 0}, "greater than or equal to 1"),
        ({"min_length": 600, "max_length": 599}, "max_length 599 is below min_length 600"),
        ({"max_depth": 3, "max_args": 5}, "no tree of this depth and width has 501 tokens"),
        ({"source": "official", "seed": 1, "max_args": 5}, "does not take seed, max_args"),
        ({"operator_probability": 1.0}, "less than 1"),
    ],
)
def test_wrong_options_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        ListOpsOptions(**change)


def test_unknown_task_gets_a_suggestion():
    with pytest.raises(UsageError, match="unknown task 'list-op'; did you mean 'listops'"):
        get_task("list-op")


# --- generated data


def test_generated_data_is_what_the_options_say(data):
    assert [len(data.split(name)) for name in SPLITS] == [60, 20, 20]
    examples = [bytes(data.split(name).tokens_of(i)) for name in SPLITS for i in range(len(data.split(name)))]
    assert len(set(examples)) == 100
    for name in SPLITS:
        split = data.split(name)
        assert split.lengths.min() >= 11
        assert split.lengths.max() <= 63
        assert 1 <= split.tokens.min() <= split.tokens.max() < VOCAB_SIZE
    assert data.manifest.edition.startswith("short: ")
    assert data.manifest.options == ListOpsOptions(**TINY).model_dump()


def test_prepared_data_is_opened_again_and_not_made_again(data):
    before = data.path.stat().st_mtime_ns
    again = ListOps().prepare(ListOpsOptions(**TINY), data.path.parent, progress=False)
    assert (again.digest, again.path.stat().st_mtime_ns) == (data.digest, before)


def test_a_folder_with_other_data_under_this_name_is_refused(data, tmp_path):
    other = ListOpsOptions(**{**TINY, "seed": 1})
    (tmp_path / ListOps().folder_name(other)).symlink_to(data.path)
    with pytest.raises(DataError, match="holds other data than its name says"):
        ListOps().prepare(other, tmp_path)


def test_a_half_built_folder_of_a_killed_process_is_ignored(data, tmp_path):
    stray = tmp_path / f".{data.path.name}.123-abcd.tmp"
    stray.mkdir()
    (stray / "train-tokens.npy").write_bytes(b"half")
    assert ListOps().prepare(ListOpsOptions(**TINY), tmp_path, progress=False).digest == data.digest


def test_an_unusable_home_is_found_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(ListOps, "build", None)
    with pytest.raises(DataError, match="--data-dir names another folder"):
        ListOps().prepare(ListOpsOptions(**TINY), tmp_path / "file" / "home")


def test_a_source_for_generated_data_is_a_mistake(tmp_path):
    with pytest.raises(UsageError, match="source=official"):
        ListOps().prepare(ListOpsOptions(**TINY), tmp_path, source=tmp_path)


# --- rails


@pytest.fixture(scope="module")
def benchmark_splits():
    """About 12,000 examples of the benchmark's distribution, as splits."""
    chunks = [generate_chunk(0, number, Grammar()) for number in range(9)]
    splits = [Split(tokens=c.tokens, offsets=c.offsets, labels=c.labels) for c in chunks]
    lengths = np.concatenate([split.lengths for split in splits[:8]])
    train = Split(
        tokens=np.concatenate([split.tokens for split in splits[:8]]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        labels=np.concatenate([split.labels for split in splits[:8]]),
    )
    return {"train": train, "validation": splits[8], "test": splits[8]}


def test_rails_of_the_benchmark_distribution(benchmark_splits):
    listops_rails.check(benchmark_splits)
    rails = listops_rails.measure(benchmark_splits)
    assert rails["chance"] == 10.0
    assert rails["majority"] == pytest.approx(17.0, abs=4 * 1.04)  # 1,300 trees: 1.04 % standard error
    assert rails["root-only"] == pytest.approx(36.2, abs=4 * 1.34)


def test_rails_catch_labels_that_do_not_follow_the_root(benchmark_splits):
    shuffled = {
        name: Split(tokens=s.tokens, offsets=s.offsets, labels=np.random.default_rng(0).permutation(s.labels))
        for name, s in benchmark_splits.items()
    }
    with pytest.raises(DataError, match="root-only accuracy"):
        listops_rails.check(shuffled)


def test_rails_catch_another_share_of_labels(benchmark_splits):
    tilted = {
        name: Split(tokens=s.tokens, offsets=s.offsets, labels=np.where(s.labels == 4, 5, s.labels))
        for name, s in benchmark_splits.items()
    }
    with pytest.raises(DataError, match=r"share of label 4 is 0\.0 %, not 8\.9 %"):
        listops_rails.check(tilted)


# --- official files


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
        (b"x" * 10_000_000 + b"\t2", r"'x{40}'\.\.\. is not a ListOps token"),
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


# --- the view for a person


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


def test_the_shown_value_of_every_example_is_its_label(data):
    for index in range(len(data.split("train"))):
        lines = ListOps().show(data, "train", index).splitlines()
        assert lines[1].endswith(f"  = {data.split('train').labels[index]}")


@pytest.mark.parametrize("index", [-1, 20])
def test_show_of_an_example_that_is_not_there(data, index):
    with pytest.raises(UsageError, match=f"test has examples 0 to 19, not {index}"):
        ListOps().show(data, "test", index)


def test_the_modules_import_neither_torch_nor_pandas():
    code = "import sys, lra.tasks, lra.prepared; print(*{'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_opened_data_verifies(data):
    assert open_prepared(data.path, verify=True).digest == data.digest


@pytest.mark.slow
def test_the_whole_benchmark_is_generated_checked_and_the_same_everywhere(tmp_path):
    made = ListOps().prepare(ListOpsOptions(), tmp_path, progress=False)
    assert [len(made.split(name)) for name in SPLITS] == [96_000, 2_000, 2_000]
    assert made.digest.startswith("3e81a4d09787")
    assert made.manifest.rails["majority"] == pytest.approx(17.0, abs=4 * 0.84)  # 2,000 examples: 0.84 % standard error
    assert made.manifest.rails["root-only"] == pytest.approx(36.2, abs=4 * 1.07)
    examples = {bytes(made.split(name).tokens_of(i)) for name in SPLITS for i in range(len(made.split(name)))}
    assert len(examples) == 100_000
