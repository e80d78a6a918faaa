"""`lra-run --task my_task.py:MyTask`: a task in one file outside of the project, from its file to a table."""

import json
import math
import re
import sys
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import pytest
from click.testing import CliRunner
from pydantic import Field, PlainSerializer, model_validator

from attention_zoo import program
from lra.config.profiles import load_profile, name_unused
from lra.errors import DataError, UsageError
from lra.results.records import Store
from lra.tasks import GeneratedOptions, base, get_task, plugins
from reports.cli import command as lra_report
from runners.cli.data import main as lra_data
from runners.cli.run import command as lra_run

TASK = '''
"""Is there more of one letter than of the other?"""
from typing import ClassVar

from lra.tasks import GeneratedOptions, GeneratedTask, TaskInfo


class MajorityOptions(GeneratedOptions):
    length: int = 9
    train: int = 400
    validation: int = 100
    test: int = 100
    letters: int = 2


class Majority(GeneratedTask[MajorityOptions]):
    info = TaskInfo(name="majority", title="Majority", version=1, vocab_size=3, num_classes=2)
    options = MajorityOptions
    recipe = {"model": {"dim": 8, "mlp_dim": 8, "num_layers": 1}, "train": {"steps": 150, "eval_every": 50, "lr": 1e-2}}

    def example(self, options, length, generator):
        tokens = generator.integers(1, 1 + options.letters, length)
        return tokens, int((tokens == 2).sum() > length / 2)

    def baselines(self, options, splits):
        return {"first letter": 61.0}
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the file of a task."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # without the folders of earlier tests
    (tmp_path / "my_task.py").write_text(TASK)
    plugins.LOADED.clear()
    return tmp_path


def run(*words):
    common = ["--data-dir", "home", "--store", "store", "--device", "cpu", "--threads", "1", "--quiet"]
    return CliRunner().invoke(lra_run, ["--attn", "mlp_only", *common, *words], catch_exceptions=False)


def test_a_task_of_one_file_is_trained_and_reported(folder):
    done = run("--task", "my_task.py:Majority")
    assert done.exit_code == 0, done.output
    (record,) = Store(folder / "store").records()
    assert record.outcome.test.correct > 85, "counting letters is not learnt"
    assert re.fullmatch(r"my_task.py:Majority source [0-9a-f]{16}", record.config.task_origin)
    assert record.config.model.max_length == 9
    assert record.config.train.steps == 150
    assert record.baselines["first letter"] == 61.0
    assert record.baselines["bag of tokens"] > 95
    table = CliRunner().invoke(lra_report, ["table", "accuracy", "--store", "store"])
    assert table.exit_code == 0, table.output
    assert "Majority" in table.stdout
    assert "First letter" in table.stdout
    config = run("--task", "my_task.py:Majority", "--dry-run").stdout
    assert f"run id: {record.run_id}" in config
    (folder / "run.yaml").write_text(config)
    again = CliRunner().invoke(lra_run, ["--config", "run.yaml", "--dry-run", "--data-dir", "home"])
    assert again.stdout == config


def test_the_data_command_knows_it(folder):
    def data(*words):
        done = CliRunner().invoke(lra_data, [*words, "--data-dir", "home"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "first letter 61.0" in data("prepare", "my_task.py:Majority")
    assert "train example 0: 9 tokens, label" in data("show", "my_task.py:Majority")
    (shown,) = json.loads(data("list", "--json"))
    assert shown["task"] == "majority"
    assert "length 9" in shown["dataset"]
    assert "1 of 1 sound" in data("verify", "my_task.py:Majority")
    small = data("prepare", "my_task.py:Majority", "--small", "100")
    assert "train: 100 examples" in small
    data("remove", "majority", "--yes")
    assert json.loads(data("list", "--json")) == []


def test_another_program_is_another_run_on_other_data(folder):
    def state():
        plugins.LOADED.clear()
        task = get_task("my_task.py:Majority")
        return task.origin(task.options()), task.folder_name(task.options())

    first = state()
    (folder / "sub").mkdir()
    (folder / "sub" / "my_task.py").write_text(TASK.replace('"""Is there', '"""Are there') + "# a comment\n")
    plugins.LOADED.clear()
    other = get_task("sub/my_task.py:Majority")
    assert (other.origin(other.options()), other.folder_name(other.options())) == first
    (folder / "sub2").mkdir()
    (folder / "sub2" / "my_task.py").write_text(TASK.replace("length / 2", "length / 3"))
    changed = get_task("sub2/my_task.py:Majority")
    assert changed.origin(changed.options()) != first[0]
    assert changed.folder_name(changed.options()) != first[1]


@pytest.mark.parametrize(
    ("method", "reads"),
    [
        ("example(self, options, length, generator)", "return [1] * length, 0"),
        ("baselines(self, options, splits)", "return {}"),
        ("info_for(self, options)", "return self.info"),
        ("augmentation(self, options)", "return None"),
        ("default_recipe(self)", "return {}"),
        ("describe_example(self, examples, index)", "return ''"),
    ],
)
def test_what_a_task_reads_and_imports_late_is_part_of_its_program(folder, method, reads):
    read = 'importlib.import_module("rule_1"), open("words.txt").read()'
    name = method.partition("(")[0]
    text = (
        TASK.replace("def " + name, "def of_before_" + name) + f"\n    def {method}:\n        {read}\n        {reads}\n"
    )
    if name != "example":
        text = text.replace("of_before_example", "example")
    (folder / "my_task.py").write_text("import importlib\n" + text)

    def origin():
        program.program_of.cache_clear()
        program._hashed.clear()
        program._imported.clear()
        plugins.LOADED.clear()
        task = get_task("my_task.py:Majority")
        return task.origin(task.options())

    found = []
    for words, rule in (("a", "X = 1"), ("b", "X = 1"), ("b", "X = 2")):
        (folder / "words.txt").write_text(words)
        (folder / "rule_1.py").write_text(rule)
        found.append(origin())
    assert len(set(found)) == 3


def test_a_file_that_an_option_names_is_part_of_the_program(folder):
    text = TASK.replace("letters: int = 2", 'letters: int = 2\n    words: str = "a.txt"')
    text = text.replace("        tokens =", "        open(options.words).read()\n        tokens =")
    (folder / "my_task.py").write_text(text)
    found = []
    for words in ("a", "b"):
        (folder / "a.txt").write_text(words)
        (folder / "b.txt").write_text(words)
        program.program_of.cache_clear()
        program._hashed.clear()
        program._imported.clear()
        plugins.LOADED.clear()
        task = get_task("my_task.py:Majority")
        found += [task.origin(task.options(words=name)) for name in ("a.txt", "b.txt")]
    assert len(set(found)) == 4


def test_a_file_that_changes_during_a_run_ends_it(folder):
    from runners.train import run as training

    config = run("--task", "my_task.py:Majority", "--dry-run")
    assert config.exit_code == 0
    task = get_task("my_task.py:Majority")

    class Config:
        class variant:  # noqa: N801
            origin = ""

        class model:  # noqa: N801
            pool_origin = ""

        task_origin = task.origin(task.options())

    training.check_process(Config)
    (folder / "my_task.py").write_text(TASK.replace("length / 2", "length / 4"))
    training.check_process(Config)  # what runs is what was imported
    from attention_zoo import program

    path = str(folder / "my_task.py")
    program._imported[path] = "0" * 64
    with pytest.raises(training.UsageError, match=r"my_task\.py has changed"):
        training.check_process(Config)
    del program._imported[path]


def test_a_task_that_reads_more_than_its_trial_is_refused(folder):
    late = "if generator.integers(0, 150) == 7:\n            Path('late.txt').read_text()"
    changed = TASK.replace("        return tokens, int(", f"        {late}\n        return tokens, int(")
    (folder / "my_task.py").write_text("from pathlib import Path\n" + changed)
    (folder / "late.txt").write_text("1")
    done = run("--task", "my_task.py:Majority")
    assert done.exit_code == 3
    assert "late.txt was read now, but not in the trial from which the run id comes" in done.stderr
    assert not list((folder / "home").glob("majority-*"))


LATE = """
import pathlib

import torch


class Late(torch.nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.map = torch.nn.Linear(dim, dim)

    def forward(self, x, mask):
        if len(x) == 32:
            pathlib.Path("late.txt").read_text()
        return self.map(x)
"""


def test_a_variant_that_reads_more_than_its_trial_gives_no_number(folder):
    (folder / "late.py").write_text(LATE)
    (folder / "late.txt").write_text("1")
    words = ["--task", "my_task.py:Majority", "--attn", "late.py:Late"]
    common = ["--data-dir", "home", "--store", "store", "--device", "cpu", "--threads", "1", "--quiet"]
    done = CliRunner().invoke(lra_run, [*words, *common], catch_exceptions=False)
    assert done.exit_code == 2
    assert "late.txt was read now, but not in the trial from which the run id comes" in done.stderr
    assert not list((folder / "store").glob("results/*/*"))


def test_a_profile_may_have_it(folder):
    (folder / "mine.yaml").write_text(
        "name: mine\ntitle: mine\nsource: mine\ntasks:\n  majority:\n    data: {length: 7, test_length: [7, 21]}\n"
        "    model: {dim: 8, num_layers: 1, num_heads: 2, mlp_dim: 8}\n"
        "    train: {batch_size: 4, steps: 3, lr: 1e-3, eval_every: 3}\n"
    )
    assert run("--task", "my_task.py:Majority", "--profile", "mine.yaml").exit_code == 0
    (record,) = Store(folder / "store").records()
    assert record.config.model.max_length == 21
    assert record.outcome.test.total == 200


@pytest.mark.nightly  # by default, the report of one length
def test_a_report_shows_each_length(folder):
    few = ["--set", "data.test_length=[9,27]", "--set", "model.max_length=27", "--track", "open"]
    assert run("--task", "my_task.py:Majority", *few).exit_code == 0
    (record,) = Store(folder / "store").records()
    correct = Store(folder / "store").arrays(record.run_id)["test_correct"]
    done = CliRunner().invoke(
        lra_report, ["probes", "--store", "store", "--figure", "probes.png"], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert (folder / "probes.png").stat().st_size > 5_000
    (row,) = [line.split() for line in done.stdout.splitlines() if line.startswith("MLP only")]
    assert row[-2:] == [f"{correct[:100].mean() * 100:.1f}", f"{correct[100:].mean() * 100:.1f}"]
    assert row[-2] != row[-1]
    assert "Majority (my_task.py:Majority) 27 (x3)" in done.stdout  # a baseline has this title, too
    assert "Majority (my_task.py:Majority) 9: learnt by no variant." in done.stdout  # the bag of tokens says it all
    assert [line.split()[-2:] for line in done.stdout.splitlines() if line.startswith("Chance")] == [["50.0", "50.0"]]
    words = ["locality", record.run_id[:8], "--store", "store", "--data-dir", "home", "--examples", "2"]
    done = CliRunner().invoke(lra_report, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    row, dataset = [line.split() for line in done.stdout.splitlines() if line.startswith("Majority")]
    assert dataset[0] == "Majority:"
    assert row[-5:] == ["0.00", "0", "0", "0", "26"], "mlp_only mixes"


def test_a_report_of_other_tasks_is_refused(folder):
    (folder / "store").mkdir()
    done = CliRunner().invoke(lra_report, ["probes", "--store", "store"])
    assert done.exit_code == 2
    assert "no records" in done.stderr


@pytest.mark.parametrize(
    ("reference", "change", "message"),
    [
        ("my_task.py:Majorty", None, "--task my_task.py:Majorty: Majorty is not a class of lra.tasks.GeneratedTask"),
        ("my_tsk.py:Majority", None, "no such file; did you mean 'my_task.py'"),
        ("my_task.py:Majority", ("import ClassVar", "import ClasVar"), "my_task.py:3"),
        ("my_task.py:Majority", ("def example", "def exmple"), "Majority: define example"),
        ("my_task.py:Majority", ('name="majority"', 'name="listops"'), "'listops' is that of a task of this project"),
        ("my_task.py:Majority", ('name="majority"', 'name="My-Task"'), "must be lower snake case"),
        ("my_task.py:Majority", ("integers(1,", "integers(0,"), "tokens 0 to 2; with vocab_size=3 they are 1 to 2"),
        ("my_task.py:Majority", ("> length / 2)", "> length / 2) + 1"), "gave label 2; with num_classes=2"),
        ("my_task.py:Majority", ("int((tokens == 2).sum() > length / 2)", "0.7"), "gave label 0.7; with num_classes=2"),
        ("my_task.py:Majority", ("letters, length", "letters, length + 1"), "shape (10,)"),
        ("majorty", None, "unknown task 'majorty'"),
    ],
)
def test_a_mistake_is_one_line(folder, reference, change, message):
    if change:
        assert TASK.count(change[0]) == 1
        (folder / "my_task.py").write_text(TASK.replace(*change))
    done = run("--task", reference)
    assert done.exit_code in (2, 3)
    assert message in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error: ")]) == 1
    assert not (folder / "store" / "results").exists()


def test_an_installed_task_is_found_by_its_entry_point(folder, monkeypatch):
    from importlib.metadata import EntryPoint

    (folder / "installed_majority.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(folder))
    point = EntryPoint(name="majority", value="installed_majority:Majority", group=plugins.ENTRY_POINT_GROUP)
    installed = point._for(SimpleNamespace(name="theirs", version="1"))
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: [installed] if group == "lra.tasks" else [])
    task = get_task("majority")
    assert task.info.title == "Majority"
    assert task.origin(task.options()).startswith("theirs 1 installed_majority:Majority source ")
    with pytest.raises(UsageError, match="is the task majority; one run has one name"):
        get_task("installed_majority:Majority")
    (folder / "link.py").symlink_to("installed_majority.py")
    for name in ("installed_majority.py", "link.py"):
        with pytest.raises(UsageError, match="is the task majority; one run has one name"):
            get_task(f"{folder / name}:Majority")
    wrong = EntryPoint(name="minority", value="installed_majority:Majority", group=plugins.ENTRY_POINT_GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda *, group: [wrong])
    with pytest.raises(Exception, match="another name than its task, 'majority'"):
        get_task("minority")


BUILD = """
    def build(self, options, target, *, source, workers, progress):
        open("late.txt").close()
        return super().build(options, target, source=source, workers=workers, progress=progress)
"""


def test_what_all_of_a_tasks_preparation_reads_is_watched(folder):
    """Not its draws alone: what it was made from is not known, so nothing is left of it."""
    (folder / "late.txt").write_text("1")
    (folder / "my_task.py").write_text(TASK + BUILD)
    done = run("--task", "my_task.py:Majority")
    assert done.exit_code == 3
    assert "late.txt was read now, but not in the trial" in done.stderr
    assert not list((folder / "home").glob("majority-*"))


def test_nothing_that_has_to_be_refused_is_there_for_a_moment(folder, monkeypatch):
    """A kill at that moment would leave it, and another process would take it."""
    (folder / "late.txt").write_text("1")
    (folder / "my_task.py").write_text(TASK + BUILD)
    monkeypatch.setattr(base, "write_prepared", lambda *_, **__: pytest.fail("published"))
    assert run("--task", "my_task.py:Majority").exit_code == 3


def test_data_of_another_program_under_the_name_of_this_one_is_refused(folder, monkeypatch):
    assert run("--task", "my_task.py:Majority", "--limit-steps", "2").exit_code == 0
    (prepared,) = (folder / "home").glob("majority-*")
    task = get_task("my_task.py:Majority")
    monkeypatch.setattr(task, "program", lambda _: "my_task.py:Majority source 0123456789abcdef")
    other = prepared.rename(prepared.with_name(task.folder_name(task.options())))
    assert other != prepared
    with pytest.raises(DataError, match="holds other data than its name says"):
        task.prepare(task.options(), folder / "home", progress=False)


def test_a_task_may_read_what_it_was_tried_with_and_what_it_wrote(folder):
    (folder / "late.txt").write_text("1")
    (folder / "my_task.py").write_text(f"open('late.txt').close()\n{TASK}{BUILD}")
    done = CliRunner().invoke(lra_data, ["prepare", "my_task.py:Majority", "--data-dir", "home"])
    assert done.exit_code == 0, done.output


def test_a_task_leaves_alone_what_says_from_what_its_data_is(folder):
    (folder / "my_task.py").write_text(f"{TASK}\n    def folder_name(self, options):\n        return 'majority'\n")
    done = run("--task", "my_task.py:Majority")
    assert done.exit_code == 2
    assert "Majority: leave folder_name as it is" in done.stderr


@pytest.mark.parametrize("name", ["Majority", "chance", "first\u200b letter", "MLP only, trained"])
def test_baselines_that_would_look_alike_are_refused(folder, name):
    (folder / "my_task.py").write_text(TASK.replace('{"first letter": 61.0}', f"{{{name!r}: 61.0}}"))
    done = run("--task", "my_task.py:Majority")
    assert done.exit_code == 3
    assert f"no baseline can be called {name!r}" in done.stderr


AUGMENTATION = """
    def augmentation(self, options):
        import random

        import numpy

        def change(tokens, generator):
            order = list(range(len(tokens)))
            random.shuffle(order)
            return numpy.random.permutation(tokens[order])

        return change
"""


def test_a_change_of_a_task_of_others_may_draw_from_the_generators_of_the_process(folder):
    """It is not made in another thread, in which its draws would fall between any two of the model's."""
    (folder / "my_task.py").write_text(TASK + AUGMENTATION)
    words = (
        "--task",
        "my_task.py:Majority",
        "--track",
        "open",
        "--set",
        "train.augment=true",
        "--set",
        "train.steps=60",
    )
    assert run(*words).exit_code == 0
    done = run(*words, "--force")  # compares the curves
    assert done.exit_code == 0, done.stderr


def test_of_two_names_of_one_task_in_a_profile_the_one_that_does_not_count_is_printed(folder, capsys):
    shipped = load_profile("quick")
    recipe = shipped.tasks["listops"]
    for names, told in ((["majority"], ""), (["my_task.py:Majority", "majority"], "tasks.majority.\n")):
        own = shipped.model_copy(update={"name": "mine", "tasks": dict.fromkeys(names, recipe)})
        name_unused(own, [("my_task.py:Majority", "full")])
        assert capsys.readouterr().err == (told and f"Profile mine: no run of this command has {told}")


@pytest.mark.parametrize(
    "ways",
    [
        [{}, {"rate": 1}, {"rate": 1.0}],
        [{}, {"maybe": 1}, {"maybe": 1.0}],
        [{}, {"several": [1, 0]}, {"several": [1.0, -0.0]}],
        [{}, {"rows": [[1]]}, {"rows": [[1.0]]}],
        [{}, {"zero": 0}, {"zero": -0.0}],
        [{"share": 2}, {"share": 2.0}],
    ],
)
def test_equal_values_of_an_option_of_a_task_are_written_as_one(ways):
    class Options(GeneratedOptions):
        rate: float = 1
        maybe: float | None = 1
        several: list[float] = Field(default=[1, 0])
        rows: list[list[Annotated[float, Field(ge=0)]]] = Field(default=[[1]])
        zero: float = -0.0
        share: Literal["auto"] | float = "auto"

    written = {Options.model_validate(way).model_dump_json() for way in ways}
    assert len(written) == 1


@pytest.mark.parametrize(
    "hint",
    [
        int | float,
        Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0)],
        list[int | float],
        list[int] | list[float],
        Literal[1] | float,
        Literal[1.0],
        Literal[False],
        int | Literal[True],
        dict[str, float],
        tuple[int, ...],
        set[int],
        list,
        Any,
        GeneratedOptions,
    ],
)
def test_an_option_of_a_task_with_values_that_could_be_written_in_two_ways_is_refused(hint):
    with pytest.raises(TypeError, match=r"^option noise of Options: "):
        type("Options", (GeneratedOptions,), {"__annotations__": {"noise": hint}, "__module__": __name__})


@pytest.mark.parametrize(
    "members",
    [
        {"__annotations__": {"noise": float}, "noise": Field(default=0.0, exclude=True)},
        {"model_config": {"extra": "allow"}},
    ],
)
def test_an_option_that_would_be_in_no_name_is_refused(members):
    with pytest.raises(TypeError, match=r"noise of Options: leave out `exclude`|Options: leave model_config as it is"):
        type("Options", (GeneratedOptions,), members | {"__module__": __name__})


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3.0])
def test_a_value_that_is_written_as_another_is_in_no_name(value):
    """As null, or as what a serializer makes of it: then two values would have one."""
    halved = Annotated[float, PlainSerializer(lambda number: number / 2 if number == 3 else number)]
    task = get_task("listops")
    options = type("Options", (task.options,), {"__annotations__": {"noise": halved}, "__module__": __name__})
    assert task.folder_name(options(noise=1.0)) != task.folder_name(options(noise=2.0))
    with pytest.raises(UsageError, match=r"task listops: its options are written as .*, which is not what they are"):
        task.folder_name(options(noise=value))


@pytest.mark.parametrize("left", [1, True, -0.0])
def test_a_value_that_a_validator_leaves_in_another_form_is_in_no_name(left):
    """It would be the same data as 1.0, or 0.0, and another run."""

    task = get_task("listops")

    class Options(task.options):
        noise: float = 0.0

        @model_validator(mode="after")
        def leave(self):
            if self.noise == 3.0:
                object.__setattr__(self, "noise", left)
            return self

    named = [task.folder_name(Options(noise=value)) for value in (float(left), 2.0)]
    assert len(set(named)) == 2
    with pytest.raises(UsageError, match=r"task listops: its options are written as .*, which is not what they are"):
        task.folder_name(Options(noise=3.0))


def test_such_an_option_is_one_line_with_its_place(folder):
    (folder / "my_task.py").write_text(TASK.replace("letters: int = 2", "letters: int | float = 2"))
    done = run("--task", "my_task.py:Majority")
    assert done.exit_code == 2
    assert "option letters of MajorityOptions: of int | float, two members take equal values" in done.stderr
    assert "my_task.py:8: " in done.stderr
