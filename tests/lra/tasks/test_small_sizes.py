"""`--small N`: proportions, and options that set a small dataset variant apart from the full one."""

import pytest

from lra.errors import UsageError
from lra.tasks import TASKS
from lra.tasks.pathfinder.task import split_counts


def options_of(name, **values):
    return TASKS[name].options.model_validate(values)


def full_counts(name):
    options = options_of(name)
    if name == "listops" or name.startswith("path"):
        return options.counts
    return {
        "text": {"train": 22_500, "validation": 2_500, "test": 25_000},
        "retrieval": {"train": 147_086, "validation": 18_090, "test": 17_437},
    }.get(name, {"train": 45_000, "validation": 5_000, "test": 10_000})


def small_counts(name, train):
    """Return the sizes of the splits of a small dataset variant, whatever the options that say so are called."""
    task = TASKS[name]
    values = task.small(options_of(name), train)
    options = options_of(name, **values)
    assert task.folder_name(options) != task.folder_name(options_of(name))
    assert task.dataset_name(options) != task.dataset_name(options_of(name))
    if "count" in values:
        return split_counts(values["count"])
    return {split: values.get(split, values.get(f"max_{split}")) for split in ("train", "validation", "test")}


@pytest.mark.parametrize("train", [8, 31, 1_000, 14_999])
@pytest.mark.parametrize("name", TASKS)
def test_a_small_edition_has_so_many_training_examples_and_the_proportions_of_the_full_one(name, train):
    full, small = full_counts(name), small_counts(name, train)
    assert small["train"] == train
    for split in ("validation", "test"):
        assert abs(small[split] - full[split] * train / full["train"]) <= 1
        assert small[split] >= 1


@pytest.mark.parametrize("name", TASKS)
def test_a_small_edition_is_smaller(name):
    with pytest.raises(UsageError, match="must have fewer than the"):
        TASKS[name].small(options_of(name), full_counts(name)["train"])


def test_text_that_validates_on_test_keeps_both_alike():
    values = TASKS["text"].small(options_of("text", validation="test"), 100)
    assert values == {"max_train": 100, "max_validation": 100, "max_test": 100}
