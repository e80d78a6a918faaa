"""The task can be learnt from the images, and not from anything else."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lra.seeding import numpy_generator
from lra.tasks.pathfinder.generator import generate_scenes, make_recipe

BATCH, CHANNELS, HELD_OUT = 64, 24, 2000
STAGES = ((2, 200), (3, 100), (4, 100), (6, 300))
"""(segments of a curve, steps): shorter curves first, which saves most of the time at chance; 6 is the easy set."""


class Residual(nn.Module):
    def __init__(self, dilation):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, x):
        return F.relu(x + self.norm(self.conv(x)))


class Network(nn.Module):
    """Seven convolutions at half the resolution, then mean and maximum over all places."""

    def __init__(self):
        super().__init__()
        first = nn.Conv2d(1, CHANNELS, 5, stride=2, padding=2, bias=False)
        rest = [Residual(dilation) for dilation in (1, 1, 2, 1, 2, 1)]
        self.body = nn.Sequential(first, nn.BatchNorm2d(CHANNELS), nn.ReLU(), *rest)
        self.head = nn.Sequential(nn.Linear(2 * CHANNELS, 48), nn.ReLU(), nn.Linear(48, 2))

    def forward(self, images):
        x = self.body(images.contiguous(memory_format=torch.channels_last))
        return self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1))


@functools.cache
def easy_images(length, count, purpose):
    recipe = dataclasses.replace(make_recipe(32, "easy"), contour_length=length)
    images, scenes = generate_scenes(recipe, count, numpy_generator(0, purpose, length))
    return torch.from_numpy(images)[:, None].float() / 255, torch.from_numpy(scenes.labels)


def held_out_accuracy(*, shuffled):
    torch.manual_seed(0)
    network = Network().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
    for length, steps in STAGES:
        images, labels = easy_images(length, steps * BATCH, "training")
        if shuffled:
            labels = labels[torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))]
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = 2e-3 * (1 - step / steps if length == STAGES[-1][0] else 1)
            part = slice(step * BATCH, (step + 1) * BATCH)
            optimiser.zero_grad()
            F.cross_entropy(network(images[part]), labels[part]).backward()
            optimiser.step()
    network.eval()
    images, labels = easy_images(6, HELD_OUT, "held out")
    with torch.no_grad():
        return (network(images).argmax(dim=1) == labels).float().mean().item()


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_small_convolutional_network_learns_the_easy_set():
    assert held_out_accuracy(shuffled=False) > 0.80


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_shuffled_labels_cannot_be_learnt():
    assert abs(held_out_accuracy(shuffled=True) - 0.5) < 5 * 0.5 / HELD_OUT**0.5
