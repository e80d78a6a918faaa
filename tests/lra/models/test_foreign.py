"""Whole models that were not written for the harness: built by names, tried out, trained, found again."""

import re
import shutil
from pathlib import Path

import pytest
import torch

import lra
from attention_zoo import create
from attention_zoo.foreign import ForeignError
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.errors import StoreError, UsageError
from lra.measure.model_size import flops_of_example, parameters_of
from lra.models.foreign import ForeignModel
from lra.models.transformer import build_model, count_parameters
from lra.results.records import Store
from lra.tasks import get_task
from lra.trained import TrainedRun
from runners.train.loop import PreemptedRunError
from runners.train.plan import check_models
from tests.runners.tiny_runs import TINY, execute, tiny, tiny_data

FILE = str(Path(__file__).with_name("foreign_models.py"))
CPU = torch.device("cpu")


def model_of(config) -> ForeignModel:
    info = get_task(config.task).info
    model = build_model(config, info.vocab_size, info.num_classes)
    assert isinstance(model, ForeignModel)
    return model


def config_of(name, task="listops", **overrides):
    profile = load_profile("quick" if task == "listops" else "modern")
    return resolve(task=task, variant=f"{FILE}:{name}", profile=profile, seed=0, track="open", overrides=overrides)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("build", "listops"),
        ("Bag", "retrieval"),
        ("build", "image_continuous"),
        *(
            pytest.param(name, task, marks=pytest.mark.nightly)
            for name in ("build", "Bag")
            for task in ("text", "image", "pathfinder")
        ),
    ],
)
def test_a_sound_model_is_built_and_called_for_every_kind_of_task(name, task):
    config = config_of(name, task)
    check_models([config], CPU)
    model, info = model_of(config), get_task(task).info
    tokens = torch.randint(1, 255, (3, 2, 20) if info.paired else (3, 20), dtype=torch.int16) % info.vocab_size
    for mask in (None, torch.rand(tokens.shape) > 0.5):
        assert model(tokens, mask).shape == (3, info.num_classes)
    values = [name for name, _ in model.named_parameters() if "embed.bias" in name]
    assert bool(values) == (task == "image_continuous")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("IgnoresTheMask", "the answer depends on how far a sequence is padded; use the mask"),
        ("MixesTheBatch", "the answer for a sequence depends on the others of its batch"),
        ("WrongShape", r"model(tokens, mask) gave (2, 9), not logits of shape (2, 10)"),
        ("NotANumber", "the logits of made-up tokens are not finite"),
        ("Detached", "its logits depend on no parameter"),
        ("TakesNoMask", "forward(tokens) cannot be called as model(tokens, mask)"),
        ("Fails", "`return self.out(self.embed(tokens) @ mask)`: RuntimeError: "),
        ("CannotBeBuilt", '`raise ValueError("no such size")`: ValueError: no such size'),
        ("builds_nothing", "built int, not an nn.Module"),
        ("needs_more", "needs 'depth': give --set variant.depth=..."),
    ],
)
def test_a_mistake_is_one_line(name, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        check_models([config_of(name)], CPU)
    assert len(str(caught.value).splitlines()) == 1
    assert f"foreign_models.{name}" in str(caught.value)


LATE = """
import functools
from pathlib import Path
from tests.lra.models.foreign_models import Bag

@functools.cache
def table():
    return len(Path("scale.txt").read_text())

class Late(Bag):
    def forward(self, tokens, mask=None):
        return super().forward(tokens, mask) * (table() if tokens.shape[1] > 16 else 1)
"""


def test_what_a_model_reads_when_it_is_tried_out_and_not_in_the_trial_is_refused(tmp_path, monkeypatch):
    """The run would find it in memory, and not read it."""
    monkeypatch.chdir(tmp_path)
    Path("late_model.py").write_text(LATE)
    Path("scale.txt").write_text("1")
    config = resolve(
        task="listops", variant="late_model.py:Late", profile=load_profile("quick"), seed=0, track="open", overrides={}
    )
    with pytest.raises(UsageError, match=r"scale\.txt was read now, but not in the trial"):
        check_models([config], CPU)


def test_a_model_may_ignore_the_mask_where_all_are_padded_to_one_length():
    check_models([config_of("IgnoresTheMask", **{"train.padding": "fixed"}), config_of("IgnoresTheMask", "image")], CPU)


def test_the_trial_draws_nothing_and_leaves_the_mode():
    model = model_of(config_of("build"))
    torch.manual_seed(1)
    model.try_out()
    after = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(3))
    assert model.training


