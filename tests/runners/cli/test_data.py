"""`lra-data` as a user meets it."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np
import pytest

from lra.config.overrides import parse_override
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.data.dataset import open_prepared
from lra.data.work_folder import sole_owner
from lra.tasks import TASKS
from lra.tasks.pairs_fetch import Fetched, FileState, write_state
from runners.cli.data import screenful
from tests.lra.data.archive_cases import review_members, tar_bytes

ROOT = Path(__file__).resolve().parents[3]
TINY = ["min_length=11", "max_length=63", "max_depth=4", "max_args=5", "train=60", "validation=20", "test=20"]
SET_TINY = [argument for setting in TINY for argument in ("--set", setting)]
GENERATED = pytest.mark.parametrize(
    "task",
    [
        pytest.param(name, marks=() if name in ("listops", "pathfinder") else pytest.mark.nightly)
        for name, task in TASKS.items()
        if task.info.generated
    ],
)


@pytest.fixture
def folder(lra_data, home):
    assert lra_data("prepare", "listops", *SET_TINY).exit_code == 0
    (folder,) = home.iterdir()
    return folder


def test_prepare_prints_what_it_made_and_where(lra_data, home):
    first, again = lra_data("prepare", "listops", *SET_TINY), lra_data("prepare", "ListOps", *SET_TINY)
    assert (first.exit_code, again.exit_code) == (0, 0)
    (folder,) = home.iterdir()
    assert first.stdout.splitlines()[0] == f"Prepared: {folder}"
    assert again.stdout.splitlines()[0] == f"Already prepared: {folder}"
    assert "short: generated, 10 < length < 64" in first.stdout
    assert "train: 60 examples of" in first.stdout
    assert "chance 10.0, majority" in first.stdout
    assert first.stderr == ""  # no progress bar outside a terminal


def test_prepare_prints_baselines_of_the_whole_test(lra_data):
    sizes = ("length=16", "test_length=[16,32]", "train=60", "validation=20", "test=20")
    done = lra_data("prepare", "recall", *(word for each in sizes for word in ("--set", each)))
    assert done.exit_code == 0, done.stderr
    assert "majority" in done.stdout
    assert " at 16" not in done.stdout.split("Trivial baselines")[1]


def test_a_small_dataset_variant_has_its_own_folder_and_description(lra_data, home):
    full, small = lra_data("prepare", "listops", *SET_TINY), lra_data("prepare", "listops", *SET_TINY, "--small", 30)
    assert (full.exit_code, small.exit_code) == (0, 0), small.stderr
    assert len(list(home.iterdir())) == 2
    assert "60 / 20 / 20 examples" in full.stdout
    assert "30 / 10 / 10 examples" in small.stdout


@GENERATED
def test_generate_overrides_a_dataset_variant_that_is_read(lra_data, task):
    tiny = SET_TINY if task == "listops" else ["--set", "difficulty=easy", "--small", "8"]
    assert lra_data("prepare", task, "--set", "source=official", *tiny).exit_code != 0
    result = lra_data("prepare", task, "--set", "source=official", "--generate", *tiny)
    assert result.exit_code == 0, result.stderr
    assert f"{task}, " in result.stdout
    assert "generated" in result.stdout


def test_prepare_for_a_profile_makes_what_the_profile_reads(lra_data, home):
    result = lra_data("prepare", "listops", "--profile", "quick", "--small", 200)
    assert result.exit_code == 0, result.stderr
    *_, advice = result.stdout.splitlines()
    command = advice.removeprefix("Train on it with: lra-run --attn NAME ").split()
    assert command[:4] == ["--task", "listops", "--profile", "quick"]
    overrides = dict(parse_override(text) for text in command[command.index("--set") :] if "=" in text)
    options = resolve(
        task="listops", variant="full", profile=load_profile("quick"), seed=0, track="open", overrides=overrides
    )
    task = TASKS["listops"]
    (folder,) = home.iterdir()
    assert folder.name == task.folder_name(task.options.model_validate(options.data))


def test_data_dir_wins_over_the_variable(lra_data, home, tmp_path):
    assert lra_data("prepare", "listops", "--data-dir", tmp_path / "there", *SET_TINY).exit_code == 0
    assert not home.exists()
    assert len(list((tmp_path / "there").iterdir())) == 1


def test_list_shows_the_sizes_of_splits_in_one_order(lra_data, folder):
    """The checksum of a manifest does not cover the order of its keys."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest, sort_keys=True))
    assert lra_data("list").stdout.count("60 / 20 / 20") == 2  # the name of the data has them, too


