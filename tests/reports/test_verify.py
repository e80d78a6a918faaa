"""The check of records that are sent in: true ones pass, and five kinds of forgery are refused, each for its reason."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from attention_zoo import get_variant
from lra.config.profiles import load_profile
from lra.config.resolve import resolve, run_problems
from lra.config.schema import PretrainConfig, RunConfig, StartConfig, VariantChoice
from lra.config.yaml_loader import load_file
from lra.measure.model_size import flops_of_example, parameters_of
from lra.results.records import Count, Pretrained, RunRecord, Store, pack_arrays, read_record, seal
from lra.tasks import get_task, info_of
from reports.cli import command
from reports.verify import _check_cost, records_below, verify
from tests.reports.synthetic import add_other_outcome, add_run

ROOT = Path(__file__).resolve().parents[2]
EVIDENCE = ROOT / "benchmarks" / "evidence" / "store"
KNOWN = load_file(ROOT / "reports" / "known_data.yaml")
[(LISTOPS, DATA)] = [each for each in KNOWN["listops"].items() if ", depth 4, 5 arguments" in each[0]]
DIGEST = DATA["digest"]


def quick(variant="full", **overrides):
    return resolve(task="listops", variant=variant, profile=load_profile("quick"), seed=0, overrides=overrides)


def true_record(folder, config):
    """Publish a record that is true in all that can be checked."""
    parameters, full = parameters_of(config)
    flops = flops_of_example(config, get_task("listops").info, torch.device("cpu"))
    record = add_run(
        folder / "made", 512, config=config, dataset=LISTOPS, digest=DIGEST, flops=flops, total=DATA["test"],
        baselines=DATA["baselines"], title="ListOps", variant_title=get_variant(config.variant.name).title,
    )  # fmt: skip
    arrays = Store(folder / "made").arrays(record.run_id)
    cost = record.cost.model_copy(update={"parameters": parameters, "parameters_full": full})
    return rewrite(folder / "sent", record.model_copy(update={"cost": cost}), arrays)


def rewrite(folder, record, arrays):
    """Publish a record as a careful forger would: its id, its checksum and the digests of its arrays all fit."""
    record = RunRecord.model_validate(
        record.model_dump() | {"run_id": record.config.run_id(record.data_digest, record.numerics_version)}
    )
    Store(folder).publish(record, arrays)
    return Store(folder).record_path(record.run_id)


def parts(path):
    store = Store(path.parents[2])
    return store.find(path.stem), store.arrays(path.stem)


def edit(path, change):
    """Edit the file of a record, and its checksum with it."""
    from lra.results.envelope import pack_envelope

    body = json.loads(path.read_text())["record"]
    change(body)
    path.write_bytes(pack_envelope("record", body))


@pytest.fixture
def sent(tmp_path):
    return true_record(tmp_path, quick())


def faults(path):
    [fault] = verify(path).faults
    return fault


def test_a_true_record_is_accepted_and_says_what_was_not_checked(sent):
    verdict = verify(sent)
    assert (verdict.faults, verdict.remarks) == ([], [])


@pytest.mark.parametrize("variant", ["contextpool", "local"])
def test_true_records_of_other_variants_are_accepted(tmp_path, variant):
    assert verify(true_record(tmp_path, quick(variant))).faults == []


def test_a_probe_with_options_of_its_own_is_accepted(tmp_path):
    """Its vocabulary decides how many operations an example takes."""
    overrides = {"data.vocabulary": 5}
    config = resolve(
        task="needle", variant="mlp_only", profile=load_profile("probes"), seed=0, track="open", overrides=overrides
    )
    parameters, full = parameters_of(config)
    cost = {"parameters": parameters, "parameters_full": full}
    cost["flops"] = flops_of_example(config, info_of(config), torch.device("cpu"))
    made = add_run(tmp_path, 500, config=config, title="Needle")
    record = made.model_copy(
        update={"cost": made.cost.model_copy(update=cost), "environment": made.environment | {"device": "cpu"}}
    )
    faults: list[str] = []
    _check_cost(record, faults, [])
    assert faults == []


def test_a_changed_count_is_refused(sent):
    edit(sent, lambda body: body["outcome"]["test"].update(correct=600))
    assert "the bits do not say 600 of 2000" in faults(sent)
    assert "the bits do not say 600 of 2000" in _with_new_seal(sent)


def _with_new_seal(path):
    """Let the forger seal the edited record anew, so that only the bits can tell."""
    file = path.parents[2] / "arrays" / path.parent.name / f"{path.stem}.npz"
    with np.load(file) as archive:
        arrays = dict(archive)
    arrays["seal"] = seal(json.loads(path.read_text())["record"])
    file.write_bytes(pack_arrays(arrays))
    import hashlib

    edit(path, lambda body: body.update(arrays_sha256=hashlib.sha256(file.read_bytes()).hexdigest()))
    return faults(path)


def test_changed_bits_are_refused(sent):
    file = sent.parents[2] / "arrays" / sent.parent.name / f"{sent.stem}.npz"
    with np.load(file) as archive:
        arrays = dict(archive)
    arrays["test_correct"] = ~arrays["test_correct"]
    file.write_bytes(pack_arrays(arrays))
    assert "is not what its record says" in faults(sent)
    assert "the bits do not say 512 of 2000" in _with_new_seal(sent)


def test_a_changed_configuration_is_refused(sent, tmp_path):
    record, arrays = parts(sent)
    train = record.config.train.model_copy(update={"steps": 9000})
    changed = record.model_copy(update={"config": record.config.model_copy(update={"train": train})})
    edit(sent, lambda body: body["config"]["train"].update(steps=9000))
    assert "its id is not that of its configuration" in faults(sent)
    assert "not the recipe of profile quick: train.steps" in faults(rewrite(tmp_path / "again", changed, arrays))


def test_another_data_digest_is_refused(sent, tmp_path):
    record, arrays = parts(sent)
    other = rewrite(tmp_path / "again", record.model_copy(update={"data_digest": "d" * 64}), arrays)
    assert f"its data are not {LISTOPS!r}: digest dddddddddddd, known {DIGEST[:12]}" in faults(other)


def test_operations_on_another_device_are_named_as_not_checked(sent, tmp_path):
    record, arrays = parts(sent)
    cost = record.cost.model_copy(update={"flops": record.cost.flops + 1})
    for device, refused in (("cpu", True), ("NVIDIA H100", False)):
        environment = record.environment | {"device": device}
        changed = record.model_copy(update={"cost": cost, "environment": environment})
        verdict = verify(rewrite(tmp_path / device, changed, arrays))
        assert any("operations here, and" in fault for fault in verdict.faults) is refused
        assert ("operations on NVIDIA H100 are not checked" in verdict.remarks) is not refused


def test_another_variant_under_a_known_name_is_refused(sent, tmp_path):
    record, arrays = parts(sent)

    def renamed(choice):
        config = record.config.model_copy(update={"variant": choice})
        title = get_variant(choice.name).title if choice.name != "best_ever" else "Best ever"
        changed = record.model_copy(update={"config": config, "variant_title": title})
        return faults(rewrite(tmp_path / choice.name / choice.origin, changed, arrays))

    assert "has 84,332 parameters here" in renamed(quick("contextpool").variant)
    assert "operations here, and" in renamed(quick("linear").variant)  # as many parameters as full attention
    assert "unknown option" in renamed(VariantChoice(name="linear", options=quick("local").variant.options))
    assert "names the program mine 1.0" in renamed(quick().variant.model_copy(update={"origin": "mine 1.0"}))
    assert "names no program" in renamed(VariantChoice(name="best_ever", options={}))


def test_what_cannot_be_checked_is_named(sent, tmp_path):
    record, arrays = parts(sent)
    choice = VariantChoice(name="best_ever", options={}, origin="best 1.0")
    changed = record.model_copy(
        update={
            "config": record.config.model_copy(update={"variant": choice, "profile": "mine"}),
            "dataset": "mine",
            "data_digest": "d" * 64,
        }
    )
    verdict = verify(rewrite(tmp_path / "again", changed, arrays))
    assert verdict.faults == []
    assert [remark.split(",")[0] for remark in verdict.remarks] == [
        "no known data of listops are called 'mine'",
        "best_ever is a variant that is not of this project: best 1.0",
    ]


def test_data_options_of_another_task_are_a_fault_and_a_task_of_a_file_is_not_loaded(sent, tmp_path):
    record, arrays = parts(sent)
    other = record.model_copy(update={"config": record.config.model_copy(update={"task": "retrieval"})})
    assert "data.source: input should be" in verify(rewrite(tmp_path / "other", other, arrays)).faults[0]
    trap = tmp_path / "trap.py"
    trap.write_text("raise SystemExit('loaded')")
    foreign = record.model_copy(update={"config": record.config.model_copy(update={"task": f"{trap}:Task"})})
    verdict = verify(rewrite(tmp_path / "foreign", foreign, arrays))
    assert verdict.faults == []
    assert "is not a task of this project" in verdict.remarks[0]


FORGED = {
    "fewer test examples": (
        {"outcome": lambda record: {"test": record.outcome.test.model_copy(update={"total": 1000})}},
        "its data have 2,000 test examples, and it has 1,000 answers",
    ),
    "a title": ({"variant_title": "ContextPool"}, "it calls full 'ContextPool', and not 'Full attention'"),
    "a title of the task": ({"task_title": "Text"}, "it calls listops 'Text', and not 'ListOps'"),
    "a baseline": (
        {"baselines": DATA["baselines"] | {"root-only": 12.0}},
        "baseline root-only: 12.0 in the record, known 24.45",
    ),
    "no baselines": ({"baselines": {"chance": 10.0, "majority": 11.9}}, "baseline root-only: missing in the record"),
    "a name of the data": ({"dataset": "long"}, f"its data are called {LISTOPS!r}, and not 'long'"),
    "other data options": (
        {"config": {"track": "open", "data": DATA["options"] | {"max_length": 32}}},
        "its data were not made with the options of the record: max_length",
    ),
    "a start": (
        {"config": {"start": StartConfig(run="a" * 64, weights="b" * 64, steps=10**6)}},
        "matched track, but it starts from another run",
    ),
    "a program of a task": ({"config": {"task_origin": "mine 1.0"}}, "names the program mine 1.0"),
    "a program of a layer": ({"config": {"model": {"pool_origin": "mine 1.0"}}}, "names the program mine 1.0"),
    "a layer without a program": (
        {"config": {"track": "open", "model": {"pool": "theirs"}}},
        "theirs is not a layer of this project, and the record names no program",
    ),
    "pretraining of another form": (
        {"config": {"pretrain": PretrainConfig(share=0.4, mask_rate=0.5, loss="cross_entropy")}},
        "not the recipe of profile quick: pretrain.mask_rate",
    ),
    "a model that cannot be built": (
        {"config": {"track": "open", "model": {"family": "convnet"}}},
        "its model cannot be built: full, listops: task 'listops' has no images",
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_careful_forger_of_one_thing_is_refused_for_it(sent, tmp_path, what):
    record, arrays = parts(sent)
    changes, reason = FORGED[what]
    changes = dict(changes)
    if "outcome" in changes:
        record = record.model_copy(update={"outcome": record.outcome.model_copy(update=changes.pop("outcome")(record))})
        arrays["test_correct"] = arrays["test_correct"][:1000]
    if "config" in changes:
        of_config = dict(changes["config"])
        if "model" in of_config:
            of_config["model"] = record.config.model.model_copy(update=of_config["model"])
        changes["config"] = record.config.model_copy(update=of_config)
        if changes["config"].pretrain is not None:
            first = changes["config"].pretrain_steps
            arrays = {name: column[4:] if name != "test_correct" else column for name, column in arrays.items()}
            arrays["curve.step"] = np.array([first + 50.0])
            arrays |= {"pretrain.step": np.array([float(first)]), "pretrain.validation_loss": np.array([2.0])}
            changes["pretrained"] = Pretrained(
                steps=first,
                selected_step=first,
                validation=Count(correct=5, total=10, loss=2.0),
                weights_digest="f" * 64,
            )
            outcome = record.outcome.model_copy(update={"selected_step": first + 50})
            record = record.model_copy(update={"outcome": outcome})
    found = verify(rewrite(tmp_path / "again", record.model_copy(update=changes), arrays)).faults
    assert len(found) == 1
    assert reason in found[0]


def test_settings_that_the_matched_track_admits_are_accepted(tmp_path):
    assert verify(true_record(tmp_path, quick(**{"train.compile": True}))).faults == []


def test_only_the_file_that_is_named_is_judged(sent):
    elsewhere = sent.parents[1] / "zz" / sent.name
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(sent.read_bytes())
    edit(elsewhere, lambda body: body["outcome"]["test"].update(correct=600))
    assert "not in its place in a store" in faults(elsewhere)
    assert verify(sent).faults == []


def test_a_variant_of_a_file_inside_of_ours_is_not_loaded(sent, tmp_path):
    record, arrays = parts(sent)
    trap = tmp_path / "trap.py"
    trap.write_text("raise SystemExit('loaded')")

    def with_origin(origin):
        options = quick("contextpool").variant.options | {"base": f"{trap}:Mixer"}
        choice = VariantChoice(name="contextpool", options=options, origin=origin)
        config = record.config.model_copy(update={"variant": choice})
        changed = record.model_copy(update={"config": config, "variant_title": "ContextPool"})
        return verify(rewrite(tmp_path / f"origin {origin}", changed, arrays))

    assert "names no program" in with_origin("").faults[0]
    assert with_origin("trap 1.0").faults == []
    assert "built around a variant that is not of this project" in with_origin("trap 1.0").remarks[0]


def test_a_record_without_its_arrays_is_refused(sent):
    (sent.parents[2] / "arrays" / sent.parent.name / f"{sent.stem}.npz").unlink()
    assert "cannot read" in faults(sent) or "no such file" in faults(sent).lower()


def test_the_command_counts_and_its_exit_code_says_whether_all_passed(sent, tmp_path):
    run = CliRunner().invoke
    done = run(command, ["verify", str(sent)])
    assert (done.exit_code, done.output.count("accepted: ")) == (0, 1), done.output
    assert "1 accepted, 0 refused. No check can tell" in done.output
    edit(sent, lambda body: body["outcome"]["test"].update(correct=600))
    done = run(command, ["verify", str(sent.parents[2])])
    assert done.exit_code == 1
    assert "0 accepted, 1 refused" in done.output
    [row] = json.loads(run(command, ["verify", "--json", str(sent)]).output)
    assert row["run_id"] is None
    assert len(row["refused"]) == 1
    assert run(command, ["verify", str(tmp_path / "nothing")]).exit_code == 2


def test_baselines_that_older_records_lack_are_compared_where_they_are_there(sent, tmp_path):
    record, arrays = parts(sent)
    since = load_file(ROOT / "reports" / "known_baselines.yaml")["listops"][DIGEST]

    def with_baselines(name, more):
        return rewrite(tmp_path / name, record.model_copy(update={"baselines": record.baselines | more}), arrays)

    verdict = verify(with_baselines("true", since))
    assert not [word for word in verdict.faults + verdict.remarks if "baseline" in word]
    forged = with_baselines("forged", {"bag of tokens": 1.0})
    assert faults(forged) == "baseline bag of tokens: 1.0 in the record, known 30.55"


def test_known_data_are_those_of_the_committed_records():
    found = {}
    for path in sorted((EVIDENCE / "results").glob("*/*.json")):
        body = json.loads(path.read_text())["record"]
        data = found.setdefault(body["config"]["task"], {}).setdefault(body["dataset"], {})
        older = data.get("baselines", body["baselines"])  # records from before have fewer
        baselines = {name: value for name, value in older.items() if body["baselines"].get(name) == value}
        options = RunConfig.model_validate(body["config"]).hashed()["data"]
        data |= {"digest": body["data_digest"], "baselines": baselines, "options": options}
        data |= {"test": body["outcome"]["test"]["total"]} if body["outcome"] else {}
    assert found == KNOWN


@pytest.mark.nightly
def test_every_committed_record_is_accepted():
    verdicts = [verify(path) for path in records_below([EVIDENCE])]
    assert len(verdicts) >= 283
    assert [verdict for verdict in verdicts if verdict.faults] == []


def test_every_committed_configuration_is_one_that_a_command_could_give():
    records = [read_record(path) for path in EVIDENCE.glob("results/**/*.json")]
    assert len(records) > 500
    assert [(record.run_id, problems) for record in records if (problems := run_problems(record.config))] == []


def test_a_record_with_another_outcome_beside_it_is_refused(sent):
    other = add_other_outcome(Store(sent.parents[2]), sent.stem)
    assert faults(sent) == f"{other.name}: another outcome of the same run"
    other.write_bytes(sent.read_bytes())
    assert verify(sent).faults == []
