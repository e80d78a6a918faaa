"""Pretraining: the same bits after a stop in either phase, no labels, no test inputs, new masks at each read."""

import itertools

import numpy as np
import pytest
import torch

from attention_zoo import available, get_variant
from lra.errors import UsageError
from lra.models.denoiser import Denoiser
from lra.results.checkpoints import list_checkpoints, read_state
from lra.results.records import Store
from lra.results.weights import load_weights
from runners.train import loop
from runners.train import run as run_module
from runners.train.loop import phases_of
from runners.train.run import PreemptedRunError
from tests.runners.tiny_runs import execute, rewritten, tiny, tiny_data

SHARE = {"pretrain.share": 0.5, "pretrain.mask_rate": 0.3}
STEPS, SWITCH, EVALUATIONS = 6, 3, 2
"""Steps in all and of pretraining, and evaluations: one after each phase."""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


class StopAt:
    """Asks to stop at a look; there is one after each step and one after each batch of an evaluation."""

    def __init__(self, look):
        self.left = look

    def __call__(self):
        self.left -= 1
        return self.left == 0


def arrays(folder, record):
    found = Store(folder).arrays(record.run_id)
    assert len(found["pretrain.step"]) >= 1
    return {name: array.tolist() for name, array in found.items()}


def stopped(config, data, folder, look):
    with pytest.raises(PreemptedRunError, match="with the state saved"):
        execute(config, data, Store(folder), StopAt(look))


def check_stops(config, data, tmp_path, looks):
    """Stop a run at each of some looks, continue it, and check that nothing is other than in the unbroken run."""
    unbroken = execute(config, data, Store(tmp_path / "unbroken"))
    assert unbroken.pretrained.steps == SWITCH < unbroken.outcome.selected_step
    for look in looks:
        folder = tmp_path / f"stop-{look}"
        stopped(config, data, folder, look)
        resumed = execute(config, data, Store(folder))
        assert resumed.cost.resumed == 1
        assert (resumed.outcome, resumed.pretrained) == (unbroken.outcome, unbroken.pretrained)
        assert arrays(folder, resumed) == arrays(tmp_path / "unbroken", unbroken)


ALL_LOOKS = range(1, STEPS + EVALUATIONS + 1)


@pytest.mark.parametrize(
    ("variant", "overrides"),
    [
        ("full", {}),
        pytest.param("full", {"train.eval_every": 1, "pretrain.mask_span": 3}, marks=pytest.mark.nightly),
        pytest.param("full", {"train.precision": "bfloat16", "train.accumulation": 2}, marks=pytest.mark.nightly),
        pytest.param("full", {"model.pooling": "cls", "model.positions": "learned"}, marks=pytest.mark.nightly),
        pytest.param("full", {"model.causal": True}, marks=pytest.mark.nightly),
        pytest.param("full", {"train.augment": True, "train.denoise": 0.5}, marks=pytest.mark.nightly),
        pytest.param("s5", {"model.norm": "batch", "train.undecayed": ["norms"]}, marks=pytest.mark.nightly),
    ],
)
def test_stopping_at_any_look_in_either_phase_changes_no_bit(data, tmp_path, variant, overrides):
    share = {"pretrain.share": 0.5} if "model.causal" in overrides else SHARE  # a causal model hides nothing
    check_stops(tiny(variant, **share | overrides), data, tmp_path, ALL_LOOKS)


@pytest.mark.nightly
@pytest.mark.parametrize("variant", available())
def test_every_variant_goes_on_to_the_same_bits_in_both_phases(data, tmp_path, variant):
    check_stops(tiny(variant, **SHARE), data, tmp_path, [2, SWITCH, SWITCH + 1, SWITCH + 3])


def test_a_run_that_forgets_what_pretraining_chose_is_told_apart(data, tmp_path, monkeypatch):
    """The broken twin of the tests above: the phase of the task begins with the last weights, not the chosen ones."""
    config = tiny(**SHARE, **{"train.eval_every": 1, "train.lr": 3.0, "train.steps": 12})
    expected = execute(config, data, Store(tmp_path / "sound"))
    assert expected.pretrained.selected_step < expected.pretrained.steps
    real = loop.TrainState.end_pretraining

    def keep_the_last(self):
        real(self)
        self.best_weights = None

    def load(model, weights):
        if not isinstance(model, Denoiser):
            load_weights(model, weights)

    monkeypatch.setattr(loop.TrainState, "end_pretraining", keep_the_last)
    monkeypatch.setattr(run_module, "load_weights", load)
    broken = execute(config, data, Store(tmp_path / "broken"))
    assert broken.pretrained == expected.pretrained
    assert broken.outcome != expected.outcome


