"""Changed examples keep their labels, are drawn anew in each step, and are never those of evaluation."""

import numpy as np
import pytest
import torch

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.data import batching
from lra.data.augment import Augmentation, flips
from lra.data.batching import TrainingBatches
from lra.data.dataset import write_prepared
from lra.data.split import Split
from lra.errors import UsageError
from lra.models.transformer import Classifier
from lra.results.records import Store
from lra.tasks import augmentation_of, get_task
from lra.tasks.listops.evaluator import tree_values
from lra.tasks.listops.generator import Grammar, generate_chunk
from lra.tasks.listops.shuffle import shuffle_arguments
from lra.tasks.listops.vocabulary import CLOSE
from tests.runners.tiny_runs import execute, tiny

CPU = torch.device("cpu")


def chance(seed=0):
    return np.random.default_rng(seed)


def check_values(change):
    """Change 300 trees, and evaluate them with the evaluator that knows nothing of how they were made."""
    trees = generate_chunk(0, 0, Grammar(min_length=5, max_length=60, max_depth=5, max_args=5))
    generator, changed = chance(), 0
    for index, label in enumerate(trees.labels[:300]):
        tokens = trees.tokens[trees.offsets[index] : trees.offsets[index + 1]]
        other = change(tokens, generator)
        assert other.dtype == np.uint8
        assert sorted(other) == sorted(tokens)
        assert tree_values(other, np.array([0, len(other)])).tolist() == [label]
        changed += not np.array_equal(other, tokens)
    assert changed > 200


def test_arguments_are_shuffled_and_no_value_changes():
    check_values(shuffle_arguments)


def digits_anywhere(tokens, generator):
    """The broken twin: digits go to other operators."""
    other = tokens.copy()
    places = np.flatnonzero(tokens > CLOSE)
    other[places] = generator.permutation(tokens[places])
    return other


def one_level(tokens, generator):
    """Another broken twin: nothing ever changes."""
    return tokens.copy()


@pytest.mark.parametrize("twin", [digits_anywhere, one_level])
def test_broken_twins_of_the_shuffle_are_caught(twin):
    with pytest.raises(AssertionError):
        check_values(twin)


def test_every_order_of_arguments_comes():
    tree = np.array([2, 7, 8, 1, 9, 10, 5, 5], dtype=np.uint8)  # [MAX 1 2 [MIN 3 4 ] ]
    generator = chance()
    found = {tuple(shuffle_arguments(tree, generator).tolist()) for _ in range(400)}
    assert len(found) == 6 * 2


def test_images_are_mirrored():
    image = np.arange(12, dtype=np.uint8)
    grid, generator = image.reshape(3, 4), chance()
    sides = {flips((3, 4), (1,))(image, generator).tobytes() for _ in range(50)}
    assert sides == {image.tobytes(), grid[:, ::-1].tobytes()}
    both = {flips((3, 4), (0, 1))(image, generator).tobytes() for _ in range(100)}
    assert both == sides | {grid[::-1].tobytes(), grid[::-1, ::-1].tobytes()}


def stream(seed=0, augmentation=None, lengths=(30, 12, 7, 25, 40, 9)):
    rows = [np.arange(1, length + 1, dtype=np.uint8) for length in lengths]
    split = Split(
        tokens=np.concatenate(rows),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=np.arange(len(lengths), dtype=np.uint8),
    )
    return TrainingBatches(split, batch_size=3, seed=seed, padded_length=None, limit=64, augmentation=augmentation)


def test_a_window_of_a_document_is_read_another_one_each_time():
    cut, whole = stream(augmentation=Augmentation(crop=10)), stream()
    starts = set()
    for step in range(60):
        batch = cut.batch(step, CPU)
        assert batch.tokens.shape[1] <= 16  # 10, rounded up
        assert batch.num_tokens == batch.lengths.sum() == int((batch.tokens > 0).sum())
        for label, row, length in zip(batch.labels, batch.tokens, batch.lengths, strict=True):
            row = row[:length].tolist()
            assert row == list(range(row[0], row[0] + length))
            assert length == min(10, whole.split.lengths[label])
            starts.add((int(label), row[0]))
    assert {label for label, start in starts if start > 1} == {0, 1, 3, 4}
    assert (4, 31) in starts  # the last window, too
    assert {start for label, start in starts if label in (2, 5)} == {1}


def test_a_batch_is_a_function_of_seed_and_step():
    augmentation = Augmentation(crop=8, change=lambda tokens, generator: generator.permutation(tokens))
    first, again = stream(augmentation=augmentation), stream(augmentation=augmentation)
    for step in (5, 2, 0):
        assert torch.equal(first.batch(step, CPU).tokens, again.batch(step, CPU).tokens)
    other = stream(seed=1, augmentation=augmentation)
    assert not torch.equal(first.batch(0, CPU).tokens, other.batch(0, CPU).tokens)
    # Six examples are two batches, so step 2 begins a second epoch; its examples are changed in another way.
    rows = [
        dict(zip(b.labels.tolist(), b.tokens[:, :7].tolist(), strict=True))
        for b in (first.batch(step, CPU) for step in range(40))
    ]
    assert len({tuple(found[4]) for found in rows if 4 in found}) > 10


