"""The Image tasks on tiny archives of both versions, hostile pickles included."""

import hashlib
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.data.batching import collate
from lra.data.split import SPLITS
from lra.errors import DataError, UsageError
from lra.models.transformer import build_model, layer_dims
from lra.tasks import get_task
from lra.tasks.image import task as task_module
from lra.tasks.image.pickle_reader import read_pickle
from lra.tasks.image.reader import to_gray
from tests.lra.data.archive_cases import (
    cifar_arrays,
    cifar_binary,
    cifar_members,
    cifar_pickle,
    link,
    tar_bytes,
)

TASK, CONTINUOUS = get_task("image"), get_task("image_continuous")
SMALL = {"train_images": 20, "test_images": 4}
CPU = torch.device("cpu")


def prepare(tmp_path, members, task=TASK, mode="w:gz", **values):
    file = tmp_path / "cifar"
    file.write_bytes(tar_bytes(members, mode))
    return task.prepare(task.options.model_validate(SMALL | values), tmp_path / "home", source=file, progress=False)


def refused(tmp_path, members, **values):
    with pytest.raises(DataError) as caught:
        prepare(tmp_path, members, **values)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "home").iterdir()) == []
    return str(caught.value)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("dataset", ["py", "bin"])
def test_both_editions_give_the_same_images(tmp_path, dataset, mode):
    data = prepare(tmp_path, cifar_members(dataset), mode=mode)
    assert [len(data.split(name)) for name in SPLITS] == [18, 2, 4]
    images, labels = cifar_arrays(4, seed=5)
    np.testing.assert_array_equal(data.split("test").tokens.reshape(4, 1024), to_gray(images, "nearest"))
    np.testing.assert_array_equal(data.split("test").labels, labels)
    train = np.concatenate([to_gray(cifar_arrays(4, seed)[0], "nearest") for seed in range(5)])
    kept = np.concatenate([data.split(name).tokens.reshape(-1, 1024) for name in ("train", "validation")])
    assert sorted(map(bytes, kept)) == sorted(map(bytes, train))
    assert data.split("train").tokens.dtype == np.uint8


def test_gray_is_the_rounded_weighted_sum():
    every = np.random.default_rng(0).integers(0, 256, (50, 3072), dtype=np.uint8)
    red, green, blue = (every[:, k * 1024 : (k + 1) * 1024].astype(np.float64) for k in range(3))
    expected = np.floor((299 * red + 587 * green + 114 * blue) / 1000 + 0.5)
    np.testing.assert_array_equal(to_gray(every, "nearest"), expected)
    same = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3072, axis=1)
    np.testing.assert_array_equal(to_gray(same, "nearest")[:, 0], np.arange(256))


# From `tf.image.rgb_to_grayscale` of TensorFlow 2.21.0: red, green, blue, gray. The first twelve differ from
# the level rounded to the nearest; for the last 18, exact arithmetic or another order of the sum gives another level.
TENSORFLOW = np.array([
    (61, 125, 10, 92), (59, 4, 59, 26), (81, 222, 44, 159), (128, 113, 123, 118), (76, 155, 69, 121),
    (154, 130, 248, 150), (220, 161, 231, 186), (96, 239, 76, 177), (55, 0, 71, 24), (100, 191, 216, 166),
    (166, 39, 185, 93), (58, 75, 249, 89), (95, 130, 194, 127), (217, 207, 235, 213), (15, 163, 33, 104),
    (0, 0, 0, 0), (255, 255, 255, 255), (248, 189, 16, 187), (0, 122, 186, 93), (3, 121, 122, 86),
    (3, 254, 50, 156), (5, 49, 41, 34), (5, 171, 227, 128), (6, 120, 58, 79), (6, 242, 244, 172),
    (9, 241, 180, 165), (10, 98, 82, 69), (11, 169, 99, 114), (16, 218, 140, 148), (20, 196, 164, 139),
    (23, 195, 100, 132), (31, 243, 77, 160), (32, 181, 166, 134), (37, 230, 207, 169), (41, 208, 231, 160),
    (50, 205, 39, 140),
])  # fmt: skip
EVERY_COLOUR = "824a76d81dad2c5a2cf1fa0b2c0a5afe7d871ec2970e4fa2809b53ddbecdca93"
"""SHA-256 of the levels that TensorFlow gives to all colours, blue changing fastest."""


