from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from attention_zoo import program
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import RunConfig
from lra.config.suites import expand, load_suite
from lra.errors import UsageError
from lra.models import downsamplers
from lra.models.convnet import ConvNet
from lra.models.downsamplers import UnknownDownsamplerError, available_downsamplers, get_downsampler
from lra.models.transformer import build_model, count_parameters

POOLS = ("max", "average", "stride", "contextpool")
pools = pytest.mark.parametrize("pool", POOLS)


def config(pool="max", task="image", variant="conv", seed=0, **overrides) -> RunConfig:
    sizes = {"model.dim": 8, "model.num_layers": 1, "model.dropout": 0.0, "model.head_hidden": 16}
    family = {"model.family": "convnet", "model.pool": pool}
    return resolve(
        task=task,
        variant=variant,
        profile=load_profile("modern"),
        seed=seed,
        track="open",
        overrides=sizes | family | overrides,
    )


def build(*args, **overrides) -> ConvNet:
    return build_model(config(*args, **overrides), vocab_size=257, num_classes=10)


def stripes(count, seed=0):
    """Level and upright stripes of any phase: (tokens, labels)."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(1, 5, (count, 32, 32), generator=draw)
    stripe = torch.arange(32) % 8 < 4
    for image, label, phase in zip(images, labels, torch.randint(8, (count,), generator=draw), strict=True):
        bright = stripe.roll(int(phase))
        image += 150 * (bright[:, None] if label else bright)
    return images.flatten(1), labels


def test_every_downsampler_is_found():
    assert set(available_downsamplers()) == set(POOLS)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(("size", "expected"), [((8, 8), (4, 4)), ((7, 10), (4, 5)), ((1, 3), (1, 2))])
def test_every_downsampler_halves_upwards(name, size, expected):
    y = get_downsampler(name)(16, 2)(torch.randn(2, 16, *size))
    assert y.shape == (2, 16, *expected)


@pytest.mark.parametrize("name", ["max", "average", "contextpool"])
def test_poolings_leave_constant_images_alone(name):
    y = get_downsampler(name)(16, 2)(torch.full((1, 16, 9, 9), 1.5))
    torch.testing.assert_close(y, torch.full((1, 16, 5, 5), 1.5), rtol=1e-5, atol=0)


def test_an_unknown_downsampler_is_named():
    with pytest.raises(UnknownDownsamplerError, match=r"unknown downsampler 'averge'; did you mean 'average'\?"):
        get_downsampler("averge")


@pools
def test_images_become_logits(pool):
    model = build(pool)
    assert isinstance(model, ConvNet)
    logits = model(torch.randint(1, 257, (3, 1024)))
    assert logits.shape == (3, 10)
    assert logits.isfinite().all()
    with pytest.raises(ValueError, match="32 x 32 pixels got tokens"):
        model(torch.randint(1, 257, (3, 1000)))


@pytest.mark.parametrize("task", ["image_continuous", "pathfinder"])
def test_other_tasks_with_a_grid_have_a_convnet(task):
    assert build("max", task)(torch.randint(1, 256, (2, 1024))).shape == (2, 10)


def test_only_the_pooling_differs_between_poolings():
    models = {pool: build(pool) for pool in POOLS}
    parameters = {pool: count_parameters(model) for pool, model in models.items()}
    own = {pool: count_parameters(get_downsampler(pool)(8, 2)) for pool in POOLS}
    own = {pool: own[pool] + count_parameters(get_downsampler(pool)(16, 2)) for pool in POOLS}
    assert own["max"] == own["average"] == 0
    assert min(own["contextpool"], own["stride"]) > 0
    assert len({parameters[pool] - own[pool] for pool in POOLS}) == 1


@pools
def test_gradients_reach_every_parameter(pool):
    model = build(pool)
    images, labels = stripes(4)
    F.cross_entropy(model(images), labels).backward()
    unreached = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []
    assert len(list(model.parameters())) > 20


@pytest.mark.parametrize(
    "pool", [pytest.param(p, marks=() if p in ("max", "contextpool") else pytest.mark.nightly) for p in POOLS]
)
@pytest.mark.nightly
def test_every_pooling_learns_stripes(pool):
    model = build(pool)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images, labels = stripes(32)
    losses = []
    for step in range(36):
        part = torch.arange(8 * step, 8 * step + 8) % 32
        loss = F.cross_entropy(model(images[part])[:, :2], labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Two classes: the loss begins near log(2).
    assert sum(losses[:4]) / 4 > 0.6
    assert sum(losses[-4:]) / 4 < 0.35


def test_one_seed_gives_one_set_of_weights():
    once, again, other = build("contextpool"), build("contextpool"), build("contextpool", seed=1)
    images, _ = stripes(2)
    assert torch.equal(once(images), again(images))
    assert not torch.allclose(once(images), other(images), rtol=1e-3, atol=1e-3)


def test_masked_pixels_do_not_matter():
    model = build("contextpool").double().eval()
    images, _ = stripes(2)
    mask = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    other = torch.where(mask, images, 257 - images)
    torch.testing.assert_close(model(other, mask), model(images, mask), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(model(other), model(images), rtol=1e-3, atol=1e-3)


def test_black_is_hidden_where_the_edition_says_so():
    model = build("max", **{"data.legacy_zero_mask": True}).double().eval()
    images, _ = stripes(2)
    black = images.masked_fill(images < 3, 0)
    before = model(black)
    with torch.no_grad():
        model.tokens.weight[0] += 1.0
    torch.testing.assert_close(model(black), before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "full"}, "its variant is 'conv', not 'full'"),
        ({"variant.kernel_size": 7}, "variant 'conv' takes no options"),
        ({"task": "listops"}, "task 'listops' has no images"),
        ({"pool": "maxi"}, r"model.pool: unknown downsampler 'maxi'; did you mean 'max'\?"),
        ({"model.family": "transformer", "pool": "stride"}, "only model.family=convnet has poolings"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        config(**changes)


def test_the_suite_compares_every_pooling():
    cells = expand(load_suite("convnet"))
    assert {cell.model.pool for cell in cells} == set(POOLS)
    assert all(cell.model.family == "convnet" and cell.track == "open" for cell in cells)


@pytest.mark.parametrize("moment", ["built", "called", "evaluated"])
def test_a_file_that_a_layer_of_a_plug_in_reads_is_part_of_its_program(moment, tmp_path, monkeypatch):
    read = dict.fromkeys(("built", "called", "evaluated"), "pass") | {moment: "Path('kernel.txt').read_text()"}
    (tmp_path / "theirs.py").write_text(
        "import torch\nfrom pathlib import Path\n"
        "class Pool(torch.nn.MaxPool2d):\n    def forward(self, x):\n"
        f"        {read['called']}\n        if not self.training:\n            {read['evaluated']}\n"
        "        return super().forward(x)\n"
        f"def make(channels, stride):\n    {read['built']}\n    return Pool(3, stride, padding=1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    distribution = SimpleNamespace(name="theirs", version="1")
    point = EntryPoint(name="theirs", group="lra.downsamplers", value="theirs:make")
    monkeypatch.setattr(downsamplers, "entry_points", lambda **_: [point._for(distribution)])
    origins = []
    for content in ("1", "2", "2"):
        (tmp_path / "kernel.txt").write_text(content)
        program.program_of.cache_clear()
        program._hashed.clear()
        downsamplers.downsampler_origin.cache_clear()
        origins.append(downsamplers.downsampler_origin("theirs", 16, (32, 32)))
    assert origins[0].startswith("theirs 1 theirs:make source ")  # the entry point may lead to another one tomorrow
    assert origins[0] != origins[1] == origins[2]


@pytest.mark.parametrize("read", ["16-2", "32-2", "16x32", "32x16"])
def test_a_file_that_a_layer_reads_at_the_sizes_of_the_run_is_part_of_its_program(read, tmp_path, monkeypatch):
    (tmp_path / "sized_layers.py").write_text(
        "import torch\nfrom pathlib import Path\ndef read(name):\n    if Path(name).exists(): Path(name).read_text()\n"
        "class Pool(torch.nn.MaxPool2d):\n    def forward(self, x):\n"
        "        read(f'{x.shape[1]}x{x.shape[2]}')\n        return super().forward(x)\n"
        "def make(channels, stride):\n    read(f'{channels}-{stride}')\n    return Pool(3, stride, padding=1)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint(name="theirs", group="lra.downsamplers", value="sized_layers:make")
    distribution = SimpleNamespace(name="theirs", version="1")
    monkeypatch.setattr(downsamplers, "entry_points", lambda **_: [point._for(distribution)])
    origins = []
    for content in ("1", "2"):
        (tmp_path / read).write_text(content)
        program.program_of.cache_clear()
        program._hashed.clear()
        downsamplers.downsampler_origin.cache_clear()
        origins += [downsamplers.downsampler_origin("theirs", channels, (32, 32)) for channels in (16, 128)]
    assert origins[0] != origins[2]
    assert origins[1] == origins[3]