def scrambled(data, folder):
    """Prepare the same data with other labels everywhere, and other test inputs."""
    noise = np.random.default_rng(0)
    splits = {}
    for name, split in data.splits.items():
        tokens = np.asarray(split.tokens[:])
        tokens = noise.permutation(tokens) if name == "test" else tokens
        labels = noise.integers(0, 10, len(split), dtype=np.uint8)
        splits[name] = type(split)(tokens=tokens, offsets=split.offsets, labels=labels)
    return rewritten(data, folder, splits)


def test_pretraining_reads_neither_labels_nor_test_inputs(data, tmp_path, monkeypatch):
    config, other = tiny(**SHARE), scrambled(data, tmp_path / "data")
    clean, noisy = (execute(config, each, Store(tmp_path / each.digest)) for each in (data, other))
    assert noisy.pretrained == clean.pretrained
    assert noisy.outcome.weights_digest != clean.outcome.weights_digest  # the task does read them

    real = loop.loss_of

    def sees_labels(found, labels):
        loss, right, count = real(found, labels)
        return loss * (1.0 + labels.float().mean()), right, count

    monkeypatch.setattr(loop, "loss_of", sees_labels)
    clean, noisy = (execute(config, each, Store(tmp_path / f"twin-{each.digest}")) for each in (data, other))
    assert noisy.pretrained != clean.pretrained


def hidden_in_training(config, data, folder, monkeypatch):
    """Return the places that were hidden in each step of a run."""
    seen = []
    real = Denoiser.forward

    def recorded(self, tokens, mask, hidden=None):
        if hidden is None:
            # Drawn again from the same state of the generator, which is then put back.
            state = torch.get_rng_state()
            uniform = torch.rand((len(tokens), tokens.shape[-1] + self.span - 1))
            seen.append((uniform < self.rate).tolist())
            torch.set_rng_state(state)
        return real(self, tokens, mask, hidden)

    with monkeypatch.context() as patch:
        patch.setattr(Denoiser, "forward", recorded)
        execute(config, data, Store(folder))
    return seen


FIXED = {"train.padding": "fixed"}


def test_test_inputs_that_are_held_out_too_are_not_pretrained_on_if_they_were_generated_either(data, tmp_path):
    repeating = rewritten(data, tmp_path / "data", data.splits | {"validation": data.split("test")})
    with pytest.raises(UsageError, match=r"100% of the test examples of .* are in its validation split"):
        execute(tiny(**SHARE), repeating, Store(tmp_path / "store"))


def test_places_are_hidden_anew_in_each_step_and_the_same_when_the_run_is_repeated(data, tmp_path, monkeypatch):
    config = tiny(**SHARE, **FIXED)
    first = hidden_in_training(config, data, tmp_path / "first", monkeypatch)
    assert len(first) == SWITCH
    assert all(one != other for one, other in itertools.combinations(first, 2))
    assert hidden_in_training(config, data, tmp_path / "second", monkeypatch) == first
    other = hidden_in_training(tiny(seed=1, **SHARE, **FIXED), data, tmp_path / "third", monkeypatch)
    assert not any(mask in first for mask in other)


def test_places_that_are_the_same_in_each_step_are_told_apart(data, tmp_path, monkeypatch):
    """The broken twin: a seed without the step."""
    real = loop.seed_all
    monkeypatch.setattr(loop, "seed_all", lambda seed, purpose, step, part: real(seed, purpose, 0, part))
    same = hidden_in_training(tiny(**SHARE, **FIXED), data, tmp_path, monkeypatch)
    assert same[0] == same[1] == same[2]


def test_every_variant_under_one_seed_has_the_same_places_hidden(data, tmp_path, monkeypatch):
    ours, theirs = (
        hidden_in_training(tiny(name, **SHARE, **FIXED), data, tmp_path / name, monkeypatch)
        for name in ("full", "conv")
    )
    assert ours == theirs


@pytest.mark.parametrize(
    "overrides",
    [
        SHARE,
        pytest.param({"pretrain.share": 0.5, "model.causal": True}, marks=pytest.mark.nightly),
        pytest.param(SHARE | {"pretrain.mask_span": 4}, marks=pytest.mark.nightly),
    ],
    ids=str,
)
def test_the_score_on_held_out_inputs_does_not_depend_on_the_batches_of_evaluation(data, tmp_path, overrides):
    config = tiny(**overrides)
    found = [
        execute(config, data, Store(tmp_path / str(tokens)), evaluation_tokens=tokens).pretrained
        for tokens in (1, 50, 10**6)
    ]
    for each in found[1:]:
        assert each.weights_digest == found[0].weights_digest
        assert (each.validation.correct, each.validation.total) == (
            found[0].validation.correct,
            found[0].validation.total,
        )
        assert each.validation.loss == pytest.approx(found[0].validation.loss, rel=1e-5)
    real_tokens = int(data.split("validation").lengths.sum())
    share = found[0].validation.total / real_tokens
    assert 0.2 < share < 0.4 or (config.model.causal and share > 0.8)