def planes(colours):
    return np.repeat(colours.astype(np.uint8)[:, :, None], 1024, axis=2).reshape(len(colours), 3072)


def rounded(colours):
    return (colours @ [299, 587, 114] + 500) // 1000


def in_whole_numbers(colours):
    return (colours @ [2989, 5870, 1140]) * 511 // (2 * 255 * 10_000)


def test_gray_levels_are_those_of_the_original_code():
    colours, expected = TENSORFLOW[:, :3], TENSORFLOW[:, 3]
    np.testing.assert_array_equal(to_gray(planes(colours), "tensorflow")[:, 0], expected)
    for broken in (rounded, in_whole_numbers):
        assert (broken(colours) != expected).any()


@pytest.mark.nightly
def test_gray_levels_are_those_of_the_original_code_for_every_colour():
    digest, steps = hashlib.sha256(), np.arange(256, dtype=np.uint8)
    for red in range(256):
        green, blue = (part.reshape(-1, 1024) for part in np.meshgrid(steps, steps, indexing="ij"))
        digest.update(to_gray(np.concatenate([np.full_like(green, red), green, blue], axis=1), "tensorflow"))
    assert digest.hexdigest() == EVERY_COLOUR


@pytest.mark.parametrize("profile", ["official", "paper", "nystromformer"])
def test_profiles_that_follow_the_original_data_have_its_gray_levels(profile):
    options = TASK.options.model_validate(load_profile(profile).recipe("image").data)
    assert options.gray_levels == "tensorflow"
    assert "levels of the original code" in TASK.dataset_name(options)


@pytest.mark.parametrize("profile", ["modern", "quick"])
def test_profiles_with_other_gray_levels_name_the_departure(profile):
    assert any("gray levels" in departure for departure in load_profile(profile).departures)


def test_an_option_added_later_leaves_names_and_ids_of_earlier_data_alone(tmp_path):
    nearest, original = (TASK.options.model_validate({"gray_levels": levels}) for levels in ("nearest", "tensorflow"))
    assert TASK.folder_name(nearest) == "image-levels-d038f648a7"
    assert TASK.folder_name(original) != TASK.folder_name(nearest)
    near, other = prepare(tmp_path, cifar_members()), prepare(tmp_path, cifar_members(), gray_levels="tensorflow")
    assert near.digest != other.digest
    assert "gray_levels" not in near.manifest.options
    assert other.manifest.options["gray_levels"] == "tensorflow"


def test_levels_count_from_one_unless_the_legacy_switch_is_on(tmp_path):
    members = cifar_members()
    clean, legacy = prepare(tmp_path, members), prepare(tmp_path, members, legacy_zero_mask=True)
    assert clean.path != legacy.path
    assert "black as padding" in legacy.manifest.dataset
    for data, offset in ((clean, 1), (legacy, 0)):
        split = data.split("test")
        batch = collate(split, [0, 3], None, 1024, CPU)
        assert batch.mask is None
        np.testing.assert_array_equal(batch.tokens[1].numpy().astype(int), split.tokens_of(3).astype(int) + offset)


@pytest.mark.parametrize(("legacy", "hidden"), [(False, False), (True, True)])
def test_only_the_legacy_model_is_blind_to_black(legacy, hidden):
    config = resolve(
        task="image",
        variant="full",
        profile=load_profile("quick"),
        seed=0,
        track="open",
        overrides={"data.legacy_zero_mask": legacy, "model.dim": 16, "model.positions": "none"},
    )
    model = build_model(config, 257, 10).double().eval()
    pixels = torch.randint(1, 257, (2, 30), generator=torch.Generator().manual_seed(0))
    black = pixels.clone()
    black[:, 10:] = 0 if legacy else 1
    same = torch.allclose(model(black), model(black[:, :10]), rtol=1e-9, atol=1e-9)
    assert same is hidden
    assert not torch.allclose(model(pixels), model(pixels[:, :10]), rtol=1e-9, atol=1e-9)


