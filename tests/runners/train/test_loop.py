"""The loop and the run: resumed runs, divergence, selection, what a run may not do."""

import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from attention_zoo import ParameterGroup, Traits, VariantConfig, register_variant, registry
from attention_zoo.base import LayerDims
from attention_zoo.variants.full import FullAttention, FullConfig
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import RunConfig
from lra.data.batching import TrainingBatches
from lra.data.dataset import PreparedData, open_prepared
from lra.errors import DataError, StoreError, UsageError
from lra.results.checkpoints import list_checkpoints, read_state, write_state
from lra.results.records import EARLIER, ConflictError, Store
from lra.results.weights import load_weights
from lra.schedules import learning_rate
from lra.tasks import get_task
from lra.trained import load_run
from runners.arithmetic import set_arithmetic
from runners.train import peak_memory
from runners.train import run as run_module
from runners.train.loop import TrainState
from runners.train.run import OtherEnvironmentError, PreemptedRunError, RunError, RunOptions, run
from runners.train.summary import summary, summary_rows
from tests.runners.tiny_runs import rewritten

TINY = {
    "data.train": 256, "data.validation": 64, "data.test": 64, "data.min_length": 4, "data.max_length": 24,
    "data.max_depth": 3, "data.max_args": 4,
    "model.dim": 16, "model.num_layers": 1, "model.num_heads": 2, "model.mlp_dim": 16, "model.max_length": 24,
    "train.batch_size": 8, "train.steps": 12, "train.eval_every": 5, "train.lr": 1e-2, "train.warmup_steps": 2,
}  # fmt: skip


def tiny(variant="full", **overrides) -> RunConfig:
    return resolve(
        task="listops", variant=variant, profile=load_profile("quick"), seed=0, track="open", overrides=TINY | overrides
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    task = get_task("listops")
    return task.prepare(
        task.options.model_validate(tiny().data), tmp_path_factory.mktemp("data"), workers=1, progress=False
    )


DROPOUT = {"model.dropout": 0.1, "model.attention_dropout": 0.1}
"""The profile has none, and without it nothing in a step is random."""


class StopAt:
    """Asks to stop at a look; there is one after each step and one after each batch of an evaluation."""

    def __init__(self, look):
        self.left = look

    def __call__(self):
        self.left -= 1
        return self.left == 0


def execute(config, data, folder, stop=lambda: False, **settings):
    options = RunOptions(device=torch.device("cpu"), progress=False, **{"checkpoint_seconds": 1e9} | settings)
    return run(config, data, Store(folder), options, stop)


def curve(folder, record):
    arrays = Store(folder).arrays(record.run_id)
    assert len(arrays["curve.step"]) >= 3
    return {name: array.tolist() for name, array in arrays.items()}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        pytest.param({"train.accumulation": 3}, marks=pytest.mark.nightly),
        pytest.param({"train.precision": "bfloat16"}, marks=pytest.mark.nightly),
        pytest.param(
            {"train.padding": "fixed", "model.pooling": "cls", "train.clip_norm": 1.0}, marks=pytest.mark.nightly
        ),
        pytest.param({"train.selection": "last"}, marks=pytest.mark.nightly),
    ],
    ids=["plain", "accumulation", "bfloat16", "fixed-cls-clip", "last"],
)
@pytest.mark.parametrize("variant", ["full", pytest.param("contextpool", marks=pytest.mark.nightly)])
def test_stopping_at_any_look_changes_no_bit(data, tmp_path, variant, overrides):
    config = tiny(variant, **DROPOUT | overrides)
    looks = 12 + 3 + 2  # steps, validations of one batch, last passes over validation and test
    unbroken = execute(config, data, tmp_path / "unbroken", StopAt(looks + 1))
    # By day one of each kind: after a step, in the first and in the last validation, in the pass over test
    for look in (3, 6, 15, 17) if variant == "full" else range(1, looks + 1):
        folder = tmp_path / f"stop-{look}"
        with pytest.raises(PreemptedRunError, match=r"after step \d+ with the state saved"):
            execute(config, data, folder, StopAt(look))
        saved = list_checkpoints(Store(folder).checkpoint_folder(unbroken.run_id))
        assert len(saved) >= 1  # the stop during a validation as well: its message says so
        resumed = execute(config, data, folder)
        assert resumed.cost.resumed == 1
        assert resumed.outcome == unbroken.outcome
        assert curve(folder, resumed) == curve(tmp_path / "unbroken", unbroken)


