"""Suites: expansion, and every built-in suite by count."""

import pytest
import yaml

from attention_zoo import available
from lra.config.builtin import suite_names
from lra.config.suites import expand, labels, load_suite
from lra.errors import UsageError

COUNTS = {
    "quick": lambda: len(available()),
    "lra": lambda: 12 * 3 * 6,
    # full; 8 combinations, 4 widths and 3 limits (none of them the default); two placements of the control
    "contextpool_ablation": lambda: 3 * (1 + 8 + 4 + 3 + 2),
    "depth": lambda: 3 * 2 * 6,
    "learned_context": lambda: 3 * 8,
    "convnet": lambda: 3 * 4,
    # two seeds of three rows: on ListOps at two depths, on a probe at one
    "tour": lambda: 2 * 3 * (2 + 1),
    "probes": lambda: 8 * 12,
    # nine variants, of which full attention has two forms, without and with pretraining
    "mini": lambda: 6 * (9 + 1) * 2,
    "receptive_field": lambda: 3 * 7,
    "efficiency": lambda: 4 * len(available()),
}


def test_every_shipped_suite_has_a_count_here():
    assert suite_names() == sorted(COUNTS)
    assert len(available()) >= 20


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_a_shipped_suite_expands_to_its_cells(name):
    suite = load_suite(name)
    assert suite.name == name
    cells = expand(suite)
    assert len(cells) == COUNTS[name]()
    assert len(set(labels(cells))) == len(cells)
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)  # one seed of everything comes first


def suite(tmp_path, **values):
    base = {
        "name": "mine",
        "title": "",
        "profile": "quick",
        "tasks": ["listops"],
        "seeds": [0],
        "variants": {"full": {}},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(base | values))
    return load_suite(str(path))


def test_lists_are_crossed_grids_are_joined_and_repeats_dropped(tmp_path):
    grids = [{"placement": ["branch", "stream"], "initial_sigma": [1.0, 2.0]}, {"initial_sigma": [1.0, 3.0]}]
    cells = expand(suite(tmp_path, variants={"ContextPool": grids, "full": {}}, seeds=[0, 4]))
    names = labels(cells)
    assert len(cells) == 2 * (4 + 1 + 1)
    assert "listops full, seed 4" in names
    assert [name for name in names if "=3.0" in name] == [
        f"listops contextpool [initial_sigma=3.0], seed {seed}" for seed in (0, 4)
    ]


def test_settings_and_overrides_reach_the_cells_of_the_open_track(tmp_path):
    values = {"track": "open", "settings": {"model.num_layers": [1, 3]}, "overrides": {"listops": {"train.steps": 7}}}
    cells = expand(suite(tmp_path, **values))
    assert [cell.model.num_layers for cell in cells] == [1, 3]
    assert {cell.train.steps for cell in cells} == {7}


def test_a_setting_whose_value_is_an_empty_list_is_written_as_a_list_of_it(tmp_path):
    settings = {"train.undecayed": [[], ["biases"]]}
    cells = expand(suite(tmp_path, track="open", settings=settings))
    assert [list(cell.train.undecayed) for cell in cells] == [[], ["biases"]]


def test_seeds_and_variants_are_written_as_on_the_command_line(tmp_path):
    short = suite(tmp_path, seeds="0-1,4", variants=["full", "ContextPool"], tasks="all")
    long = suite(tmp_path, seeds=[0, 1, 4], variants={"full": {}, "contextpool": {}}, tasks=["listops", "imdb"])
    tasks = ["listops", "text", "image"]  # those of the benchmark that the profile has
    assert list(dict.fromkeys(config.task for config in expand(short))) == tasks
    two = [config for config in expand(short) if config.task in ("listops", "text")]
    assert {config.key() for config in two} == {config.key() for config in expand(long)}
    assert len(two) == 2 * 2 * 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"variants": {"ful": {}}}, "did you mean 'full'"),
        ({"variants": {"full": {"bakend": "fused"}}}, "variant.bakend: no option of full"),
        ({"variants": "some"}, "the word all"),
        ({"tasks": "some"}, "the word all"),
        ({"seeds": "0..4"}, "'0..4' is not a seed"),
        ({"tasks": ["listop"]}, "did you mean 'listops'"),
        ({"settings": {"train.steps": 3}}, "--track open"),
        ({"overrides": {"text": {"train.steps": 3}}}, "has no task 'text'"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [-1]}, "greater than or equal to 0"),
        ({"variants": {"linformer": {f"x{n}": list(range(10)) for n in range(12)}}}, "1,000,000,000,000 runs; at most"),
        (
            {"track": "open", "settings": {f"x{n}": list(range(10)) for n in range(12)}},
            "1,000,000,000,000 runs; at most",
        ),
        ({"seeds": list(range(5000)), "variants": {"full": {}, "local": {}, "linear": {}}}, "15,000 runs; at most"),
        ({"variants": {"full": []}}, "an empty list stands for no run"),
        ({"variants": {"local": {"window": []}}}, "window: an empty list stands for no run"),
        ({"track": "open", "settings": [{"train.lr": 0.1}, {"train.undecayed": []}]}, "train.undecayed: an empty list"),
        ({"track": "open", "settings": []}, "an empty list stands for no run"),
        ({"tasks": []}, "names no tasks"),
        ({"variants": {}}, "names no variants"),
        (
            {"track": "open", "variants": {"local": {"window": [4, 8]}}, "settings": {"variant.window": [16, 32]}},
            "variant.window is given by variants, and by settings",
        ),
        ({"sedes": [1]}, "did you mean 'seeds'"),
        ({"profile": "quik"}, "did you mean 'quick'"),
        ({"track": "open", "settings": {"variants.linfomer.rank": [8, 16]}}, "'linfomer' is not among the variants"),
        (
            {"track": "open", "overrides": {"listops": {"variants.local.window": 4}}},
            "'local' is not among the variants",
        ),
    ],
)
def test_mistakes_are_named(tmp_path, values, message):
    with pytest.raises(UsageError, match=message):
        expand(suite(tmp_path, **values))


def test_all_mistakes_come_at_once_and_once_each(tmp_path):
    with pytest.raises(UsageError) as caught:
        expand(suite(tmp_path, variants={"full": {"x": 1}, "local": {"y": 1}}, seeds=[0, 1]))
    assert len(str(caught.value).splitlines()) == 2


def test_an_unknown_suite_gets_a_suggestion():
    with pytest.raises(UsageError, match="did you mean 'quick'"):
        load_suite("quikc")