TEXT = {
    "data.max_length": 64, "model.max_length": 64, "model.dim": 8, "model.num_layers": 1, "model.num_heads": 2,
    "model.mlp_dim": 8, "train.batch_size": 4, "train.steps": 4, "train.eval_every": 2, "train.warmup_steps": 1,
}  # fmt: skip


def text_config(**overrides):
    return resolve(
        task="text", variant="full", profile=load_profile("quick"), seed=0, track="open", overrides=TEXT | overrides
    )


@pytest.fixture(scope="module")
def text_data(tmp_path_factory):
    config, splits, generator = text_config(), {}, chance()
    for name, count in {"train": 16, "validation": 6, "test": 6}.items():
        lengths = generator.integers(20, 64, count)
        splits[name] = Split(
            tokens=generator.integers(1, 257, lengths.sum(), dtype=np.uint16).astype(np.uint8).clip(1),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            labels=generator.integers(0, 2, count).astype(np.uint8),
        )
    return write_prepared(
        tmp_path_factory.mktemp("text") / "data",
        task="text",
        dataset="random bytes",
        generated_by="a test",
        options=config.data,
        num_classes=2,
        splits=splits,
        baselines={},
    )


def check_lengths(data, folder, monkeypatch):
    """Run with crops of 15 tokens, and compare what the model reads in training and in evaluation."""
    seen = {True: [], False: []}
    forward = Classifier.forward

    def recorded(self, tokens, mask=None):
        seen[self.training].append(int(mask.sum()) if mask is not None else tokens.numel())
        return forward(self, tokens, mask)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "forward", recorded)
        execute(text_config(**{"train.crop": 15}), data, Store(folder))
    assert seen[True] == [4 * 15] * 4 + [64]  # the last counts the operations of the longest example
    # Two validations, the check of the chosen weights, and the test.
    whole = 3 * data.split("validation").lengths.sum() + data.split("test").lengths.sum()
    assert sum(seen[False]) == whole


def test_training_reads_windows_and_evaluation_whole_documents(text_data, tmp_path, monkeypatch):
    check_lengths(text_data, tmp_path, monkeypatch)


def test_a_crop_in_evaluation_is_caught(text_data, tmp_path, monkeypatch):
    real = batching.collate

    def cut(*arguments, **settings):
        own = {"augmentation": Augmentation(crop=15), "generator": chance()}
        return real(*arguments, **own | settings)

    monkeypatch.setattr(batching, "collate", cut)
    with pytest.raises(AssertionError):
        check_lengths(text_data, tmp_path, monkeypatch)


def test_nothing_is_changed_unless_it_is_asked_for():
    assert augmentation_of(tiny()) is None
    assert augmentation_of(tiny(**{"train.augment": True})).change is shuffle_arguments
    assert augmentation_of(text_config(**{"train.crop": 9})).crop == 9
    for name in ("image", "image_continuous", "pathfinder", "pathx"):
        task = get_task(name)
        assert task.augmentation(task.options()) is not None
    assert len({tiny(**each).run_id("d") for each in ({}, {"train.augment": True}, {"train.denoise": 0.5})}) == 3


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        ("text", {"train.augment": True}, r"train\.augment: nothing is known that changes examples of text"),
        ("listops", {"data.source": "nystromformer", "train.augment": True}, r"train\.augment: nothing is known"),
        ("listops", {"train.crop": 9}, r"train\.crop: a part of an example of listops does not have its label"),
        ("listops", {"train.crop": 0}, r"train\.crop: input should be greater than or equal to 1"),
        ("listops", {"train.denoise": -1.0}, r"train\.denoise: input should be greater than or equal to 0"),
        ("image", {"train.denoise": 1.0, "model.family": "convnet"}, r"train\.denoise: a model of family 'convnet'"),
        ("listops", {"train.denoise": 1.0, "pretrain.warmup": 3}, r"pretrain\.warmup: without effect"),
    ],
)
def test_mistakes(task, overrides, message):
    variant = "conv" if "model.family" in overrides else "full"
    with pytest.raises(UsageError, match=message):
        resolve(task=task, variant=variant, profile=load_profile("quick"), seed=0, track="open", overrides=overrides)
    with pytest.raises(UsageError, match="fixed by the profile on the matched track"):
        resolve(task=task, variant=variant, profile=load_profile("quick"), seed=0, overrides=overrides)