def test_a_run_that_forgets_its_state_is_told_apart(data, tmp_path, monkeypatch):
    """The broken twin of the test above: a resume that loses the optimiser's state ends elsewhere."""
    config = tiny()
    unbroken = execute(config, data, tmp_path / "unbroken")
    with pytest.raises(PreemptedRunError):
        execute(config, data, tmp_path / "broken", StopAt(4))
    monkeypatch.setattr(torch.optim.AdamW, "load_state_dict", lambda self, state: None)
    assert execute(config, data, tmp_path / "broken").outcome != unbroken.outcome


def test_damaged_checkpoints_cost_time_not_bits(data, tmp_path):
    config = tiny()
    unbroken = execute(config, data, tmp_path / "unbroken")
    folder = tmp_path / "damaged"
    with pytest.raises(PreemptedRunError):
        execute(config, data, folder, StopAt(8), checkpoint_seconds=0.0)
    checkpoints = list_checkpoints(Store(folder).checkpoint_folder(unbroken.run_id))
    assert [step for step, _ in checkpoints] == [7, 6]
    newest = checkpoints[0][1]
    newest.write_bytes(newest.read_bytes()[:-100])
    assert execute(config, data, folder).outcome == unbroken.outcome


def test_accumulation_equals_one_batch(data, tmp_path):
    # Adam divides by the size of the gradient, and would hide a wrong one, but for a large eps.
    settings = {"model.dropout": 0.0, "model.attention_dropout": 0.0, "train.steps": 3, "train.eps": 1.0}
    losses = []
    for parts in (1, 2, 3, 4):  # a batch of 8 has no three equal parts
        config = tiny(**settings, **{"train.accumulation": parts, "train.lr": 0.5})
        losses.append(execute(config, data, tmp_path / str(parts)).outcome.validation.loss)
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-5)
    start = execute(tiny(**settings, **{"train.lr": 1e-9}), data, tmp_path / "start").outcome.validation.loss
    assert abs(losses[0] - start) > 0.01  # they have moved


def test_clipped_gradients_move_little(data, tmp_path):
    settings = {"model.dropout": 0.0, "model.attention_dropout": 0.0, "train.steps": 3, "train.eps": 1.0}
    losses = {}
    for norm in (None, 1e9, 1e-4):
        config = tiny(**settings, **{"train.lr": 0.5, "train.clip_norm": norm})
        losses[norm] = execute(config, data, tmp_path / str(norm)).outcome.validation.loss
    start = execute(tiny(**settings, **{"train.lr": 1e-9}), data, tmp_path / "start").outcome.validation.loss
    assert losses[1e9] == losses[None]
    assert abs(losses[1e-4] - start) < 0.01 * abs(losses[None] - start)


def test_the_best_weights_on_validation_are_scored_not_the_last(data, tmp_path):
    config = tiny(**{"train.steps": 40, "train.eval_every": 4, "train.lr": 3e-2})
    record = execute(config, data, tmp_path)
    found = curve(tmp_path, record)
    correct = found["curve.validation_correct"]
    best = int(np.argmax(correct))  # the first of equals
    assert correct[best] > correct[-1]
    assert correct.count(correct[best]) < len(correct)
    assert record.outcome.selected_step == found["curve.step"][best]
    assert record.outcome.validation.correct == correct[best]
    last = execute(
        config.model_copy(update={"train": config.train.model_copy(update={"selection": "last"})}), data, tmp_path
    )
    assert last.outcome.selected_step == 40
    assert last.outcome.validation.correct == correct[-1]


def test_step_n_has_the_learning_rate_of_step_n(data, tmp_path):
    """Step 0 has none under a warm-up, so its weights are those of the start; the last has that of steps - 1."""
    settings = {"train.schedule": "cosine", "train.warmup_steps": 6, "train.eval_every": 4}
    found = curve(tmp_path, execute(tiny(**settings), data, tmp_path))
    assert found["curve.step"] == [4, 8, 12]
    assert found["curve.learning_rate"] == pytest.approx([learning_rate("cosine", 1e-2, n, 12, 6) for n in (3, 7, 11)])


def test_a_finished_run_is_not_run_again_and_force_agrees(data, tmp_path, monkeypatch):
    config = tiny()
    first = execute(config, data, tmp_path)
    assert execute(config, data, tmp_path, force=True) == first
    monkeypatch.setattr("runners.train.run.build_model", None)  # would fail if anything ran
    assert execute(config, data, tmp_path) == first


def stopped(config, data, folder, look=4, **settings):
    with pytest.raises(PreemptedRunError):
        execute(config, data, folder, StopAt(look), **settings)


