"""The state of the layers of a run, from its configuration alone."""

import torch

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.measure.state_size import state_size
from lra.tasks import get_task


def config(variant, task="listops", profile="quick", **overrides):
    return resolve(task=task, variant=variant, profile=load_profile(profile), seed=0, track="open", overrides=overrides)


def test_the_state_is_that_of_a_layer_at_the_longest_length():
    assert state_size(config("full")) == 2 * 64 * 64
    assert state_size(config("full", **{"model.pooling": "cls"})) == 2 * 65 * 64
    assert state_size(config("linear")) == 4 * 16 * 17
    assert state_size(config("fnet")) is None


def test_the_last_layer_counts():
    """With this placement the first layer pools nothing."""
    assert state_size(config("contextpool", **{"variant.placement": "stream"})) == 3 * 64 * 64


def test_other_models_have_no_such_number_and_nothing_is_drawn_or_allocated():
    convnet = config("conv", task="image_continuous", **{"model.family": "convnet"})
    before = torch.get_rng_state()
    assert state_size(convnet) is None
    large = {"variant.kind": "random", "model.max_length": 2**20}  # 16 TiB
    assert state_size(config("synthesizer", **large)) == 2**20 * 64
    assert torch.equal(torch.get_rng_state(), before)
    unknown = config("full")
    unknown = unknown.model_copy(update={"variant": unknown.variant.model_copy(update={"name": "not_here"})})
    assert state_size(unknown) == "?"
    assert state_size(config("full").model_copy(update={"task": "mine.py:Task"})) == "?"


def test_a_task_of_a_file_has_a_state_where_it_was_loaded(tmp_path):
    """A table of a record loads no file; `lra-bench`, which has loaded it, knows."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\nfrom lra.tasks.listops.task import ListOps\n"
        "class Mine(ListOps):\n    info = replace(ListOps.info, name='mine')\n"
    )
    record = config("full").model_copy(update={"task": f"{tmp_path}/mine.py:Mine"})
    assert state_size(record) == "?"
    get_task(record.task)
    assert state_size(record) == 2 * 64 * 64
