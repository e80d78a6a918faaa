"""`train.denoise`: a second loss in each step of the task, which leaves nothing behind in the model."""

import pytest
import torch

from lra.config.labels import row_name
from lra.models.denoiser import Denoised
from lra.results.records import Store
from runners.train.loop import loss_of
from tests.runners.tiny_runs import execute, tiny, tiny_data
from tests.runners.train.test_pretraining import StopAt, stopped

EXACT = {"model.dropout": 0.0, "model.attention_dropout": 0.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_data(tmp_path_factory.mktemp("data"))


def weights(config, data, folder):
    record = execute(config, data, Store(folder))
    state = torch.load(Store(folder).checkpoint_folder(record.run_id) / "chosen.pt", weights_only=True)
    return record, state["model"]


def largest_difference(one, other):
    assert one.keys() == other.keys()  # nothing of the denoiser is left
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def test_a_weight_of_nearly_nothing_changes_nearly_nothing_and_a_real_one_does(data, tmp_path):
    none = {"train.denoise": 1e-12, "pretrain.mask_rate": 1e-9}
    plain_record, plain = weights(tiny(**EXACT), data, tmp_path / "plain")
    record, slight = weights(tiny(**EXACT, **none), data, tmp_path / "slight")
    assert largest_difference(plain, slight) < 1e-4
    assert record.outcome.test.loss == pytest.approx(plain_record.outcome.test.loss, abs=1e-4)
    assert record.cost.parameters == plain_record.cost.parameters
    _, hidden = weights(tiny(**EXACT, **none | {"pretrain.mask_rate": 0.5}), data, tmp_path / "hidden")
    assert largest_difference(plain, hidden) > 1e-3  # the labels are learnt from inputs with hidden places
    _, weighed = weights(tiny(**EXACT, **none | {"train.denoise": 1.0, "pretrain.mask_rate": 0.5}), data, tmp_path)
    assert largest_difference(hidden, weighed) > 1e-3


@pytest.mark.nightly  # as without it and with pretraining
def test_a_stop_at_any_look_changes_no_bit(data, tmp_path):
    config = tiny(**{"train.denoise": 0.5, "train.augment": True})
    unbroken = execute(config, data, Store(tmp_path / "unbroken"))
    for look in range(1, config.train.steps + 3):
        folder = tmp_path / f"stop-{look}"
        stopped(config, data, folder, look)
        resumed = execute(config, data, Store(folder))
        assert resumed.cost.resumed == 1
        assert resumed.outcome == unbroken.outcome
    assert StopAt(1)() is True


def test_the_curve_is_of_the_task():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    found = Denoised(losses=torch.tensor([5.0, 7.0]), right=torch.ones(2), places=torch.tensor([2, 2]), logits=logits)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    loss, right, count = loss_of(found, labels)
    assert (float(loss), int(right), int(count)) == (float(expected), 1, 2)
    loss, right, count = loss_of(found._replace(logits=None), labels)
    assert (float(loss), int(right), int(count)) == (3.0, 2, 4)


def test_every_table_names_what_is_not_the_default():
    changed = {"train.denoise": 0.5, "train.augment": True, "pretrain.mask_rate": 0.3}
    assert row_name(tiny(**changed)) == "full [mask_rate=0.3, augment=True, denoise=0.5]"
    assert row_name(tiny(**{"train.denoise": 0.5})) == "full [denoise=0.5]"
    assert row_name(tiny(**{"pretrain.share": 0.4})) == "full [share=0.4]"
    assert row_name(tiny()) == "full"
