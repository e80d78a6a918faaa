"""The check of records that are sent in: true ones pass, and five kinds of forgery are refused, each for its reason."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from lra.config.profiles import load_profile
from lra.config.resolve import resolve
from lra.config.schema import VariantChoice
from lra.config.yaml_loader import load_file
from lra.measure.model_size import flops_of_example, parameters_of
from lra.results.records import RunRecord, Store, pack_arrays, seal
from lra.tasks import get_task
from reports.cli import command
from reports.verify import records_below, verify
from tests.reports.synthetic import add_run

ROOT = Path(__file__).resolve().parents[2]
EVIDENCE = ROOT / "benchmarks" / "evidence" / "store"
KNOWN = load_file(ROOT / "reports" / "known_data.yaml")
[(LISTOPS, DIGEST)] = KNOWN["listops"].items()


def quick(variant="full", **overrides):
    return resolve(task="listops", variant=variant, profile=load_profile("quick"), seed=0, overrides=overrides)


def true_record(folder, config):
    """Publish a record that is true in all that can be checked."""
    parameters, full = parameters_of(config)
    flops = flops_of_example(config, get_task("listops").info, torch.device("cpu"))
    record = add_run(folder / "made", 512, config=config, dataset=LISTOPS, digest=DIGEST, flops=flops)
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


def test_a_changed_count_is_refused(sent):
    edit(sent, lambda body: body["outcome"]["test"].update(correct=600))
    assert "is not the record that" in faults(sent)
    assert "the bits do not say 600 of 1000" in _with_new_seal(sent)


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
    assert "the bits do not say 512 of 1000" in _with_new_seal(sent)


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


def test_another_variant_under_a_known_name_is_refused(sent, tmp_path):
    record, arrays = parts(sent)

    def renamed(choice):
        config = record.config.model_copy(update={"variant": choice})
        return faults(
            rewrite(tmp_path / choice.name / choice.origin, record.model_copy(update={"config": config}), arrays)
        )

    assert "has 84,332 parameters here" in renamed(quick("contextpool").variant)
    assert "operations here, and" in renamed(quick("linear").variant)  # as many parameters as full attention
    assert "unknown option" in renamed(VariantChoice(name="linear", options=quick("local").variant.options))
    assert "names the program mine 1.0" in renamed(quick().variant.model_copy(update={"origin": "mine 1.0"}))
    assert "names no program" in renamed(VariantChoice(name="best_ever", options={}))


def test_what_cannot_be_checked_is_named(sent, tmp_path):
    record, arrays = parts(sent)
    choice = VariantChoice(name="best_ever", options={}, origin="best 1.0")
    changed = record.model_copy(
        update={"config": record.config.model_copy(update={"variant": choice, "profile": "mine"}), "dataset": "mine"}
    )
    verdict = verify(rewrite(tmp_path / "again", changed, arrays))
    assert verdict.faults == []
    assert [remark.split(",")[0] for remark in verdict.remarks] == [
        "no known data of listops are called 'mine'",
        "best_ever is not a variant of this project: it is best 1.0",
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


def test_known_data_are_those_of_the_committed_records():
    found = {}
    for path in sorted((EVIDENCE / "results").glob("*/*.json")):
        body = json.loads(path.read_text())["record"]
        found.setdefault(body["config"]["task"], {})[body["dataset"]] = body["data_digest"]
    assert found == KNOWN


@pytest.mark.nightly
def test_every_committed_record_is_accepted():
    verdicts = [verify(path) for path in records_below([EVIDENCE])]
    assert len(verdicts) >= 283
    assert [verdict for verdict in verdicts if verdict.faults] == []