def test_a_state_with_parameters_in_another_order_is_not_continued(data, tmp_path):
    """The optimizer's state goes by their order, so that one would get the moments of another of its shape."""
    config = tiny()
    stopped(config, data, tmp_path)
    [(_, newest), *_] = list_checkpoints(Store(tmp_path).checkpoint_folder(config.run_id(data.digest)))
    state = read_state(newest)
    write_state(newest, state | {"model": dict(reversed(state["model"].items()))})
    with pytest.raises(UsageError, match="its parameters in another order"):
        execute(config, data, tmp_path)
    write_state(newest, state)
    assert execute(config, data, tmp_path).cost.resumed == 1


def test_a_statistic_of_some_evaluations_has_a_gap_in_the_others(data, tmp_path, monkeypatch):
    found = iter([{"size": 1.0}, {"size": 2.0, "large": 5.0}, {"size": 3.0}])
    monkeypatch.setattr(FullAttention, "statistics", lambda self: next(found, {}))
    record = execute(tiny(**{"train.eval_every": 4}), data, tmp_path)
    arrays = Store(tmp_path).arrays(record.run_id)
    assert arrays["curve.layer0.size"].tolist() == [1.0, 2.0, 3.0]
    np.testing.assert_array_equal(arrays["curve.layer0.large"], [np.nan, 5.0, np.nan])


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_repetition_that_was_stopped_is_continued_and_agrees(data, tmp_path):
    config = tiny()
    first = execute(config, data, tmp_path)
    folder = Store(tmp_path).checkpoint_folder(first.run_id)
    before = files(folder)
    stopped(config, data, tmp_path, look=7, force=True)
    again = list_checkpoints(folder / "again")
    assert [step for step, _ in again] == [6]
    stopped(config, data, tmp_path, look=2, force=True)  # as under pre-emption, a few steps at a time
    assert [step for step, _ in list_checkpoints(folder / "again")] == [8, 6]
    assert files(folder) == before
    assert execute(config, data, tmp_path, force=True) == first
    assert files(folder) == before
    assert not (folder / "again").exists()
    (folder / "chosen.pt").unlink()
    assert execute(config, data, tmp_path, force=True) == first
    assert files(folder).keys() == before.keys()
    (folder / "chosen.pt").write_bytes(b"damaged")
    assert execute(config, data, tmp_path, force=True) == first
    assert load_run(first.run_id, tmp_path).weights()


def test_a_repetition_that_diverges_before_its_first_checkpoint_ends(data, tmp_path, monkeypatch):
    config = tiny()
    first = execute(config, data, tmp_path / "sound")
    no_loss = torch.full((3,), torch.nan, requires_grad=True)
    monkeypatch.setattr("runners.train.loop.loss_of", lambda *_: no_loss.unbind())
    diverged = execute(config, data, tmp_path / "diverged")
    assert diverged.status == "diverged"
    assert execute(config, data, tmp_path / "diverged", force=True) == diverged
    with pytest.raises(ConflictError, match="kept as conflict-1"):
        execute(config, data, tmp_path / "sound", force=True)
    assert Store(tmp_path / "sound").find(first.run_id) == first


def test_a_repetition_with_another_outcome_leaves_the_kept_one_alone(data, tmp_path, monkeypatch):
    config = tiny()
    first = execute(config, data, tmp_path)
    store = Store(tmp_path)
    folder = store.checkpoint_folder(first.run_id)
    before, record = files(folder), store.record_path(first.run_id).read_bytes()
    monkeypatch.setattr("runners.train.loop.seed_all", lambda *_: torch.manual_seed(1))  # an unsound repetition
    monkeypatch.setattr(torch.optim.AdamW, "zero_grad", lambda self, **_: None)
    for number in (1, 2):
        with pytest.raises(ConflictError, match=f"kept as conflict-{number} beside it$"):
            execute(config, data, tmp_path, force=True)
        kept = torch.load(folder / f"conflict-{number}" / "chosen.pt", weights_only=True)
        theirs = torch.load(folder / "chosen.pt", weights_only=True)
        assert any(not torch.equal(value, theirs["model"][name]) for name, value in kept["model"].items())
    # What somebody removed of a conflict, its record or its weights, takes the place of no other.
    store.record_path(first.run_id).with_suffix(".conflict-2.json").unlink()
    shutil.rmtree(folder / "conflict-1")
    with pytest.raises(ConflictError, match=r"kept as conflict-3 beside it$"):
        execute(config, data, tmp_path, force=True)
    assert {path.name for path in folder.glob("conflict-*")} == {"conflict-2", "conflict-3"}
    assert files(folder) == before
    assert store.record_path(first.run_id).read_bytes() == record