def test_list_shows_what_is_there_and_nothing_half_built(lra_data, home, folder):
    (home / f".listops-short-0.{os.getpid()}-0123abcd.tmp").mkdir()  # its process is at work
    (home / "something-else").mkdir()
    lines = lra_data("list").stdout.splitlines()
    assert lines[0] == f"Prepared data in {home}: 1"
    assert len(lines) == 4
    digest = open_prepared(folder, verify=False).digest[:12]
    for word in (
        folder.name,
        "listops",
        "short: generated",
        "60 / 20 / 20",
        "MB",
        digest,
    ):
        assert word in lines[-1]


def test_list_of_nothing(lra_data, home):
    result = lra_data("list")
    assert (result.exit_code, result.stdout) == (0, f"Prepared data in {home}: none\n")
    assert not home.exists()


def test_list_survives_damage(lra_data, folder):
    (folder / "manifest.json").write_text("{")
    result = lra_data("list")
    assert result.exit_code == 0
    assert "unusable" in result.stdout


def test_verify_finds_a_flipped_bit(lra_data, folder):
    sound = lra_data("verify")
    digest = open_prepared(folder, verify=False).digest
    first = f"{folder.name}: sound, SHA-256 of the content {digest}"
    assert (sound.exit_code, sound.stdout.splitlines()[0]) == (0, first)
    file = folder / "test-tokens.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for arguments in (["verify"], ["verify", "listops"]):
        damaged = lra_data(*arguments)
        assert damaged.exit_code == 3
        assert damaged.stderr == f"Error: {file}: damaged, its SHA-256 is not the manifest's\n"
        assert damaged.stdout == ""


def test_data_that_has_changed_is_neither_shown_nor_given_its_digest(lra_data, folder):
    labels = np.load(folder / "test-labels.npy")
    labels[0] = (labels[0] + 1) % 10
    np.save(folder / "test-labels.npy", labels)
    for arguments in (["prepare", "listops"], ["show", "listops", "--split", "test"]):
        result = lra_data(*arguments, *SET_TINY)
        assert (result.exit_code, result.stdout) == (3, ""), arguments
        assert result.stderr.startswith(f"Error: {folder}: damaged, its content is not what its manifest says")


def test_verify_finds_folders_that_changed_their_names(lra_data, home, folder):
    assert lra_data("prepare", "listops", *SET_TINY, "--set", "seed=1").exit_code == 0
    (other,) = set(home.glob("listops-*")) - {folder}
    for source, target in ((folder, home / "aside"), (other, folder), (home / "aside", other)):
        source.rename(target)
    result = lra_data("verify")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.count("holds other data than its name says") == 2


def test_verify_names_a_folder_whose_name_is_that_of_no_data(lra_data, folder):
    for name in ("backup", folder.name.upper(), folder.name.replace("listops", "text")):
        folder = folder.rename(folder.parent / name)
        for tasks in ([], ["listops"]):
            result = lra_data("verify", *tasks)
            assert (result.exit_code, result.stdout) == (3, "")
            assert f"{folder}: holds other data than its name says" in result.stderr
    (folder / "manifest.json").write_text("{}")
    assert "no data of listops is prepared" in lra_data("verify", "listops").stderr
    assert lra_data("verify", "text").exit_code == 3


def test_folders_of_probes_that_change_places_are_found(lra_data, home):
    few = ["--set", "train=20", "--set", "validation=5", "--set", "test=5"]
    for length in ("8", "12"):
        assert lra_data("prepare", "parity", *few, "--set", f"length={length}").exit_code == 0
    first, second = sorted(home.glob("parity-*"))
    for source, target in ((first, home / "aside"), (second, first), (home / "aside", second)):
        source.rename(target)
    result = lra_data("verify")
    assert result.exit_code == 3
    assert result.stderr.count("holds other data than its name says") == 2


def test_verify_checks_the_rest_after_a_damaged_one(lra_data, home, folder):
    assert lra_data("prepare", "listops", *SET_TINY, "--set", "seed=1").exit_code == 0
    (folder / "manifest.json").unlink()
    result = lra_data("verify")
    assert result.exit_code == 3
    assert result.stdout.count(": sound") == 1
    assert result.stderr.count("\n") == 1


