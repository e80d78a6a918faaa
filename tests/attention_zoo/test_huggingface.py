"""Encoders of transformers from a configuration file: what of it is read, what the task decides, and a tiny run."""

import json
from importlib import metadata

import pytest
import torch

import lra
from attention_zoo import RegistrationError, get_variant
from attention_zoo.foreign import ForeignError
from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.models.transformer import build_model
from lra.results.records import Store
from runners.train.plan import check_models
from tests.runners.tiny_runs import execute, tiny, tiny_data

BERT = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "_name_or_path": "x", "transformers_version": "4.0",
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "vocab_size": 30522, "max_position_embeddings": 4, "pad_token_id": 7, "id2label": {"0": "no"},
    "torch_dtype": "float16", "max_length": 20,
}  # fmt: skip


@pytest.fixture
def bert(tmp_path):
    file = tmp_path / "small-bert.json"
    file.write_text(json.dumps(BERT))
    return file


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="the extra hf is not installed: pip install 'lra-harness[hf]'")


@pytest.fixture
def made_up(monkeypatch):
    """Let the package seem to be there, for what is found out before it is imported."""
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "transformers" else version(name))


def config_of(place, task="listops", **overrides):
    profile = load_profile("quick")
    return resolve(task=task, variant=f"hf:{place}", profile=profile, seed=0, track="open", overrides=overrides)


def test_without_the_package_the_command_that_installs_it_is_named(bert, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(
        RegistrationError, match=r"small-bert.json: needs transformers: pip install 'lra-harness\[hf\]'"
    ):
        get_variant(f"hf:{bert}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1", "not a JSON file"),
        ("[1]", 'a mapping with a "model_type"'),
        ('{"hidden_size": 8}', 'a mapping with a "model_type"'),
        ('{"model_type": "bert", "a b": 8}', "'a b' is no name of a field"),
    ],
)
@pytest.mark.usefixtures("made_up")
def test_a_file_that_holds_no_configuration_is_one_sentence(tmp_path, content, message):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(RegistrationError, match=message):
        get_variant(f"hf:{tmp_path / 'x.json'}")
    with pytest.raises(RegistrationError, match=r"no such file; did you mean 'x.json'"):
        get_variant(f"hf:{tmp_path / 'y.json'}")


@pytest.mark.usefixtures("made_up")
def test_the_fields_of_the_file_are_options_and_identify_the_run(bert, tmp_path):
    config = config_of(bert)
    kept = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    assert config.variant.options == {name: BERT[name] for name in kept}
    assert config.variant.origin == "transformers 9.9"
    assert get_variant(f"hf:{bert}").title == "small-bert"
    ids = {config.run_id("0" * 64)}
    for number, changes in enumerate(({"torch_dtype": "float32"}, {"hidden_size": 16})):
        file = tmp_path / f"{number}" / bert.name
        file.parent.mkdir()
        file.write_text(json.dumps(BERT | changes))
        ids.add(config_of(file).run_id("0" * 64))
    assert len(ids) == 2


def test_what_the_task_decides_is_set(bert, transformers):
    model = build_model(config_of(bert), 17, 10).inner.inner
    deeper = build_model(config_of(bert, **{"variant.num_hidden_layers": 3}), 17, 10).inner.inner
    fields = ("vocab_size", "num_labels", "max_position_embeddings", "pad_token_id")
    assert [getattr(model.config, name) for name in fields] == [17, 10, 66, 0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert deeper.config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("padding", "fields"),
    [
        ("bucketed", {"model_type": "roberta"}),
        ("bucketed", {"model_type": "distilbert", "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 8}),
        ("fixed", {"model_type": "nystromformer", "num_landmarks": 4, "segment_means_seq_len": 64}),
    ],
)
def test_other_encoders_pass_the_trial(tmp_path, transformers, padding, fields):
    (tmp_path / "x.json").write_text(json.dumps(BERT | fields))
    check_models([config_of(tmp_path / "x.json", **{"train.padding": padding})], torch.device("cpu"))


def test_a_tiny_run_ends_with_a_record_and_is_found_again(bert, transformers, tmp_path):
    data, store = tiny_data(tmp_path / "data"), Store(tmp_path / "store")
    record = execute(tiny(f"hf:{bert}"), data, store)
    assert record.status == "ok"
    assert record.variant_title == "small-bert"
    assert record.cost.flops > 0
    assert lra.load_run(record.run_id, store.root).model()(torch.ones(2, 5, dtype=torch.long)).shape == (2, 10)


def test_real_values_and_unknown_models_are_refused(bert, transformers):
    with pytest.raises(ForeignError, match="small-bert: models of transformers take tokens"):
        build_model(config_of(bert, "image_continuous"), 256, 10)
    with pytest.raises(ForeignError, match=r"Unrecognized model identifier: brt"):
        build_model(config_of(bert, **{"variant.model_type": "brt"}), 17, 10)
    with pytest.raises(ForeignError, match=r"small-bert.*failed"):
        build_model(config_of(bert, **{"variant.num_attention_heads": 3}), 17, 10)