def test_checkpoints_of_another_seed_are_refused(data, tmp_path, capsys):
    """A copy of seed 1's folder in place of seed 0's would else be continued, and published as seed 0's number."""
    store = Store(tmp_path / "store")
    expected = execute(tiny(), data, tmp_path / "clean").outcome
    other = tiny().model_copy(update={"seed": 1})
    stopped(tiny(), data, store.root)
    stopped(other, data, store.root)
    ours, theirs = (store.checkpoint_folder(c.run_id(data.digest)) for c in (tiny(), other))
    for _, path in list_checkpoints(ours):
        path.unlink()
    for _, path in list_checkpoints(theirs):
        (ours / path.name).write_bytes(path.read_bytes())
    record = execute(tiny(), data, store.root)
    assert record.outcome == expected
    assert record.cost.resumed == 0
    assert "is of another run" in capsys.readouterr().err


def test_without_the_id_in_it_a_checkpoint_of_another_seed_is_believed(data, tmp_path, monkeypatch):
    """The broken twin: a reader that trusts the folder."""
    store = Store(tmp_path / "store")
    expected = execute(tiny(), data, tmp_path / "clean").outcome
    other = tiny().model_copy(update={"seed": 1})
    stopped(other, data, store.root)
    theirs = store.checkpoint_folder(other.run_id(data.digest))
    theirs.rename(store.checkpoint_folder(tiny().run_id(data.digest)))
    real = run_module.newest_checkpoint
    monkeypatch.setattr(run_module, "newest_checkpoint", lambda folder, _: real(folder, other.run_id(data.digest)))
    assert execute(tiny(), data, store.root).outcome != expected


@pytest.mark.parametrize("change", [{"threads": 7}, {"torch": "1.0"}, {"device": "a GPU"}, {"cpu": "another"}])
def test_a_run_goes_on_under_another_environment_only_if_it_is_told_to(data, tmp_path, monkeypatch, change):
    config = tiny()
    stopped(config, data, tmp_path)
    real = run_module.describe_environment
    monkeypatch.setattr(run_module, "describe_environment", lambda device: real(device) | change)
    ((name, value),) = change.items()
    with pytest.raises(OtherEnvironmentError, match=f"{name} .* there, {value} here.*--allow-other-environment"):
        execute(config, data, tmp_path)
    stopped(config, data, tmp_path, look=2, allow_other_environment=True)
    record = execute(config, data, tmp_path)  # this environment is the one of the newest state
    assert [each[name] for each in record.environment[EARLIER]] == [real(torch.device("cpu"))[name]]
    assert record.environment[name] == value
    assert Store(tmp_path).find(record.run_id) == record
    assert f"continued under another environment ({name} " in summary([(config, record)], Store(tmp_path))
    assert summary_rows([(config, record)], Store(tmp_path))[0]["continued"].startswith(f"{name} ")


def test_an_unbroken_run_is_not_marked(data, tmp_path):
    stopped(tiny(), data, tmp_path)
    record = execute(tiny(), data, tmp_path)
    assert EARLIER not in record.environment
    assert "another environment" not in summary([(tiny(), record)], Store(tmp_path))