def test_padding_and_rows_without_tokens_do_not_reach_the_model():
    model = model_of(config_of("build")).eval()
    tokens, mask = torch.randint(1, 15, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    mask[0, 5:] = False
    mask[1] = False
    expected = model(tokens[:1, :5])
    torch.testing.assert_close(model(tokens, mask)[:1], expected)
    assert model(tokens, mask).isfinite().all()


def test_arguments_that_the_harness_does_not_decide_are_options():
    assert config_of("Bag").variant.options == {"width": 8, "noise": 0.1}
    assert model_of(config_of("Bag", **{"variant.width": 4})).inner.out.in_features == 4
    assert model_of(config_of("needs_more", **{"variant.depth": 3})).inner.out.in_features == 3
    with pytest.raises(UsageError, match=r"no option of .*; did you mean 'width'"):
        config_of("Bag", **{"variant.widht": 4})


def test_only_the_open_track_has_them_and_the_family_follows_from_the_variant():
    assert config_of("build").model.family == "foreign"
    profile = load_profile("quick")
    with pytest.raises(UsageError, match="builds a whole model, which no profile has; --track open admits it"):
        resolve(task="listops", variant=f"{FILE}:build", profile=profile, seed=0, overrides={})
    with pytest.raises(UsageError, match=r"model\.family: .*build builds a whole model.* \(got 'convnet'\)"):
        config_of("build", "image", **{"model.family": "convnet"})
    with pytest.raises(UsageError, match=r"model\.family: full is no whole model"):
        resolve(
            task="listops", variant="full", profile=profile, seed=0, track="open", overrides={"model.family": "foreign"}
        )
    with pytest.raises(ForeignError, match="a whole model, not a mixer"):
        create(f"{FILE}:build", dim=8, num_heads=2, max_length=8)


def test_parameters_and_operations_are_counted():
    config = tiny(f"{FILE}:build")
    info = get_task("listops").info
    expected = info.vocab_size * 8 + 8 * 10 + 10
    ours = ("model.dim", "model.max_length")  # all that a whole model is told; the other sizes are the profile's
    of_profile = {path: value for path, value in TINY.items() if path in ours or not path.startswith("model.")}
    full = resolve(
        task="listops", variant="full", profile=load_profile("quick"), seed=0, track="open", overrides=of_profile
    )
    assert parameters_of(config) == (expected, parameters_of(full)[0])
    assert count_parameters(model_of(config)) == expected
    assert flops_of_example(config, info, CPU) == 3 * 2 * 8 * 10  # forward, and both gradients of the linear map


def test_a_model_that_refuses_a_batch_of_one_keeps_its_run_without_a_count(data, tmp_path):
    record = execute(tiny(f"{FILE}:Normalized"), data, Store(tmp_path))
    assert record.cost.flops is None
    assert record.cost.parameters > 0


def test_the_id_covers_the_source_and_not_the_folder(tmp_path):
    ids = []
    for number, change in enumerate(("", "# a comment\n", "UNUSED = 1\n")):
        copy = tmp_path / str(number) / "mine.py"
        copy.parent.mkdir()
        copy.write_text(Path(FILE).read_text() + change)
        ids.append(tiny(f"{copy}:build").run_id("0" * 64))
    assert ids[0] == ids[1] != ids[2]


def test_a_run_goes_on_to_the_same_bits_and_is_found_again(data, tmp_path):
    config = tiny(f"{FILE}:Bag", **{"train.steps": 12})
    unbroken = execute(config, data, Store(tmp_path / "unbroken"))
    store, calls = Store(tmp_path / "broken"), iter([False] * 5 + [True])
    with pytest.raises(PreemptedRunError):
        execute(config, data, store, stop=lambda: next(calls))
    record = execute(config, data, store)
    assert record.cost.resumed == 1
    assert record.outcome == unbroken.outcome
    assert record.variant_title == "foreign_models.Bag"
    assert lra.load_results(store.root)["label"].tolist() == ["foreign_models.Bag"]
    assert isinstance(lra.load_run(record.run_id[:9], store.root).model(), ForeignModel)


def test_changed_code_does_not_answer_for_the_run(data, tmp_path):
    file = tmp_path / "mine.py"
    shutil.copy(FILE, file)
    store = Store(tmp_path)
    record = execute(tiny(f"{file}:build"), data, store)
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.py").write_text(Path(FILE).read_text() + "UNUSED = 1\n")
    config = record.config
    moved = config.variant.model_copy(update={"name": f"{other / 'mine.py'}:build"})
    changed = TrainedRun(
        record=record.model_copy(update={"config": config.model_copy(update={"variant": moved})}), store=store
    )
    with pytest.raises(StoreError, match="was made with another program"):
        changed.model()