def test_continuous_values_are_normalised_through_a_linear_layer(tmp_path):
    data = prepare(tmp_path, cifar_members(), task=CONTINUOUS)
    split = data.split("test")
    batch = collate(split, [1], None, 1024, CPU)
    np.testing.assert_array_equal(batch.tokens[0].numpy(), split.tokens_of(1))
    config = resolve(task="image_continuous", variant="full", profile=load_profile("quick"), seed=0, overrides={})
    model = build_model(config, 256, 10)
    mean, std = CONTINUOUS.info.normalisation
    value = (float(batch.tokens[0, 0]) / 255 - mean) / std
    expected = model.embedding.tokens.weight[:, 0] * value + model.embedding.tokens.bias
    torch.testing.assert_close(model.embedding.tokens(batch.tokens)[0, 0], expected, rtol=1e-5, atol=1e-6)
    assert model(batch.tokens).shape == (1, 10)
    assert CONTINUOUS.prepare(CONTINUOUS.options.model_validate(SMALL), tmp_path / "home").digest == data.digest


def test_mixers_are_told_the_grid():
    config = resolve(task="image", variant="full", profile=load_profile("quick"), seed=0, overrides={})
    assert build_model(config, 257, 10).blocks[0].mixer.dims.grid == (32, 32)


def test_show_draws_the_image_and_names_its_class(tmp_path):
    data = prepare(tmp_path, cifar_members())
    lines = TASK.show(data, "test", 0).splitlines()
    assert len(lines) == 33
    assert f"label {data.split('test').labels[0]} (" in lines[0]
    with pytest.raises(UsageError):
        TASK.show(data, "test", 4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda members: members[:-1], "test_batch not found"),
        (lambda members: [], "data_batch_1, data_batch_2"),
        (lambda members: [*members, members[1]], "twice"),
        (lambda members: [*members, cifar_members("bin")[1]], "from another member already"),
        (lambda members: [*members[:2], (members[2][0], members[1][1]), *members[3:]], "the same images as in another"),
        (lambda members: [link("cifar-10-batches-py/data_batch_1")], "link"),
        (lambda members: [("../data_batch_1", b"")], "leads out"),
        (lambda members: [("cifar-10-batches-bin/data_batch_1.bin", bytes(3074))], "rows of 3,073"),
        (lambda members: [("cifar-10-batches-bin/data_batch_1.bin", b"\x0a" + bytes(3072))], "outside 0 to 9"),
        (lambda members: [("cifar-10-batches-bin/test_batch.bin", b"")], "rows of 3,073"),
    ],
)
def test_wrong_archives_are_one_line_and_leave_nothing(tmp_path, spoil, message):
    assert message in refused(tmp_path, spoil(cifar_members()))


def test_the_number_of_images_is_checked(tmp_path):
    assert "20 train images, expected 50000; --set train_images=20" in refused(
        tmp_path, cifar_members(), train_images=50_000
    )


class Hostile:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


GOOD = cifar_pickle(*cifar_arrays())
NESTED = b"\x80\x02" + b")" + b"\x85" * 100_000 + b"."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(Hostile(), protocol=2), "not a"),
        (b"cos\nsystem\n(U\x02lstR.", "os.system is not admitted"),
        (b"cnumpy\nload\n(U\x02lstR.", "numpy.load is not admitted"),
        (pickle.dumps({b"data": Hostile()}, protocol=4), "instruction"),
        (pickle.dumps({"data": 1}, protocol=4), "instruction"),
        (b"\x80\x02T\xff\xff\xff\x7f", "not a pickle"),
        (b"\x80\x02Nr\xff\xff\xff\x7f.", "memo"),
        (NESTED, "too many"),
        (b"\x80\x02}.", "not an array"),
        (b"\x80\x02].", "no dictionary"),
        (b"", "not a pickle"),
        (b"\x80\x02S'\\-'\n.", "instruction STRING"),
        (GOOD[:-1], "not a pickle"),
        (GOOD.replace(b"M" + struct.pack("<H", 3072), b"M" + struct.pack("<H", 3071)), "not an array"),
        (GOOD.replace(b"u1", b"O8"), "not an array"),
        (GOOD.replace(b"U\x04data", b"U\x04dada"), "not an array"),
        (GOOD.replace(b"K\x00tb\x89", b"K\x00tb\x88"), "not an array"),
        (cifar_pickle(cifar_arrays()[0], [1, 2, 3, 10]), "outside 0 to 9"),
        (cifar_pickle(cifar_arrays()[0], [1, 2, 3]), "not 4 integers"),
    ],
)
def test_hostile_and_malformed_pickles_are_refused(data, message):
    with pytest.raises(DataError, match=message) as caught:
        read_pickle(data, "x")
    assert "\n" not in str(caught.value)