def test_prepared_data_on_a_disk_that_is_gone_is_not_passed_over(lra_data, home, folder):
    moved = home.parent / "disk" / folder.name
    moved.parent.mkdir()
    folder.rename(moved)
    folder.symlink_to(moved)
    assert "1 of 1 sound" in lra_data("verify").output
    moved.parent.rename(home.parent / "unmounted")
    assert lra_data("verify").exit_code == 3
    assert "unusable" in lra_data("list").output


def test_data_behind_a_link_to_nothing_or_in_whose_place_a_file_is_is_not_passed_over(lra_data, home, folder, tmp_path):
    (home / "listops-notes.txt").write_text("a user's own")
    folder.rename(tmp_path / "elsewhere")
    for place in (folder, home / "mine-16-4958443aab"):  # also of a task that is not loaded
        place.write_text("")
        done = lra_data("verify")
        assert (done.exit_code, done.stdout) == (3, "")
        assert str(place) in done.stderr
        assert "listops-notes" not in done.stderr
        place.unlink()
    home.rename(tmp_path / "away")
    home.symlink_to(tmp_path / "not mounted")
    for command in (["list"], ["verify"], ["remove", "leftovers"]):
        done = lra_data(*command)
        assert (done.exit_code, done.stderr) == (3, f"Error: {home}: a link to what is not there\n")
    home.unlink()


def test_verify_of_a_task_without_data(lra_data):
    result = lra_data("verify", "listops")
    assert result.exit_code == 3
    assert result.stderr.startswith("Error: no data of listops is prepared in ")


def test_damaged_data_is_not_used(lra_data, folder):
    (folder / "train-labels.npy").unlink()
    result = lra_data("prepare", "listops", *SET_TINY)
    assert result.exit_code == 3
    assert "train-labels.npy" in result.stderr
    assert result.stderr.count("\n") == 1


def test_show_prepares_and_renders(lra_data):
    result = lra_data("show", "listops", "--split", "test", "--index", 3, *SET_TINY)
    assert result.exit_code == 0
    head, root, *nodes = result.stdout.splitlines()
    assert head.startswith("test example 3: ")
    assert root.endswith(f"= {head[-1]}")
    assert all(node.startswith("  ") for node in nodes)


def test_a_long_example_fits_the_screen():
    assert screenful("short\nlines", 80, 24) == "short\nlines"
    shown = screenful("x" * 950 + "\n" + "y\n" * 5, 100, 10).splitlines()
    assert len(shown) == 9
    assert all(len(line) <= 100 for line in shown)
    assert shown[-1] == "... 7 more lines; --all shows them"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["prepare", "listop"], 2, "Error: unknown task 'listop'; did you mean 'listops'?"),
        (["verify", "listop"], 2, "Error: unknown task 'listop'; did you mean 'listops'?"),
        (["prepare", "listops", "--set", "sed=1"], 2, "Error: data.sed: unknown key; did you mean 'seed'?"),
        (["prepare", "listops", "--set", "seed"], 2, "Error: --set seed: expected key=value, such as seed=1"),
        (
            ["prepare", "listops", "--set", "seed=one"],
            2,
            "Error: data.seed: input should be a valid integer (got 'one')",
        ),
        (["prepare", "listops", "--set", "seed=!!int 1"], 2, "Error: --set seed:1:1: tags are not allowed"),
        (["show", "listops", *SET_TINY, "--index", "60"], 2, "Error: train has examples 0 to 59, not 60"),
        (["prepare", "listops", *SET_TINY, "--from", "x"], 2, "Error: listops is generated; --set source=official"),
        (["prepare", "text", "--generate"], 2, "Error: text is not generated; lra-data fetch text fetches its file"),
        (["prepare", "listops", "--generate", "--from", "x"], 2, "Error: --generate makes data and --from reads it"),
        (
            ["prepare", "pathfinder", "--small", "7"],
            2,
            "Error: data.count: input should be greater than or equal to 10",
        ),
        (["prepare", "listops", "--small", "96000"], 2, "must have fewer than the 96,000 training examples"),
        (["prepare", "listops", "--set", "source=official", "--small", "9"], 2, "a small dataset variant is generated"),
        (["prepare", "pathx", "--set", "source=official", "--small", "9"], 2, "a small dataset variant is generated"),
        (["prepare", "listops", "--profile", "quik"], 2, "Error: unknown profile 'quik'; did you mean 'quick'?"),
        (["prepare", "pathx", "--profile", "nystromformer"], 2, "not define task 'pathx'; these do: mini,"),
        (["prepare", "listops", "--set", "max_depth=3"], 2, "no tree of this depth and width"),
    ],
)
def test_mistakes_are_one_line_on_stderr(lra_data, arguments, exit_code, message):
    result = lra_data(*arguments)
    assert result.exit_code == exit_code
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@GENERATED
def test_a_generated_dataset_variant_takes_no_file_even_when_it_exists(lra_data, task, tmp_path):
    tiny = SET_TINY if task == "listops" else ["--set", "difficulty=easy", "--small", "8"]
    assert lra_data("prepare", task, *tiny).exit_code == 0
    for source in (tmp_path, tmp_path / "nowhere"):
        refused = lra_data("prepare", task, *tiny, "--from", source)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert refused.stderr == f"Error: {task} is generated; --set source=official reads it from --from\n"