def in_place(path, position=-1):
    """Flip a bit of a file and set its times back."""
    times = path.stat()
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.fixture
def copied(data, tmp_path):
    shutil.copytree(data.path, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("name", ["train-labels.npy", "test-labels.npy", "validation-tokens.npy"])
def test_data_that_was_changed_in_place_gives_no_number(copied, tmp_path, name):
    in_place(copied / name)
    with pytest.raises(DataError, match="its content is not what its manifest says") as caught:
        execute(tiny(), open_prepared(copied, verify=False), tmp_path / "store")
    assert caught.value.exit_code == 3
    assert not list(tmp_path.glob("store/results/*/*"))


@pytest.mark.parametrize("damage", ["flipped", "cut off", "labels", "replaced"])
def test_data_that_changes_during_a_run_never_reaches_its_number(data, copied, tmp_path, damage):
    expected = execute(tiny(), data, tmp_path / "clean").outcome
    looks = iter(range(100))

    def damaging():
        if next(looks) == 3:
            path = copied / ("test-labels.npy" if damage == "labels" else "test-tokens.npy")
            if damage == "cut off":
                with path.open("r+b") as file:
                    file.truncate(200)
            elif damage == "replaced":
                path.unlink()
                path.write_bytes(b"")
            else:
                in_place(path)
        return False

    given = open_prepared(copied, verify=False)
    if damage in ("labels", "replaced"):
        assert execute(tiny(), given, tmp_path / "store", damaging).outcome == expected
        return
    with pytest.raises(DataError, match=r"test-tokens.npy: (changed|became shorter) while a run was reading it"):
        execute(tiny(), given, tmp_path / "store", damaging)
    assert not list(tmp_path.glob("store/results/*/*"))


def test_without_verification_changed_labels_make_another_number(copied, data, tmp_path, monkeypatch):
    """The broken twin: a run that trusts the digest in the manifest."""
    expected = execute(tiny(), data, tmp_path / "clean")
    test = data.split("test")
    np.save(copied / "test-labels.npy", (test.labels + 1) % 10)
    monkeypatch.setattr(PreparedData, "verified", lambda self: self)
    record = execute(tiny(), open_prepared(copied, verify=False), tmp_path / "store")
    assert record.run_id == expected.run_id
    assert record.outcome.test != expected.outcome.test


def test_infinite_loss_is_diverged_and_has_no_number(data, tmp_path):
    record = execute(tiny(**{"train.lr": 1e30, "train.warmup_steps": 0}), data, tmp_path)
    assert record.status == "diverged"
    assert record.outcome is None
    assert "not finite" in record.detail
    assert "test_correct" not in Store(tmp_path).arrays(record.run_id)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "oom"),
        (MemoryError(), "oom"),
        (dist.DistBackendError("NCCL error\nncclUnhandledCudaError: ..\nCuda failure 'out of memory'"), "oom"),
        (ZeroDivisionError("broken variant"), "failed"),
    ],
)
def test_errors_inside_a_run_become_attempts_with_a_status(data, tmp_path, monkeypatch, error, status):
    def broken(self, x, mask=None):
        raise error

    monkeypatch.setattr(FullAttention, "forward", broken)
    with pytest.raises(RunError) as caught:
        execute(tiny(), data, tmp_path)
    assert caught.value.status == status
    assert caught.value.exit_code == 4
    notes = list((tmp_path / "attempts").glob("*/*.json"))
    assert len(notes) == 1
    assert f'"status": "{status}"' in notes[0].read_text()
    assert not list((tmp_path / "results").glob("*/*"))


