"""What `lra-run` says of missing data: all of it, before anything is generated or trained."""

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import NUMERICS_VERSION
from lra.errors import DataError
from runners import signals
from runners.cli.run import command
from runners.train import prepare_data
from runners.train.distributed import SINGLE
from runners.train.prepare_data import check_repeats, prepare_all


def configs(*names):
    """Return two configurations of each task."""
    recipe = load_profile("modern")
    return [
        resolve(task=task, variant=variant, profile=recipe, seed=0, overrides={})
        for task in names
        for variant in ("full", "local")
    ]


def test_missing_data_of_later_tasks_is_found_before_the_first_is_trained(tmp_path):
    words = [
        "--attn",
        "full,local",
        "--task",
        "listops,image,pathfinder,text",
        "--profile",
        "modern",
        "--device",
        "cpu",
    ]
    done = CliRunner().invoke(command, [*words, "--data-dir", str(tmp_path / "home"), "--store", str(tmp_path / "s")])
    assert done.exit_code == 3
    assert [line.split(": ")[1] for line in done.stderr.splitlines() if "is neither prepared" in line] == [
        "image",
        "text",
    ]
    assert not list(tmp_path.glob("home/listops-*"))
    assert not list(tmp_path.glob("s/results/*"))


@pytest.fixture
def asked(monkeypatch):
    """The tasks whose data was prepared, in order; no data is made."""
    names = []

    def note(config, home, *, progress):
        names.append(config.task)
        if config.task == "pathfinder":
            raise DataError("no space left")
        return SimpleNamespace(digest=config.task)

    monkeypatch.setattr(prepare_data, "prepare", note)
    return names


def test_each_task_is_prepared_once_and_what_is_read_comes_first(asked, tmp_path):
    prepared = prepare_all(configs("listops", "text", "image"), SINGLE, tmp_path, progress=False)
    assert asked == ["text", "image", "listops"]
    assert {task: data.digest for task, data in prepared.items()} == {task: task for task in asked}


@pytest.mark.parametrize(("differs", "message"), [("data", "different data"), ("run", "different settings")])
def test_processes_that_were_given_other_data_or_settings_share_no_run(asked, tmp_path, monkeypatch, differs, message):
    config, _ = configs("listops")
    same = {"data": "listops", "run": config.run_id("listops")}
    monkeypatch.setattr(prepare_data, "all_equal", lambda text, ranks: text != same[differs])
    with pytest.raises(DataError, match=f"the processes of this run have {message}"):
        prepare_all([config], SINGLE, tmp_path, progress=False)


def test_nothing_is_generated_after_a_failure(asked, tmp_path):
    with pytest.raises(DataError, match="no space left"):
        prepare_all(configs("pathfinder", "listops"), SINGLE, tmp_path, progress=False)
    assert asked == ["pathfinder"]


def test_nothing_is_generated_after_a_request_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "_requested", [15])
    with pytest.raises(signals.StoppedError):
        prepare_all(configs("listops"), SINGLE, tmp_path / "home", progress=False)
    assert not (tmp_path / "home").exists()


def test_a_record_of_another_numerics_version_is_said_to_be_another_run(capsys):
    record = SimpleNamespace(run_id="ab12" * 16, data_digest="d" * 64, numerics_version=NUMERICS_VERSION)
    data = SimpleNamespace(digest="d" * 64, path="folder")
    check_repeats(record, data)
    assert capsys.readouterr().err == ""
    record.numerics_version = NUMERICS_VERSION - 1
    check_repeats(record, data)
    assert "Run ab12ab12ab12 was made at numerics version" in capsys.readouterr().err
