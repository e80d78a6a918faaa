"""The figures of the profiles `s4`, `spt` and `rotary`, each with the file or table that it was read from."""

import pytest

from lra.config.profiles import load_profile
from lra.config.resolve import resolve

S4 = "state-spaces/s4 e757cef, configs/experiment/lra/s4-{}.yaml"
SPT = "IdoAmos/not-from-scratch f919137, configs/experiment/lra/transformer-lra-{}.yaml"
SPT_PAPER = "arXiv:2310.02980, table 4"
ROTARY = "pablomiralles22/long-transformers ec33dc6, configs/{}.json"

TRAIN = {
    "listops": 96_000,
    "text": 25_000,
    "retrieval": 147_086,
    "image_continuous": 45_000,
    "pathfinder_continuous": 160_000,
}
"""Training examples of the sources."""


def s4(depth, width, states, norm_first, dropout, batch, lr, steps, warmup):
    return {
        "model.num_layers": depth, "model.dim": width, "model.norm": "batch",
        "model.norm_placement": "pre" if norm_first else "post", "model.dropout": dropout, "model.head_dim": 0,
        "model.num_heads": 8, "model.mlp_dim": 4 * width, "model.pooling": "masked_mean",
        "variant.state_size": states, "variant.initialisation": "legs", "variant.min_step": 1e-3,
        "variant.max_step": 0.1, "train.batch_size": batch, "train.lr": lr, "train.steps": steps,
        "train.warmup_steps": warmup, "train.schedule": "cosine", "train.weight_decay": 0.05,
        "train.state_space_lr": 1e-3, "train.undecayed": ["biases", "embeddings", "norms", "state_space"],
        "train.betas": [0.9, 0.999], "train.selection": "best",
    }  # fmt: skip


def spt(depth, width, heads, expand, pooling, batch, decay, warmups, lrs, rate):
    """`warmups` and `lrs` are of pretraining and of the task."""
    return {
        "model.num_layers": depth, "model.dim": width, "model.num_heads": heads, "model.mlp_dim": expand * width,
        "model.pooling": pooling, "model.norm": "layer", "model.norm_placement": "pre", "model.dropout": 0.0,
        "model.activation": "gelu", "model.positions": "sinusoidal", "train.batch_size": batch,
        "train.weight_decay": decay, "train.schedule": "constant", "pretrain.warmup": warmups[0],
        "train.warmup_steps": warmups[1], "pretrain.lr_scale": pytest.approx(lrs[0] / lrs[1]), "train.lr": lrs[1],
        "pretrain.mask_rate": rate, "pretrain.mask_span": 1,
    }  # fmt: skip


def rotary(depth, width, heads, ffn, dropout, batch, lr, decay, **more):
    return {
        "model.num_layers": depth, "model.dim": width, "model.num_heads": heads, "model.mlp_dim": ffn,
        "model.dropout": dropout, "model.activation": "relu", "model.positions": "rotary",
        "model.norm_placement": "pre", "train.batch_size": batch, "train.lr": lr, "train.weight_decay": decay,
        "train.betas": [0.9, 0.98], **{name.replace("__", "."): value for name, value in more.items()},
    }  # fmt: skip