@pytest.fixture
def _deterministic(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    set_arithmetic(deterministic=True)
    yield
    torch.use_deterministic_algorithms(mode=False)


@pytest.mark.usefixtures("_deterministic")
def test_a_variant_that_cannot_be_deterministic_is_named_with_its_operator(data, tmp_path, monkeypatch):
    record = execute(tiny(), data, tmp_path)
    assert record.environment["deterministic_algorithms"] is True

    def unordered(self, x, mask=None):
        return x.clone().put_(torch.zeros(1, dtype=torch.int64), torch.ones(1))

    monkeypatch.setattr(FullAttention, "forward", unordered)
    with pytest.raises(RunError, match="--deterministic: full uses put_, which has no deterministic algorithm on cpu"):
        execute(tiny(), data, tmp_path, force=True)


UNORDERED = """
import torch
class M(torch.nn.Linear):
    def __init__(self, dim, puts=False):
        super().__init__(dim, dim)
        self.puts, self.table = puts, torch.nn.Parameter(torch.randn(16, dim))
    def forward(self, x, mask=None):
        if self.puts:
            x.clone().put_(torch.zeros(1, dtype=torch.int64), torch.ones(1))
        return super().forward(x) + self.table[torch.arange(x.shape[0] * x.shape[1]).view(x.shape[:2]) % 16]
"""
"""A layer that reads a parameter by index, so that its gradients are sums in the order in which threads come."""


def test_a_program_of_a_third_party_adds_in_order_on_several_threads(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("unordered.py").write_text(UNORDERED)
    record = execute(tiny("unordered.py:M"), data, tmp_path)
    assert record.environment["deterministic_algorithms"] is False  # one thread has one order
    torch.set_num_threads(2)
    try:
        ours = execute(tiny(), data, tmp_path)
        theirs = execute(tiny("unordered.py:M").model_copy(update={"seed": 1}), data, tmp_path)
        with pytest.raises(RunError, match=r"several threads: .*uses put_, .* on cpu; run it with --threads 1"):
            execute(tiny("unordered.py:M", **{"variant.puts": True}), data, tmp_path)
    finally:
        torch.set_num_threads(1)
    assert ours.environment["deterministic_algorithms"] is False
    assert theirs.environment["deterministic_algorithms"] is True
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_error_while_batches_are_made_ends_the_run(data, tmp_path, monkeypatch):
    make = TrainingBatches.batch

    def broken(self, step, device):
        if step == 3:
            raise ValueError("token 7 of example 3")
        return make(self, step, device)

    monkeypatch.setattr(TrainingBatches, "batch", broken)
    with pytest.raises(RunError, match="ValueError: token 7 of example 3"):
        execute(tiny(), data, tmp_path)
    assert [thread for thread in threading.enumerate() if thread.name == "batches ahead"] == []


def test_errors_of_nccl_keep_their_name():
    text = "NCCL error in: ProcessGroupNCCL.cpp:1, invalid usage\nncclInvalidUsage: invalid usage\nLast error:\n"
    assert run_module.in_one_line(RuntimeError(text)) == f"{text.splitlines()[0]}; ncclInvalidUsage: invalid usage"
    assert run_module.in_one_line(KeyError()) == "KeyError"


def test_noise_in_the_test_labels_changes_neither_weights_nor_choice(data, tmp_path):
    config = tiny()
    clean = execute(config, data, tmp_path / "clean")
    test = data.split("test")
    noise = np.random.default_rng(0).integers(0, 10, len(test), dtype=np.uint8)
    splits = {**data.splits, "test": type(test)(tokens=test.tokens, offsets=test.offsets, labels=noise)}
    noisy = execute(config, rewritten(data, tmp_path / "data", splits), tmp_path / "noisy")
    assert noisy.outcome.weights_digest == clean.outcome.weights_digest
    assert noisy.outcome.selected_step == clean.outcome.selected_step
    assert noisy.outcome.validation == clean.outcome.validation
    assert noisy.outcome.test != clean.outcome.test


def test_all_examples_are_scored_whatever_the_size_of_a_batch(data, tmp_path):
    config = tiny()
    outcomes = [
        execute(config, data, tmp_path / str(tokens), evaluation_tokens=tokens).outcome for tokens in (1, 777, 10**6)
    ]
    for outcome in outcomes:
        assert outcome.test.total == len(data.split("test"))
        assert outcome.test.correct == outcomes[0].test.correct
        assert outcome.selected_step == outcomes[0].selected_step


def test_other_weights_than_the_chosen_ones_stop_the_run(data, tmp_path, monkeypatch):
    """The check before the test set is read: here the choice is spoilt on purpose."""

    def spoil(*arguments):
        train(*arguments)
        (state,) = (value for value in arguments if isinstance(value, TrainState))
        state.best_weights = {name: torch.randn_like(value) for name, value in state.best_weights.items()}

    train = run_module.train
    monkeypatch.setattr(run_module, "train", spoil)
    with pytest.raises(RunError, match="not those that validation scored"):
        execute(tiny(), data, tmp_path)


def miscounting(monkeypatch):
    """Let every evaluation find one right answer fewer than the one before, as rounding on another device might."""
    evaluate, calls = run_module.evaluate, []

    def fewer(*arguments, **settings):
        calls.append(None)
        score, _ = evaluate(*arguments, **settings)
        right = score.total - len(calls)
        return replace(score, correct=right), np.arange(score.total) < right

    monkeypatch.setattr(run_module, "evaluate", fewer)


def test_weights_that_do_not_score_as_recorded_stop_the_run(data, tmp_path, monkeypatch):
    miscounting(monkeypatch)
    with pytest.raises(RunError, match="not the recorded"):
        execute(tiny(), data, tmp_path)


def test_a_run_that_changed_its_device_does_not_fail_for_good(data, tmp_path, monkeypatch):
    """There the same weights may answer otherwise, and would whenever the run is tried again."""
    stopped(tiny(), data, tmp_path, look=8)
    real = run_module.describe_environment
    monkeypatch.setattr(run_module, "describe_environment", lambda device: real(device) | {"device": "a GPU"})
    miscounting(monkeypatch)
    record = execute(tiny(), data, tmp_path, allow_other_environment=True)
    assert record.status == "ok"
    assert record.outcome.validation.correct == len(data.split("validation")) - 1, "the score by which it was chosen"
    assert len(record.environment[EARLIER]) == 1
    assert Store(tmp_path).find(record.run_id) == record, "the record and its curve agree"


class HookedFull(FullAttention):
    """Full attention with a penalty and an action after each step, to see that the loop honours both."""

    steps = 0

    def __init__(self, config: FullConfig, dims: LayerDims) -> None:
        super().__init__(config, dims)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, mask=None):
        return super().forward(x, mask) * 1.0 + 0.0 * self.scale

    def auxiliary_loss(self):
        return (self.scale - 3.0) ** 2

    def after_step(self):
        type(self).steps += 1

    def parameter_groups(self):
        return {"scale": ParameterGroup(rate=0.0 if self.dims.num_heads == 1 else 10.0)}


def test_the_loop_honours_penalties_hooks_and_learning_rates(data, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    register_variant("hooked", traits=Traits(memory="linear", complexity="O(n^2)"), paper="none")(HookedFull)
    moved = {}
    for heads in (1, 2):
        HookedFull.steps = 0
        config = tiny("hooked", **{"model.num_heads": heads})
        record = execute(config, data, tmp_path)
        assert HookedFull.steps == 12
        state = torch.load(Store(tmp_path).checkpoint_folder(record.run_id) / "chosen.pt", weights_only=True)
        moved[heads] = float(state["model"]["blocks.0.mixer.scale"])
    assert moved[1] == 1.0
    assert moved[2] > 1.2


def test_the_loss_falls_on_one_batch(tmp_path, data):
    record = execute(tiny(**{"train.steps": 120, "train.eval_every": 40, "data.train": 256}), data, tmp_path)
    losses = Store(tmp_path).arrays(record.run_id)["curve.train_loss"]
    assert losses[-1] < 0.8 * losses[0]


def test_options_of_a_config_class_reach_the_mixer():
    assert issubclass(FullConfig, VariantConfig)
    assert tiny(**{"variant.backend": "reference"}).variant.options["backend"] == "reference"


def test_a_note_that_cannot_be_written_costs_a_warning(data, tmp_path, monkeypatch, capsys):
    def refuse(*arguments):
        raise StoreError("no room")

    monkeypatch.setattr(Store, "log_attempt", refuse)
    record = execute(tiny(**{"train.steps": 2, "train.eval_every": 2}), data, tmp_path)
    assert record.status == "ok"
    assert Store(tmp_path).find(record.run_id) == record
    assert capsys.readouterr().err == "Warning: the attempt (ok) is not logged: no room\n"


def test_another_default_type_of_the_process_is_refused(data, tmp_path):
    """A plug-in that sets it would give every other variant of a grid another number under the same id."""
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(UsageError, match=r"default type is torch\.float64 in this process"):
            execute(tiny(), data, tmp_path)
    finally:
        torch.set_default_dtype(torch.float32)
    assert list(Store(tmp_path).records()) == []


SCALED = """
from pathlib import Path
from torch import nn
class M(nn.Linear):
    def __init__(self, dim):
        super().__init__(dim, dim)
        self.scale = float(Path("scale.txt").read_text())
    def forward(self, x, mask=None):
        return super().forward(x) * self.scale
"""


def test_a_file_that_a_plug_in_reads_and_that_changes_gives_no_number(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("scaled.py").write_text(SCALED)
    Path("scale.txt").write_text("1.0")
    first = tiny("scaled.py:M")
    second = first.model_copy(update={"seed": 1})
    execute(first, data, tmp_path / "store")
    Path("scale.txt").write_text("2.0")
    with pytest.raises(UsageError, match=r"scale\.txt has changed"):
        execute(second, data, tmp_path / "store")

    def change_and_go_on():
        Path("scale.txt").write_text("2.0")
        return False

    Path("scale.txt").write_text("1.0")
    with pytest.raises(UsageError, match=r"scale\.txt has changed"):
        execute(second, data, tmp_path / "store", change_and_go_on)
    assert len(list(Store(tmp_path / "store").records())) == 1


def test_the_peak_of_memory_is_that_of_all_processes_of_a_run(data, tmp_path, monkeypatch):
    """The last one may only have tested."""
    peaks = iter([7_000_000, *[1_000] * 1_000])
    monkeypatch.setattr(peak_memory, "size_in_proc", lambda field: next(peaks))
    monkeypatch.setattr(peak_memory, "reset_high_water_mark", lambda: True)
    stopped(tiny(), data, tmp_path)
    assert execute(tiny(), data, tmp_path).cost.peak_memory_bytes == 7_000_000


BUFFERED = """
import torch
from torch import nn
class Versioned(nn.Linear):
    _version = 2
    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version", 1) < 2:
            state[prefix + "weight"] = state[prefix + "weight"].T
        super()._load_from_state_dict(state, prefix, metadata, *rest)
class M(nn.Linear):
    def __init__(self, dim):
        super().__init__(dim, dim)
        {begin}
    def forward(self, x, mask=None):
        if self.training:
            seen = x.detach().std()
            {change}
        return super().forward(x) * {factor}
"""
"""A layer with buffers that training changes: how they begin, how they change, and what they make of the outputs."""
CHANGING_BUFFERS = {
    "another-type": ("self.register_buffer('a', torch.tensor(1))", "self.a = 0.9 * self.a + 0.1 * seen", "self.a"),
    "one-tensor-at-first": (
        "a = torch.ones(dim); self.register_buffer('a', a); self.register_buffer('b', a)",
        "self.a, self.b = 0.9 * self.a, self.b + 0.1 * seen",
        "self.a * self.b",
    ),
    "one-tensor-all-along": (
        "a = torch.ones(dim); self.register_buffer('a', a); self.register_buffer('b', a)",
        "self.a.mul_(0.9).add_(0.1 * seen)",
        "self.b",
    ),
    "one-that-is-in-a-list-too": (
        "self.register_buffer('a', torch.ones(dim)); self.all = [self.a]; self.register_buffer('b', torch.tensor(1))",
        "self.a.mul_(0.9).add_(0.1 * seen); self.b = 0.9 * self.b + 0.1 * seen",
        "self.all[0] * self.b",
    ),
    "one-tensor-in-the-end": (
        "self.register_buffer('a', torch.ones(dim)); self.register_buffer('b', torch.ones(dim))",
        "self.b = self.a; self.a.mul_(0.9).add_(0.1 * seen)",
        "self.b",
    ),
    "of-a-module-of-torch": (
        "self.norm = nn.utils.spectral_norm(nn.Linear(dim, dim)); self.register_buffer('b', torch.tensor(1))",
        "self.b = 0.9 * self.b + 0.1 * seen",
        "self.norm(x) * self.b",
    ),
    "a-part-of-a-parameter": (
        "self.register_buffer('z', torch.ones(dim))",
        "self.z = self.weight.data[:, 2] if self.z.stride() == (1,) else self.z",
        "(1 + self.z.sum())",
    ),
    "a-slice": (
        "self.register_buffer('a', torch.zeros(dim, dim - 5))",
        "self.a = self.weight.detach().clone()[:, :-5]",
        "(1 + self.a.sum() + self.a.norm())",
    ),
    "one-number-expanded": (
        "self.register_buffer('a', torch.ones(1).expand(dim))",
        "self.a = (0.9 * self.a[:1] + 0.1 * seen).expand(len(self.a))",
        "self.a",
    ),
    "a-parameter-in-another-order": (
        "pass",
        "self.weight.data = torch.linalg.qr(self.weight.data).Q",
        "1",
    ),
    "of-a-module-with-a-version": (
        "self.norm = Versioned(dim, dim)",
        "pass",
        "self.norm(x)",
    ),
    "none-at-first": (
        "self.register_buffer('a', None)",
        "self.a = 0.1 * seen + (1 if self.a is None else 0.9 * self.a)",
        "(1 if self.a is None else self.a)",
    ),
}


@pytest.mark.parametrize("kind", CHANGING_BUFFERS)
def test_a_buffer_that_a_model_changes_while_it_trains_goes_on_as_it_is(data, tmp_path, monkeypatch, kind):
    """`load_state_dict` alone casts, copies one value over the other, or fails; a copy of a slice has other bits."""
    monkeypatch.chdir(tmp_path)
    begin, change, factor = CHANGING_BUFFERS[kind]
    Path("buffered.py").write_text(BUFFERED.format(begin=begin, change=change, factor=factor))
    config = tiny("buffered.py:M")
    whole = execute(config, data, tmp_path / "whole")
    stopped(config, data, tmp_path / "store")
    assert execute(config, data, tmp_path / "store").outcome == whole.outcome
    run = load_run(whole.run_id, tmp_path / "whole")
    weights, loaded = run.weights(), run.model().state_dict()
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.items())
    assert [value.stride() for value in loaded.values()] == [value.stride() for value in weights.values()]


def test_a_loaded_buffer_shares_no_memory_with_the_state():
    """The best weights are loaded between two phases, and are asked for again."""
    model, state = nn.BatchNorm1d(3), nn.BatchNorm1d(3).state_dict()
    model.running_mean = torch.zeros(6)[::2]
    load_weights(model, state)
    model.running_mean.add_(1)
    assert state["running_mean"].tolist() == [0, 0, 0]


def test_a_state_that_a_model_changes_when_it_is_loaded_is_refused():
    model = nn.Linear(3, 3)
    model.register_load_state_dict_post_hook(lambda module, keys: module.weight.data.mul_(2).numel() and None)
    with pytest.raises(RuntimeError, match="the model changes its state when it is loaded"):
        load_weights(model, nn.Linear(3, 3).state_dict())


def test_a_state_of_another_model_is_refused():
    model = nn.Linear(3, 3)
    with pytest.raises(RuntimeError, match=r"(?s)Missing key.*bias.*Unexpected key.*rest"):
        load_weights(model, {"weight": torch.zeros(3, 3), "rest": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        load_weights(model, {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})