def test_the_phases_share_the_steps_and_each_has_the_schedule_of_its_own(data, tmp_path):
    settings = {"train.schedule": "cosine", "train.steps": 20, "train.eval_every": 2, "train.warmup_steps": 2}
    config = tiny(**{"pretrain.share": 0.4, "pretrain.lr_scale": 10.0, "pretrain.warmup": 4} | settings)
    record = execute(config, data, Store(tmp_path))
    found = arrays(tmp_path, record)
    assert found["pretrain.step"] == [2, 4, 6, 8]
    assert found["curve.step"] == [10, 12, 14, 16, 18, 20]
    first, second = phases_of(config)
    assert (first.start, first.stop, second.start, second.stop) == (0, 8, 8, 20)
    assert found["pretrain.learning_rate"] == [first.rate(config.train, step - 1) for step in (2, 4, 6, 8)]
    assert first.rate(config.train, 0) == second.rate(config.train, 8) == 0.0
    assert first.rate(config.train, 4) == pytest.approx(10 * config.train.lr)
    assert second.rate(config.train, 10) == pytest.approx(config.train.lr)


def test_the_task_begins_with_the_chosen_weights_and_a_new_head(data, tmp_path):
    """The phase of the task hardly learns here, so its weights are those that it began with."""
    frozen = {"train.lr": 1e-12, "train.warmup_steps": 0}
    config = tiny(**SHARE, **frozen, **{"pretrain.lr_scale": 1e10})
    record = execute(config, data, Store(tmp_path / "pretrained"))
    plain = execute(tiny(**frozen), data, Store(tmp_path / "plain"))
    pretrained, start = (
        torch.load(Store(tmp_path / name).checkpoint_folder(each.run_id) / "chosen.pt", weights_only=True)["model"]
        for name, each in (("pretrained", record), ("plain", plain))
    )
    moved = {name for name, value in pretrained.items() if not torch.allclose(value, start[name], atol=1e-6)}
    assert "embedding.tokens.weight" in moved
    assert "blocks.0.mlp.0.weight" in moved
    assert not {name for name in moved if name.startswith(("head.hidden", "head.out"))}
    assert pretrained.keys() == start.keys()  # nothing of the denoiser is left


def test_the_states_of_both_phases_are_told_apart(data, tmp_path):
    config = tiny(**SHARE)
    store = Store(tmp_path)
    folder = store.checkpoint_folder(config.run_id(data.digest))
    stopped(config, data, tmp_path, 2)
    ((_, path),) = list_checkpoints(folder)
    state = read_state(path)
    assert state["state"]["phase"] == 0
    assert "decoder.weight" in state["model"]
    stopped(config, data, tmp_path, SWITCH - 2 + 1 + 2)  # the steps left, a validation, and two steps of the task
    state = read_state(list_checkpoints(folder)[0][1])
    assert (state["state"]["phase"], state["state"]["step"]) == (1, SWITCH + 2)
    assert "decoder.weight" not in state["model"]
    assert state["state"]["pretrained"]["steps"] == SWITCH


def test_a_loss_that_is_not_finite_ends_pretraining(data, tmp_path):
    config = tiny(**SHARE, **{"pretrain.lr_scale": 1e30, "train.warmup_steps": 0})
    record = execute(config, data, Store(tmp_path))
    assert (record.status, record.outcome, record.pretrained) == ("diverged", None, None)
    assert Store(tmp_path).find(record.run_id) == record


def test_pretraining_is_part_of_the_id_and_none_leaves_it_as_it_was():
    plain = tiny()
    assert tiny(**{"pretrain.share": 0.0}) == plain
    assert "pretrain" not in plain.hashed()
    ids = {tiny(**SHARE | {path: value}).run_id("d") for path, value in (
        ("pretrain.share", 0.5), ("pretrain.share", 0.4), ("pretrain.mask_rate", 0.2), ("pretrain.mask_span", 2),
        ("pretrain.lr_scale", 2.0), ("pretrain.warmup", 1),
    )}  # fmt: skip
    assert len(ids | {plain.run_id("d")}) == 7


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pretrain.share": 0.95}, r"pretrain\.share: input should be less than or equal to 0\.9"),
        ({"pretrain.shares": 0.5}, r"pretrain\.shares: unknown key; did you mean 'share'"),
        ({"pretrain.mask_rate": 0.2}, r"pretrain\.mask_rate: without effect, since pretrain\.share is 0"),
        ({"pretrain.share": 0.5, "pretrain.loss": "l1"}, "has ids; cross_entropy is for it"),
        ({"model.causal": True, "model.pooling": "cls"}, "the first place is read, which sees no other"),
    ],
)
def test_mistakes(overrides, message):
    with pytest.raises(UsageError, match=message):
        tiny(**overrides)


def test_a_variant_without_a_causal_form_is_refused():
    name = next(name for name in available() if not get_variant(name).traits.causal)
    with pytest.raises(UsageError, match=rf"model\.causal: {name} has no causal form"):
        tiny(name, **{"model.causal": True})