FIGURES = {
    ("s4", "listops"): (S4.format("listops"), s4(6, 256, 4, False, 0.0, 32, 0.01, 120_000, 12_000)),
    ("s4", "text"): (S4.format("imdb"), s4(6, 256, 4, True, 0.0, 16, 0.01, 50_000, 5_000)),
    # The file's schedule is over 50,000 steps, of which its 20 epochs reach 45,960.
    ("s4", "retrieval"): (S4.format("aan"), s4(6, 256, 4, True, 0.0, 64, 0.01, 45_960, 5_000)),
    ("s4", "image_continuous"): (S4.format("cifar"), s4(6, 512, 64, False, 0.1, 50, 0.01, 180_000, 18_000)),
    ("s4", "pathfinder_continuous"): (
        S4.format("pathfinder"),
        s4(6, 256, 64, True, 0.0, 64, 0.004, 500_000, 50_000),
    ),
    ("spt", "listops"): (
        f"{SPT.format('listops')}; {SPT_PAPER}",
        spt(6, 512, 8, 4, "masked_mean", 32, 0.0, (2_000, 2_000), (1e-3, 1e-4), 0.1),
    ),
    ("spt", "text"): (
        f"{SPT.format('imdb')}; {SPT_PAPER}",
        spt(6, 512, 8, 4, "masked_mean", 32, 0.1, (5_000, 2_000), (5e-4, 1e-4), 0.15),
    ),
    ("spt", "retrieval"): (
        f"{SPT.format('aan')}; {SPT_PAPER}",
        spt(4, 128, 4, 4, "masked_mean", 32, 0.0, (2_000, 5_000), (5e-3, 5e-4), 0.15),
    ),
    ("spt", "image_continuous"): (
        f"{SPT.format('cifar')}; {SPT_PAPER}",
        spt(3, 64, 4, 2, "max", 50, 0.0, (2_500, 2_000), (1e-3, 1e-3), 0.5) | {"pretrain.loss": "l1"},
    ),
    ("spt", "pathfinder_continuous"): (
        f"{SPT.format('pathfinder')}; {SPT_PAPER}",
        spt(4, 128, 8, 1, "masked_mean", 32, 0.0, (2_500, 5_000), (1e-3, 5e-4), 0.5)
        | {"pretrain.loss": "cross_entropy"},
    ),
    ("rotary", "listops"): (
        ROTARY.format("listops/rotary_transformer_augment_nopretrain"),
        rotary(6, 80, 4, 160, 0.0, 64, 1e-3, 0.01, train__augment=True, model__pooling="masked_mean"),
    ),
    ("rotary", "text"): (
        ROTARY.format("text_classification/rotary_transformer_w_mlm"),
        rotary(4, 128, 8, 256, 0.1, 32, 4e-3, 0.01, train__crop=2048, train__denoise=1.0, pretrain__mask_rate=0.3),
    ),
    ("rotary", "retrieval"): (
        ROTARY.format("text_retrieval/rotary_transformer_w_mlm"),
        rotary(6, 128, 4, 256, 0.1, 64, 1e-3, 0.01, train__crop=1024, train__denoise=1.0, model__head_hidden=512),
    ),
    ("rotary", "image"): (
        ROTARY.format("cifar10/rotary_transformer_augment"),
        rotary(8, 160, 4, 320, 0.0, 32, 5e-4, 0.0, train__augment=True, model__head_hidden=0),
    ),
    ("rotary", "pathfinder"): (
        ROTARY.format("pathfinder/rotary_transformer_augment_nopretrain"),
        rotary(6, 128, 4, 256, 0.0, 128, 1e-3, 0.01, train__augment=True, model__pooling="masked_mean"),
    ),
}

EPOCHS = {
    ("s4", "listops"): (40, 0), ("s4", "text"): (32, 0), ("s4", "retrieval"): (20, 0),
    ("s4", "image_continuous"): (200, 0), ("s4", "pathfinder_continuous"): (200, 0),
    ("spt", "listops"): (100, 100), ("spt", "text"): (65, 32), ("spt", "retrieval"): (32, 32),
    ("spt", "image_continuous"): (200, 50), ("spt", "pathfinder_continuous"): (200, 50),
}  # fmt: skip
"""`max_epochs` of the task, and of pretraining, in the same files. They drop the last batch of an epoch."""


def wrong(profile, name, figures):
    """List the figures that the profile has otherwise."""
    variant = "s4d" if profile.name == "s4" else "full"
    config = resolve(task=name, variant=variant, profile=profile, seed=0, overrides={})
    sections = {"model": config.model, "train": config.train, "pretrain": config.pretrain}
    found = {f"{place}.{key}": value for place, part in sections.items() if part for key, value in part}
    found |= {f"variant.{key}": value for key, value in config.variant.options.items()}
    return {path: (found[path], value) for path, value in figures.items() if found[path] != value}


@pytest.mark.parametrize(("profile", "task"), FIGURES)
def test_the_figures_are_those_of_the_source(profile, task):
    source, figures = FIGURES[profile, task]
    loaded = load_profile(profile)
    assert wrong(loaded, task, figures) == {}, source
    for part in source.split("; "):
        assert part.partition(",")[0] in loaded.source


def test_every_task_of_these_profiles_has_figures_and_another_value_is_found():
    assert {(name, task) for name in ("s4", "spt", "rotary") for task in load_profile(name).tasks} == set(FIGURES)
    for (name, task), (_, figures) in FIGURES.items():
        assert len(figures) >= 12
        path = "train.batch_size"
        assert set(wrong(load_profile(name), task, figures | {path: 7})) == {path}


@pytest.mark.parametrize(("profile", "task"), EPOCHS)
def test_steps_are_the_epochs_of_the_source(profile, task):
    config = resolve(task=task, variant="full", profile=load_profile(profile), seed=0, overrides={})
    epoch = TRAIN[task] // config.train.batch_size
    main, before = EPOCHS[profile, task]
    assert config.pretrain_steps == before * epoch
    expected = {("s4", "text"): 50_000}.get((profile, task), main * epoch)  # as the file says; 32 epochs are 49,984
    assert config.train.steps - config.pretrain_steps == expected
    assert config.train.eval_every == epoch


@pytest.mark.parametrize("profile", ["s4", "spt", "rotary"])
def test_each_profile_lists_what_it_does_otherwise(profile):
    departures = " ".join(load_profile(profile).departures)
    assert len(load_profile(profile).departures) >= 10
    for word in ("Pathfinder is generated", "Path-X is missing", "Retrieval"):
        assert word in departures
    assert "figure for figure" not in departures + load_profile(profile).title
