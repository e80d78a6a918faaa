"""The ListOps task: dataset variants, prepared data and the view for a person."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from lra.data.dataset import open_prepared
from lra.data.split import SPLITS
from lra.errors import DataError, UsageError
from lra.tasks import get_task
from lra.tasks.listops.baselines import KNOWN_MAJORITY, KNOWN_ROOT_ONLY
from lra.tasks.listops.generator import Grammar
from lra.tasks.listops.task import ListOps, ListOpsOptions
from lra.tasks.listops.vocabulary import VOCAB_SIZE

ROOT = Path(__file__).resolve().parents[4]
SHORT = {"min_length": 11, "max_length": 63, "max_depth": 4, "max_args": 5}
TINY = {**SHORT, "train": 60, "validation": 20, "test": 20}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ListOps().prepare(ListOpsOptions(**TINY), tmp_path_factory.mktemp("home"), progress=False)


# --- options and dataset variants


def test_the_default_is_the_benchmark():
    options = ListOpsOptions()
    assert options.counts == {"train": 96_000, "validation": 2_000, "test": 2_000}
    assert options.grammar == Grammar(
        min_length=501, max_length=1999, max_depth=10, max_args=10, operator_probability=0.25
    )
    assert ListOps().dataset_name(options) == "generated, 500 < length < 2000"
    assert ListOps().dataset_name(ListOpsOptions(source="official")) == "official files"
    assert ListOps().max_length(options) == 1999
    assert (get_task("ListOps").info.vocab_size, get_task("listops").info.num_classes) == (16, 10)


@pytest.mark.parametrize(
    ("change", "dataset"),
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
def test_any_other_edition_says_what_it_is(change, dataset):
    assert ListOps().dataset_name(ListOpsOptions(**change)) == dataset


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
    assert data.manifest.dataset.startswith("short: ")
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


# --- the view for a person


def test_the_shown_value_of_every_example_is_its_label(data):
    for index in range(len(data.split("train"))):
        lines = ListOps().show(data, "train", index).splitlines()
        assert lines[1].endswith(f"  = {data.split('train').labels[index]}")


@pytest.mark.parametrize("index", [-1, 20])
def test_show_of_an_example_that_is_not_there(data, index):
    with pytest.raises(UsageError, match=f"test has examples 0 to 19, not {index}"):
        ListOps().show(data, "test", index)


def test_the_modules_import_neither_torch_nor_pandas():
    code = "import sys, lra.tasks, lra.data.dataset; print(*{'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_opened_data_verifies(data):
    assert open_prepared(data.path, verify=True).digest == data.digest


@pytest.mark.nightly
def test_the_whole_benchmark_is_generated_checked_and_the_same_everywhere(tmp_path):
    made = ListOps().prepare(ListOpsOptions(), tmp_path, progress=False)
    assert [len(made.split(name)) for name in SPLITS] == [96_000, 2_000, 2_000]
    assert made.digest.startswith("3e81a4d09787")
    assert made.manifest.baselines["majority"] == pytest.approx(
        17.0, abs=4 * 0.84
    )  # 2,000 examples: 0.84 % standard error
    assert made.manifest.baselines["root-only"] == pytest.approx(36.2, abs=4 * 1.07)
    baselines = (
        made.manifest.baselines["majority"],
        made.manifest.baselines["root-only"],
        KNOWN_MAJORITY,
        KNOWN_ROOT_ONLY,
    )
    stated = re.findall(r"(\d\d\.\d) %", (ROOT / "docs" / "protocol.md").read_text().partition("What ListOps")[2])
    assert stated == [f"{rail:.1f}" for rail in baselines]
    examples = {bytes(made.split(name).tokens_of(i)) for name in SPLITS for i in range(len(made.split(name)))}
    assert len(examples) == 100_000