def test_a_batch_that_says_that_it_is_another_one_is_refused():
    """As with `test_batch` and `data_batch_5` exchanged."""
    label = b"testing batch 1 of 1"
    data = GOOD.replace(b"}(", b"}(" + b"U\x0bbatch_label" + b"U%c" % len(label) + label, 1)
    assert read_pickle(data, "x", label)[0].tolist() == read_pickle(GOOD, "x", label)[0].tolist()
    with pytest.raises(DataError, match=r"x: says that it is 'testing batch 1 of 1', not 'training batch 5 of 5'"):
        read_pickle(data, "x", b"training batch 5 of 5")


def test_the_pickle_of_the_fixtures_is_one_that_pickle_itself_reads():
    images, labels = cifar_arrays()
    content = pickle.loads(GOOD, encoding="bytes")
    np.testing.assert_array_equal(content[b"data"], images)
    ours = read_pickle(GOOD, "x")
    np.testing.assert_array_equal(ours[0], images)
    np.testing.assert_array_equal(ours[1], labels)


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_damaged_pickles_give_images_or_one_line(data):
    spoilt = bytearray(GOOD)
    program = [*range(60), *range(len(spoilt) - 12, len(spoilt))]
    where = st.sampled_from(program) | st.integers(0, 400)
    for _ in range(data.draw(st.integers(1, 5))):
        spoilt[data.draw(where)] = data.draw(st.integers(0, 255))
    try:
        images, message = read_pickle(bytes(spoilt), "x")[0], ""
    except DataError as error:
        images, message = np.zeros((1, 3072)), str(error)
    assert images.shape[1] == 3072
    assert "\n" not in message


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=60))
def test_arbitrary_bytes_are_no_pickle(data):
    with pytest.raises(DataError):
        read_pickle(b"\x80\x02" + data, "x")


def test_binary_rows_are_what_they_say():
    images, labels = cifar_arrays()
    assert len(cifar_binary(images, labels)) == 4 * 3073


def test_an_archive_that_changes_while_it_is_read_gives_no_data(tmp_path, monkeypatch):
    read = task_module.read_images

    def read_and_change(source, *arguments, progress):
        images = read(source, *arguments, progress=progress)
        source.write_bytes(b"another archive")
        return images

    monkeypatch.setattr(task_module, "read_images", read_and_change)
    assert refused(tmp_path, cifar_members()).endswith("cifar: changed while it was read; prepare the data again")


# 16 x 16


def test_half_the_size_is_the_rounded_mean_of_two_by_two_levels(tmp_path):
    whole, half = (prepare(tmp_path, cifar_members("py"), side=side) for side in (32, 16))
    for name in SPLITS:
        levels = whole.split(name).tokens.reshape(-1, 32, 32).astype(np.float64)
        means = sum(levels[:, y::2, x::2] for y in (0, 1) for x in (0, 1)) / 4
        expected = np.floor(means + 0.5).astype(np.uint8).reshape(len(levels), 256)
        np.testing.assert_array_equal(half.split(name).tokens.reshape(-1, 256), expected)
        assert (expected != np.floor(means).reshape(len(levels), 256)).any()  # cutting instead of rounding would show
        assert (expected != np.round(means).reshape(len(levels), 256)).any()  # and halves to even
        np.testing.assert_array_equal(half.split(name).labels, whole.split(name).labels)
    assert half.manifest.dataset == "gray CIFAR-10, archive of 20 + 4 images, 16 x 16 pixels"
    assert TASK.dataset_name(TASK.options()) == "gray CIFAR-10"
    assert TASK.show(half, "test", 0).startswith("test example 0: 16 x 16 pixels")


@pytest.mark.parametrize("task", [TASK, CONTINUOUS])
def test_the_size_of_before_keeps_its_folder_and_half_the_size_has_its_own_grid(task):
    default, half = task.options(), task.options(side=16)
    known = {"image": "image-levels-d038f648a7", "image_continuous": "image_continuous-values-9914e079cf"}
    assert task.folder_name(default) == known[task.info.name]
    assert task.folder_name(half) != task.folder_name(default)
    assert (task.info_for(half).grid, task.max_length(half)) == ((16, 16), 256)
    assert "16 x 16 pixels" in task.dataset_name(half)
    config = resolve(
        task=task.info.name, variant="full", profile=load_profile("quick"), seed=0, track="open",
        overrides={"data.side": 16},
    )  # fmt: skip
    assert layer_dims(config, 0).grid == (16, 16)
