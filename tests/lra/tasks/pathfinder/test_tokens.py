"""Pixels as token ids: 256 levels and one id for padding, in uint8 on disk."""

import numpy as np
import pytest
import torch

from lra.data.batching import collate
from lra.data.dataset import open_prepared, write_prepared
from lra.data.split import SPLITS, Split


def one_split(offset):
    tokens = np.array([0, 255, 7, 0, 0, 9], dtype=np.uint8)
    return Split(tokens=tokens, offsets=np.array([0, 4, 6]), labels=np.array([0, 1]), token_offset=offset)


def test_levels_become_ids_from_one_and_padding_stays_zero():
    batch = collate(one_split(1), [0, 1], 4, 4, torch.device("cpu"))
    assert batch.tokens.tolist() == [[1, 256, 8, 1], [1, 10, 0, 0]]
    assert batch.tokens.dtype == torch.int16
    assert batch.mask.tolist() == [[True] * 4, [True, True, False, False]]


def test_levels_become_ids_when_nothing_is_padded():
    batch = collate(one_split(1), [0], 4, 4, torch.device("cpu"))
    assert batch.mask is None
    assert batch.tokens.tolist() == [[1, 256, 8, 1]]


def test_without_an_offset_tokens_are_the_stored_bytes():
    batch = collate(one_split(0), [0, 1], 4, 4, torch.device("cpu"))
    assert batch.tokens.dtype == torch.uint8
    assert batch.tokens.tolist() == [[0, 255, 7, 0], [0, 9, 0, 0]]


@pytest.mark.parametrize("offset", [0, 1])
def test_the_offset_is_kept_on_disk(tmp_path, offset):
    write_prepared(
        tmp_path / "d",
        task="t",
        dataset="e",
        generated_by="m",
        options={},
        num_classes=2,
        splits={name: one_split(offset) for name in SPLITS},
        baselines={},
    )
    data = open_prepared(tmp_path / "d", verify=True)
    assert [data.split(name).token_offset for name in SPLITS] == [offset] * 3
    assert data.split("train").tokens.dtype == np.uint8