def test_several_mistakes_come_together(lra_data):
    result = lra_data("prepare", "listops", "--set", "seed=x", "--set", "data.tran=1")
    assert result.exit_code == 2
    assert result.stderr.count("Error: data.") == 2


def test_missing_official_files(lra_data, tmp_path):
    result = lra_data("prepare", "listops", "--set", "source=official", "--from", tmp_path)
    assert result.exit_code == 3
    assert result.stderr.count("\n") == 3
    assert "basic_train.tsv, basic_val.tsv, basic_test.tsv not found" in result.stderr


def test_an_unwritable_place(lra_data, tmp_path):
    (tmp_path / "file").write_text("")
    result = lra_data("prepare", "listops", "--data-dir", tmp_path / "file" / "home", *SET_TINY)
    assert result.exit_code == 3
    assert result.stderr.count("\n") == 1


def test_two_processes_preparing_at_once_end_with_one_good_copy(home):
    command = [sys.executable, "-m", "runners.cli.data", "prepare", "listops", "--workers", "1", *SET_TINY]
    environment = {**os.environ, "LRA_HOME": str(home)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], results
    (folder,) = home.iterdir()
    open_prepared(folder, verify=True)


def test_help_imports_neither_torch_nor_numpy():
    code = (
        "import sys; from click.testing import CliRunner; from runners.cli.data import main, screenful;"
        "CliRunner().invoke(main, ['--help'], catch_exceptions=False);"
        "print(*{'torch', 'numpy', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def leave(home):
    """Leave what killed commands do: a generation, half a folder, and half a link; and half a folder at work."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    (home / ".pathfinder-hard-0123456789.work").mkdir()
    (home / ".pathfinder-hard-0123456789.work" / "images.bin").write_bytes(bytes(2_000_000))
    (home / f".listops-x.{dead.pid}-0123abcd.tmp").mkdir()
    (home / f".at-work.{os.getpid()}-0123abcd.tmp").mkdir()
    (home / "sources").mkdir(exist_ok=True)
    (home / "sources" / f".text.{dead.pid}-0123abcd.tmp").symlink_to("gone")
    for name, state in {
        "pairs-first-10": Fetched(first_bytes=10, files={"a": FileState(size=9, position=3)}),
        "pairs-first-20": Fetched(first_bytes=20, files={"a": FileState(size=9, position=9)}),
        "pairs-first-30": "damaged",
        "of-the-user": None,
    }.items():
        (home / "sources" / name).mkdir()
        if state is not None:
            (home / "sources" / name / "lock").touch()
        if isinstance(state, Fetched):
            write_state(home / "sources" / name, state)
        elif state is not None:
            (home / "sources" / name / "fetched.json").write_text(state)
    (home / "sources" / "cifar.tar.gz.part").write_bytes(b"half")
    half = ["sources/cifar.tar.gz.part", "sources/pairs-first-10", "sources/pairs-first-30"]
    temporary = [f".listops-x.{dead.pid}-0123abcd.tmp", f"sources/.text.{dead.pid}-0123abcd.tmp"]
    return [".pathfinder-hard-0123456789.work", *half, *temporary]


def test_what_killed_commands_left_is_listed_and_removed(lra_data, home, folder):
    names = leave(home)
    with sole_owner(home / ".pathfinder-easy-0123456789.work"), (home / "sources" / "now.part").open("ab") as now:
        fcntl.flock(now, fcntl.LOCK_EX)
        listed = lra_data("list").stdout
        assert all(f"  {name}  " in listed for name in names)
        assert "pathfinder-hard-0123456789.work  2.0 MB" in listed
        assert "pathfinder-easy" not in listed
        assert not any(name in listed for name in ("at-work", "now.part", "pairs-first-20", "of-the-user"))
        assert lra_data("remove", names[0], "--yes").exit_code == 0
        assert not (home / names[0]).exists()
        removed = lra_data("remove", "leftovers", "--yes")
        assert removed.stdout.splitlines() == [*names[1:], "Removed 5"]
        assert (home / ".pathfinder-easy-0123456789.work").is_dir()
        assert "Nothing is left behind" in lra_data("remove", "leftovers", "--yes").stdout
    assert folder.is_dir()


def test_leftovers_that_are_taken_up_during_the_question_stay(lra_data, home, monkeypatch):
    home.mkdir()
    names = leave(home)
    with ExitStack() as stack:
        monkeypatch.setattr(click, "confirm", lambda *_, **__: stack.enter_context(sole_owner(home / names[0])))
        done = lra_data("remove", "leftovers")
    said = [f"{names[0]} is in use by now, or gone; left alone", "Removed 5"]
    assert done.stdout.splitlines() == [*names, *said]
    assert (home / names[0] / "images.bin").is_file()


def test_hidden_files_of_other_programs_are_not_left_behind(lra_data, home):
    for name in (".bash_history-04321.tmp", ".project.work", ".project-1.work", ".x.tmp"):
        (home / name).mkdir(parents=True)
    assert "Left behind" not in lra_data("list").stdout
    assert "Nothing is left behind" in lra_data("remove", "leftovers", "--yes").stdout


def test_complete_pairs_whose_note_cannot_be_read_are_not_left_behind(lra_data, home, closed_to_us):
    home.mkdir()
    leave(home)
    closed_to_us(home / "sources" / "pairs-first-20" / "fetched.json")
    assert "pairs-first-20" not in lra_data("list").stdout
    assert lra_data("remove", "leftovers", "--yes").exit_code == 0
    assert (home / "sources" / "pairs-first-20" / "fetched.json").exists()


def test_a_folder_of_the_user_with_the_name_of_a_task_is_no_data(lra_data, home, folder):
    own, other = home / "listops-mine", home / "listops-other"
    own.mkdir()
    other.mkdir()
    (other / "manifest.json").write_text("{}")  # of whatever kind
    assert own.name not in lra_data("list").stdout
    assert lra_data("remove", "listops", "--yes").exit_code == 0
    assert own.is_dir()
    assert other.is_dir()
    assert not folder.exists()


def test_a_link_to_prepared_data_is_removed_and_the_data_stays(lra_data, home, folder, tmp_path):
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert lra_data("list").stdout.splitlines()[-1].startswith(folder.name)
    assert lra_data("remove", folder.name, "--yes").exit_code == 0
    assert not folder.is_symlink()
    assert list(home.iterdir()) == []
    assert open_prepared(tmp_path / "elsewhere", verify=True).manifest.task == "listops"


def test_a_file_of_the_user_in_the_place_of_a_link_stays(lra_data, home, tmp_path):
    first, second = home / "sources" / "text", tmp_path / "imdb.tgz"
    first.parent.mkdir(parents=True)
    for archive, train in ((first, 10), (second, 12)):
        archive.write_bytes(tar_bytes(review_members(train=train, test=4)))
    content = first.read_bytes()
    few = ["--set", "train_reviews=12", "--set", "test_reviews=4"]
    done = lra_data("prepare", "text", "--from", second, *few)
    assert done.exit_code == 0
    assert done.stderr == (
        f"Warning: {first} is no link and stays; other dataset variants read it, or need --from again\n"
    )
    assert not first.is_symlink()
    assert first.read_bytes() == content


def test_a_file_system_without_links_costs_a_warning(lra_data, home, tmp_path, monkeypatch):
    archive = tmp_path / "imdb.tgz"
    archive.write_bytes(tar_bytes(review_members(train=10, test=4)))

    def refuse(self, target):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(Path, "symlink_to", refuse)
    few = ["--set", "train_reviews=10", "--set", "test_reviews=4"]
    done = lra_data("prepare", "text", "--from", archive, *few)
    assert done.exit_code == 0
    assert "Warning: cannot make a link" in done.stderr
    assert "need --from again" in done.stderr
    assert "Already prepared" in lra_data("prepare", "text", *few).stdout
