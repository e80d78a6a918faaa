"""The Pathfinder tasks: options, splits, what is on disk and what is shown."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from pydantic import ValidationError

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.data.batching import collate
from lra.data.dataset import open_prepared
from lra.data.split import SPLITS
from lra.errors import DataError, UsageError
from lra.models.transformer import build_model, layer_dims
from lra.tasks import get_task
from lra.tasks.image_preview import contact_sheet, shade
from lra.tasks.pathfinder.task import PathfinderOptions
from runners.cli.data import main

SIZES = {"pathfinder": 32, "pathfinder64": 64, "pathx": 128, "pathx256": 256}


def prepare(home, **options):
    task = get_task(options.pop("task", "pathfinder"))
    return task.prepare(PathfinderOptions(**options), home, workers=1, progress=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("home"), difficulty="easy", count=200)


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_each_size_is_a_task(name, size):
    task = get_task(name)
    assert (task.info.vocab_size, task.info.num_classes) == (257, 2)
    assert task.max_length(PathfinderOptions()) == size * size


def test_the_continuous_edition_holds_the_same_pixels_and_reads_them_as_values(data, tmp_path):
    task = get_task("pathfinder_continuous")
    options = task.options(difficulty="easy", count=200)
    continuous = task.prepare(options, tmp_path, workers=1, progress=False)
    offsets = [prepared.split("test").token_offset for prepared in (continuous, data)]
    assert offsets == [0, 1]  # levels are values here, ids there
    for name in SPLITS:
        np.testing.assert_array_equal(continuous.split(name).tokens, data.split(name).tokens)
        np.testing.assert_array_equal(continuous.split(name).labels, data.split(name).labels)
    assert task.dataset_name(options) == "generated, easy, 160 / 20 / 20 examples, normalised values"
    assert "legacy_zero_mask" not in task.options.model_fields
    config = resolve(task=task.info.name, variant="full", profile=load_profile("modern"), seed=0, overrides={})
    model = build_model(config, task.info.vocab_size, 2)
    batch = collate(continuous.split("test"), range(4), None, 1024, torch.device("cpu"))
    assert batch.mask is None  # black is a value, not padding
    mean, std = task.info.normalisation
    values = torch.from_numpy(continuous.split("test").tokens[:4096].reshape(4, 1024, 1) / 255.0).float()
    expected = (values - mean) / std * model.embedding.tokens.weight[:, 0] + model.embedding.tokens.bias
    torch.testing.assert_close(model.embedding.tokens(batch.tokens), expected, rtol=1e-5, atol=1e-6)
    assert model(batch.tokens).shape == (4, 2)


def test_hard_images_are_normalised_to_mean_0_and_deviation_1(tmp_path):
    task = get_task("pathfinder_continuous")
    data = task.prepare(task.options(count=400), tmp_path, workers=1, progress=False)
    mean, std = task.info.normalisation
    values = (data.split("train").tokens / 255.0 - mean) / std
    assert abs(values.mean()) < 0.03
    assert abs(values.std() - 1) < 0.03


def test_the_benchmarks_counts_are_the_default():
    assert PathfinderOptions().counts == {"train": 160_000, "validation": 20_000, "test": 20_000}
    assert PathfinderOptions().difficulty == "hard"


def test_prepared_images_are_bytes_cut_80_10_10(data):
    assert [len(data.split(name)) for name in SPLITS] == [160, 20, 20]
    reopened = open_prepared(data.path, verify=True)
    assert reopened.split("train").tokens.dtype == np.uint8
    assert (reopened.split("train").lengths == 1024).all()
    assert reopened.manifest.baselines["chance"] == 50.0
    assert {int(label) for name in SPLITS for label in data.split(name).labels} == {0, 1}


def test_nothing_but_the_prepared_folder_is_left(data):
    assert [path.name for path in data.path.parent.iterdir()] == [data.path.name]


def test_black_is_a_level_of_its_own_and_padding_another_id(data):
    split = data.split("test")
    batch = collate(split, range(20), None, 1024, torch.device("cpu"))
    assert batch.mask is None
    assert int(batch.tokens.min()) == 1
    assert int(batch.tokens.max()) == 256
    assert (batch.tokens[3].numpy() == split.tokens_of(3).astype(int) + 1).all()


def test_the_legacy_edition_keeps_raw_levels_and_says_so(tmp_path, data):
    legacy = prepare(tmp_path, difficulty="easy", count=200, legacy_zero_mask=True)
    assert legacy.digest == data.digest
    assert legacy.manifest.options["legacy_zero_mask"] is True
    assert "black as padding" in legacy.manifest.dataset
    batch = collate(legacy.split("test"), [0], None, 1024, torch.device("cpu"))
    assert int(batch.tokens.min()) == 0
    assert batch.tokens.dtype == torch.uint8


def test_seed_and_difficulty_change_the_images(tmp_path, data):
    digests = {prepare(tmp_path, difficulty=d, seed=s, count=200).digest for d, s in (("easy", 1), ("medium", 0))}
    assert len(digests | {data.digest}) == 3


@pytest.mark.nightly  # the generator draws all sizes by default
def test_the_other_sizes_are_prepared_too(tmp_path):
    for name, size in list(SIZES.items())[1:]:
        prepared = prepare(tmp_path, task=name, difficulty="easy", count=10)
        assert prepared.manifest.splits["train"].max_length == size * size


@pytest.mark.parametrize("wrong", [{"count": 9}, {"difficulty": "baseline"}, {"seed": -1}, {"sizes": 32}])
def test_wrong_options_are_refused(wrong):
    with pytest.raises(ValidationError):
        PathfinderOptions(**wrong)


def test_generated_data_takes_no_source(tmp_path):
    with pytest.raises(UsageError, match="source=official"):
        get_task("pathfinder").prepare(PathfinderOptions(count=10), tmp_path, source=tmp_path)


def test_official_data_without_a_folder_says_how_to_give_one(tmp_path):
    with pytest.raises(DataError, match=r"lra-data prepare pathx --set source=official --from FOLDER"):
        get_task("pathx").prepare(PathfinderOptions(source="official"), tmp_path)


def test_an_example_is_shown_as_shaded_text(data):
    text = get_task("pathfinder").show(data, "train", 3)
    head, *lines = text.split("\n")
    label = data.split("train").labels[3]
    assert head.startswith(f"train example 3: 32 x 32 pixels, label {label} (the discs are on ")
    assert len(lines) == 32
    assert max(map(len, lines)) <= 64
    assert "@@" in text
    with pytest.raises(UsageError, match="examples 0 to 159"):
        get_task("pathfinder").show(data, "train", 160)


def test_large_images_are_shrunk_for_text():
    image = np.zeros((256, 256), dtype=np.uint8)
    image[0, 255] = 255
    lines = shade(image).split("\n")
    assert (len(lines), len(lines[0])) == (64, 128)
    assert lines[0].endswith("@@")


def test_a_contact_sheet_shows_the_images_and_their_labels(data, tmp_path):
    contact_sheet(data, "train", range(10), tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as file:
        sheet = np.array(file)
    cell = 4 * 32 + 8
    assert sheet.shape == (3 * cell, 4 * cell)
    split = data.split("train")
    for index in (0, 5, 9):
        top, left = cell * (index // 4), cell * (index % 4)
        assert (
            sheet[top + 4 : top + cell - 4 : 4, left + 4 : left + cell - 4 : 4].ravel() == split.tokens_of(index)
        ).all()
        assert sheet[top + 2, left + 20] == (255 if split.labels[index] else 96)


def test_a_contact_sheet_of_nothing_or_to_nowhere_is_refused(data, tmp_path):
    for indices in ([], [500]):
        with pytest.raises(UsageError):
            contact_sheet(data, "test", indices, tmp_path / "sheet.png")
    with pytest.raises(DataError, match="cannot write"):
        contact_sheet(data, "test", [0], tmp_path / "missing" / "sheet.png")


def test_the_command_shows_text_or_writes_a_sheet(tmp_path):
    options = ["--set", "difficulty=easy", "--set", "count=20", "--data-dir", str(tmp_path / "home"), "--split", "test"]
    text = CliRunner().invoke(main, ["show", "pathfinder", "--index", "1", *options])
    assert text.exit_code == 0
    assert text.output.startswith("test example 1: 32 x 32 pixels")
    sheet = CliRunner().invoke(main, ["show", "pathfinder", "--out", str(tmp_path / "a.png"), *options])
    assert (sheet.exit_code, sheet.output) == (0, f"Wrote test examples 0 to 1 to {tmp_path / 'a.png'}\n")
    with Image.open(tmp_path / "a.png") as file:
        assert file.size == (2 * 136, 136)
    beyond = CliRunner().invoke(
        main, ["show", "pathfinder", "--out", str(tmp_path / "b.png"), "--index", "2", *options]
    )
    assert beyond.exit_code == 2


def test_a_contact_sheet_of_text_is_refused(tmp_path):
    tiny = ["min_length=11", "max_length=63", "max_depth=4", "max_args=5", "train=60", "validation=20", "test=20"]
    settings = [argument for setting in tiny for argument in ("--set", setting)]
    command = ["show", "listops", "--out", str(tmp_path / "a.png"), "--data-dir", str(tmp_path / "home"), *settings]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert "--out draws images, and listops has none" in result.output


# images that are not the benchmark's


def test_a_small_variant_says_what_it_is_and_reaches_the_model_as_a_grid_of_its_size(tmp_path):
    data = prepare(tmp_path, difficulty="easy", side=16, contour_length=3, distractors=1, balanced_discs=True, count=50)
    assert data.manifest.dataset == (
        "generated, easy, 16 pixels a side, 3 segments a curve, 1 distractors at most, discs balanced, "
        "40 / 5 / 5 examples"
    )
    assert (data.split("train").document_lengths == 256).all()
    task = get_task("pathfinder")
    assert "test example 0: 16 x 16 pixels" in task.show(data, "test", 0)
    settings = {"data.side": 16, "model.max_length": 256}
    config = resolve(
        task="pathfinder",
        variant="contextpool",
        profile=load_profile("modern"),
        seed=0,
        track="open",
        overrides=settings,
    )
    assert layer_dims(config, 0).grid == (16, 16)
    model = build_model(config, 257, 2)
    batch = collate(data.split("test"), range(4), None, 256, torch.device("cpu"))
    assert model(batch.tokens, batch.mask).shape == (4, 2)


def test_the_defaults_keep_the_folders_and_ids_of_before():
    task = get_task("pathfinder")
    assert task.folder_name(PathfinderOptions()) == "pathfinder-hard-41dc695304"
    names = {
        task.folder_name(PathfinderOptions(**changed))
        for changed in ({}, {"side": 16}, {"contour_length": 3}, {"distractors": 0}, {"balanced_discs": True})
    }
    assert len(names) == 5
    settings = {"data.side": None, "data.contour_length": None, "data.distractors": None, "data.balanced_discs": False}
    for overrides in ({}, settings):
        config = resolve(
            task="pathfinder", variant="full", profile=load_profile("modern"), seed=0, track="open", overrides=overrides
        )
        assert not settings.keys() & {f"data.{name}" for name in config.hashed()["data"]}


@pytest.mark.parametrize("changed", [{"side": 16}, {"contour_length": 3}, {"distractors": 0}, {"balanced_discs": True}])
def test_only_generated_images_can_be_other_than_the_benchmarks(changed):
    with pytest.raises(ValidationError, match=f"source official does not take {next(iter(changed))}"):
        PathfinderOptions(source="official", **changed)
