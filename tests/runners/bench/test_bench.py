"""`lra-bench`: its counters on known allocations and real steps, what it stores, what it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lra.config.profiles import load_profile
from lra.errors import StoreError, UsageError
from lra.measure.flops import FlopCount, count_flops
from lra.results.bench_format import is_reference
from lra.results.bench_records import (
    MIB,
    SELF_TEST_BYTES,
    BenchRecord,
    MemoryMeasurement,
    Timing,
    bench_records,
    counters_agree,
    file_stem,
    read_bench_record,
    save_bench_record,
    settings_id,
)
from runners import fresh_python
from runners.bench import measure, memory_process
from runners.bench.memory import PINNED_MALLOC, allocator_peak
from runners.bench.memory_process import MemoryReply
from runners.bench.tables import arena_report, caption, full_report
from runners.bench.workload import Workload, tokens_per_step, workload_config
from runners.cli.bench import command, defaults, parse_lengths

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
KNOWN = """
import json, torch
from runners.bench.memory import allocator_peak, self_test, kernel_peak

def brief():
    torch.ones(64 * 2**18)

def many():  # a block of its own each, with up to a page of 4 KiB around it: 1 MiB in all, half of what may differ
    held = [torch.ones(2**15) for _ in range(256)]

def transient():
    for _ in range(4):
        held = [torch.ones(32 * 2**18) for _ in range(3)]
        del held

def untouched():
    torch.empty(64 * 2**18)

self_test(torch.device("cpu"))
cases = {"self_test": lambda: self_test(torch.device("cpu")), "brief": brief, "many": many, "transient": transient,
         "untouched": untouched}
kernel = {name: kernel_peak(run) for name, run in cases.items()}
print(json.dumps({"kernel": kernel, "allocator": {name: allocator_peak(run) for name, run in cases.items()}}))
"""


@pytest.fixture(scope="module")
def known():
    done = subprocess.run(
        [sys.executable, "-c", KNOWN], cwd=ROOT, env=os.environ | PINNED_MALLOC, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.nightly
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's high-water mark is Linux's")
@pytest.mark.parametrize(("case", "size"), [("self_test", 48), ("brief", 64), ("many", 32), ("transient", 96)])
def test_both_counters_measure_known_allocations(known, case, size):
    assert known["allocator"][case] == size * MIB
    if case == "self_test":
        assert known["kernel"][case] == pytest.approx(size * MIB, rel=0.02)
    assert counters_agree(known["allocator"][case], known["kernel"][case])


@pytest.mark.nightly
def test_the_counters_are_independent(known):
    assert known["allocator"]["untouched"] == 64 * MIB
    assert known["kernel"]["untouched"] < MIB


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A small run of the command: (what it printed, its store, its JSON file)."""
    folder = tmp_path_factory.mktemp("bench")
    printed = invoke(
        folder, "--attn", "local", "--lengths", "512", "--set", "variants.full.backend=reference",
        "--json", str(folder / "all.json"),
    )  # fmt: skip
    return printed, folder / "store", folder / "all.json"


def invoke(folder, *arguments, exit_code=0):
    before = Path.cwd()
    os.chdir(ROOT)
    try:
        done = CliRunner().invoke(
            command,
            [*arguments, "--profile", "quick", "--batch", "4", "--threads", "1", "--steps", "6", "--seconds", "0",
             "--device", "cpu", "--quiet", "--store", str(folder / "store")],
            catch_exceptions=False,
        )  # fmt: skip
    finally:
        os.chdir(before)
    assert done.exit_code == exit_code, done.output
    return done.output


@pytest.mark.nightly
def test_the_counters_agree_on_a_real_training_step(bench):
    records = {record.variant: record for record in bench_records(bench[1])}
    assert sorted(records) == ["full", "local"]
    for record in records.values():
        memory = record.memory
        assert memory.problem == ""
        assert len(memory.step_bytes) == len(memory.check_bytes) == 3
        assert counters_agree(memory.step, sorted(memory.check_bytes)[1])
        assert memory.self_test_bytes == SELF_TEST_BYTES
    # All scores of two layers, and the weights made of them, are kept for backward.
    assert records["full"].memory.step > 2 * 2 * 4 * 4 * 512 * 512 * 4
    assert records["full"].memory.step > 2 * records["local"].memory.step


@pytest.mark.nightly
def test_a_record_has_all_that_the_table_shows(bench):
    printed, store, json_file = bench
    records = list(bench_records(store))
    assert len(records) == 2
    for record in records:
        assert (record.status, record.length, record.batch_size, record.threads) == ("ok", 512, 4, 1)
        assert len(record.timing.seconds) == 6
        assert record.timing.warmup_steps >= 5
        assert record.flops.total > 0
        assert record.parameters > 0
        assert {"load_average", "cpu", "threads", "torch", "frequency_governor"} <= record.environment.keys()
        assert read_bench_record(store / "bench" / f"{file_stem(record)}.json") == record
    full, local = sorted(records, key=lambda record: record.variant)
    assert full.speed_ratio is local.speed_ratio is None  # its full attention has an option
    assert {entry["settings_id"] for entry in json.loads(json_file.read_text())} == {r.settings_id for r in records}
    assert "Both counters agree within 2 MiB or 3 % in 2 of 2 measurements." in printed
    assert "batch 4 on this one device" in printed


@pytest.mark.nightly
def test_out_of_memory_is_a_value(tmp_path):
    arguments = ("--attn", "full", "--lengths", "512", "--set", "variants.full.backend=reference")
    printed = invoke(tmp_path, *arguments, "--memory-limit", "0.05")
    [record] = bench_records(tmp_path / "store")
    assert record.status == "oom"
    assert record.timing is record.memory is record.speed_ratio is None
    # The tensor that does not fit: four heads of 512 x 512 scores for four sequences, 16 MiB, not a module to import.
    assert "Full attention [backend=reference] at 512: oom: " in printed
    assert "you tried to allocate 16777216 bytes" in printed


@pytest.mark.nightly
def test_a_model_that_breaks_is_a_failure_with_its_reason(tmp_path):
    printed = invoke(tmp_path, "--attn", "full", "--lengths", "64", "--set", "model.embedding_rows=3", exit_code=4)
    [record] = bench_records(tmp_path / "store")
    assert (record.status, record.timing) == ("failed", None)
    assert "Full attention at 64: failed: exit status 1: IndexError: index out of range in self" in printed


def test_memory_is_measured_with_the_code_of_this_process(monkeypatch):
    called = []
    monkeypatch.setattr(memory_process.subprocess, "run", lambda command, **options: called.append((command, options)))
    with pytest.raises(AttributeError):
        memory_process.measure_in_subprocess(memory_process.MemoryRequest.model_construct())  # of which nothing is read
    [(command, options)] = called
    assert command == fresh_python.command(memory_process.__name__)
    assert options["env"]["PYTHONPATH"] == fresh_python.environment()["PYTHONPATH"]


def config(variant="full", length=32, task="text", **settings):
    profile = load_profile("quick" if task == "text" else "modern")
    return workload_config(task=task, variant=variant, profile=profile, length=length, batch_size=2, overrides=settings)


def test_the_step_sees_random_tokens_and_no_padding():
    work = Workload(config(), CPU)
    assert work.tokens.shape == (2, 32)
    assert int(work.tokens.min()) >= 1
    assert len(work.tokens.unique()) > 20
    assert tokens_per_step(work.config) == 64
    assert tokens_per_step(config(task="retrieval")) == 128
    assert Workload(config(task="retrieval"), CPU).tokens.shape == (2, 2, 32)


def test_a_step_is_forward_backward_and_optimiser_and_counters_do_not_change_it():
    plain, metered = Workload(config("local"), CPU), Workload(config("local"), CPU)
    before = [p.detach().clone() for p in plain.model.parameters()]
    for _ in range(4):
        plain.step()
    count_flops(metered.step)
    allocator_peak(metered.step)
    metered.step()
    count_flops(metered.step)
    changed = [not torch.equal(old, new) for old, new in zip(before, plain.model.parameters(), strict=True)]
    assert sum(changed) == len(changed) > 10
    for one, other in zip(plain.model.parameters(), metered.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(p.grad is not None for p in plain.model.parameters())
    plain.clear()
    assert all(p.grad is None for p in plain.model.parameters())
    # Weights, two moments of each, positions, and the steps of the optimiser.
    assert plain.state_bytes() > 3 * sum(p.numel() * 4 for p in before)


def test_an_option_that_is_the_default_at_another_length_is_kept():
    """The default chunk of Mega is the whole length: 512 in the profile, which is not what is measured."""
    kept, whole = (config("mega", 2048, **{"variants.mega.chunk": chunk}) for chunk in (512, 2048))
    assert (kept.variant.options["chunk"], whole.variant.options["chunk"]) == (512, None)
    assert whole == config("mega", 2048)
    assert config("mega", 512, **{"variants.mega.chunk": 512}).variant.options["chunk"] is None


def test_settings_that_the_length_decides_on_and_foreign_lengths_are_refused():
    with pytest.raises(UsageError, match="--lengths"):
        config(**{"model.max_length": 64})
    with pytest.raises(UsageError, match="32 x 32"):
        config(task="image", length=512)
    assert config(task="image", length=1024).model.max_length == 1024
    for text in ("1024,", "1k", "0", ""):
        with pytest.raises(UsageError, match="is not a length"):
            parse_lengths(text)
    assert parse_lengths("2048, 512,2048") == [512, 2048]


@pytest.mark.parametrize(
    "path",
    ["train.denoise", "train.crop", "train.augment", "train.accumulation", "train.steps", "train.schedule",
     "pretrain.share"],
)  # fmt: skip
def test_settings_that_the_step_does_not_have_are_refused(path):
    with pytest.raises(UsageError, match=f"--set {path}: the step that is measured does not have it; leave it out"):
        config(**{path: 1})


def test_a_profile_that_denoises_is_measured_without_and_says_so():
    found = workload_config(
        task="text", variant="full", profile=load_profile("rotary"), length=64, batch_size=2, overrides={}
    )
    assert (found.train.denoise, found.train.crop, found.train.augment, found.pretrain) == (0.0, None, False, None)
    assert caption([record("full", 64, config=found)]).startswith("text, profile rotary [crop=None, denoise=0.0]: ")


@pytest.mark.parametrize(
    ("settings", "shown"),
    [({}, "quick"), ({"model.causal": True, "model.norm": "rms"}, "quick [causal=True, norm=rms]"),
     ({"train.compile": True}, "quick [compile=True, padding=coarse]")],
    ids=["plain", "causal", "compiled"],
)  # fmt: skip
def test_the_caption_names_settings_that_are_not_those_of_the_profile(settings, shown):
    measured = record("full", 32, config=config(**settings))
    assert caption([measured]).startswith(f"text, profile {shown}: 2 layers, ")


def measurement(step=100 * MIB, check=100 * MIB, self_test=SELF_TEST_BYTES):
    return MemoryMeasurement(
        counter="one", step_bytes=[step] * 3, check_counter="two", check_bytes=[check] * 3, self_test_bytes=self_test,
        self_test_check_bytes=self_test, state_bytes=MIB,
    )  # fmt: skip


def test_a_measurement_with_a_disagreement_or_a_failed_self_test_is_flagged():
    assert measurement().problem == ""
    assert measurement(check=103 * MIB).problem == ""
    assert "disagree" in measurement(check=104 * MIB).problem
    assert "disagree" in measurement(check=96 * MIB).problem
    assert measurement(step=MIB, check=3 * MIB).problem == ""
    assert "disagree" in measurement(step=MIB, check=3 * MIB + 1).problem
    assert "known allocation" in measurement(self_test=SELF_TEST_BYTES + MIB).problem
    unchecked = measurement().model_copy(update={"check_bytes": []})
    assert "no second counter" in unchecked.problem


def record(variant, length, **changes):
    base = BenchRecord(
        settings_id=settings_id(config(variant, length), device="some processor", threads=1, memory_limit=None),
        variant_title=variant, status="ok", detail="",
        config=config(variant, length), device_type="cpu",
        threads=1, parameters=5, backend="torch", timing=Timing(seconds=[0.5, 0.5, 0.5], warmup_steps=5),
        speed_ratio=2.0, memory=measurement(), measured_at="2026-01-01T00:00:00+00:00",
        flops=FlopCount(total=10**9, by_operator={}, uncounted={"sort": 1}, uncounted_pointwise={}),
        environment={"cpu": "some processor", "device": "cpu", "load_average": 0.5, "torch": "2"},
    )  # fmt: skip
    return base.model_copy(update=changes)


@pytest.mark.parametrize("options", [{}, {"variants.full.backend": "reference"}])
def test_ratios_refer_to_full_attention_with_its_default_options_alone(options, monkeypatch):
    """A stored ratio does not say with which options full attention was measured, so with any there is none."""
    plan = measure.BenchPlan(
        variants=["full", "local"], lengths=[64], task="listops", profile=load_profile("quick"), device=CPU,
        threads=torch.get_num_threads(), batch=4, overrides=options,
    )  # fmt: skip
    reply = MemoryReply(status="ok", detail="", parameters=5, backend="torch", memory=measurement(), flops=None)
    monkeypatch.setattr(measure, "measure_in_subprocess", lambda _: reply)
    monkeypatch.setattr(measure, "time_variants", lambda *_: {"full": [1.0, 1.0], "local": [0.5, 0.5]})
    found = measure.measure_length(plan, plan.configs()[64], lambda _: None)
    assert [each.speed_ratio for each in found] == ([None, None] if options else [1.0, 2.0])
    printed = arena_report(found)
    assert ("| Full attention [backend=reference] |" in printed) == bool(options)
    assert ("(1.00)" in printed) == (not options)


@pytest.mark.parametrize(("profile", "task"), [("spt", "listops"), ("rotary", "text"), ("quick", "text")])
def test_full_attention_is_the_reference_under_every_profile(profile, task):
    """A measured step has neither the pretraining of a profile nor what it does to its inputs."""
    settings = {"overrides": {}, "length": 64, "batch_size": 2, "task": task, "profile": load_profile(profile)}
    assert is_reference(workload_config(variant="full", **settings))
    assert not is_reference(workload_config(variant="linear", **settings))
    for way in ({"train.precision": "bfloat16"}, {"train.compile": True}):
        assert is_reference(workload_config(variant="full", **settings | {"overrides": way}))


def test_a_variant_that_is_edited_while_it_is_measured_has_no_measurement(tmp_path, monkeypatch):
    """Its memory would be that of the new code, its times those of the old."""
    file = tmp_path / "mine_bench.py"
    file.write_text("import torch\n\nclass Mine(torch.nn.Identity):\n    K = 1\n")
    plan = measure.BenchPlan(
        variants=["full", f"{file}:Mine"], lengths=[64], task="text", profile=load_profile("quick"), device=CPU,
        threads=1, batch=1,
    )  # fmt: skip
    configs = plan.configs()[64]
    reply = MemoryReply(status="ok", parameters=1)
    monkeypatch.setattr(measure, "measure_in_subprocess", lambda _: reply)
    monkeypatch.setattr(measure, "time_variants", lambda *_: {})
    measure.measure_length(plan, configs, lambda _: None)
    file.write_text(file.read_text().replace("1", "2"))
    with pytest.raises(UsageError, match=r"mine_bench\.py has changed since it was imported or read"):
        measure.measure_length(plan, configs, lambda _: None)


LATE = """
import pathlib
import torch

class Late(torch.nn.Identity):
    def forward(self, x):
        return x * (len(pathlib.Path("scale.txt").read_text()) if x.shape[1] > 16 else 1)
"""


def test_a_variant_that_reads_only_at_the_measured_length_has_no_measurement(tmp_path, monkeypatch):
    """Else two programs had one id, and one measurement would take the place of the other."""
    monkeypatch.chdir(tmp_path)
    Path("late_bench.py").write_text(LATE)
    Path("scale.txt").write_text("1")
    plan = measure.BenchPlan(
        variants=["full", "late_bench.py:Late"], lengths=[64], task="text", profile=load_profile("quick"), device=CPU,
        threads=1, batch=1,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"scale\.txt was read now, but not in the trial"):
        measure.time_variants(plan.configs()[64], plan)


def test_the_arena_layout_is_that_of_table_2():
    oom = {"status": "oom", "detail": "no room", "timing": None, "speed_ratio": None, "memory": None, "flops": None}
    noisy = Timing(seconds=[0.1, 0.5, 0.9], warmup_steps=5)
    printed = arena_report([
        record("full", 1024, speed_ratio=1.0), record("full", 2048, **oom),
        record("local", 1024, memory=measurement(check=50 * MIB)),
        record("local", 2048, timing=noisy, speed_ratio=None),
    ])  # fmt: skip
    table = {
        cells[0]: cells[1:]
        for line in printed.splitlines()
        if line.startswith("|") and len(cells := [cell.strip() for cell in line.strip("|").split("|")]) == 5
    }
    assert table["model"] == ["steps/s 1K", "steps/s 2K", "GB 1K", "GB 2K"]
    assert table["full"] == ["2 (1)", "OOM", "0.106 (1.00)", "OOM"]
    assert table["local"] == ["2 (2)", "2~", "!", "0.106"]
    assert "~ noisy" in printed
    assert "! local at 1024: memory not to be quoted: the counters disagree: 100.0 MiB and 50.0 MiB." in printed
    assert "full at 2048: oom: no room" in printed
    assert "in 2 of 3 measurements" in printed


@pytest.mark.parametrize("options", [{}, {"window": 4}])
def test_two_files_of_one_name_have_a_row_each(options, monkeypatch):
    """Two versions of one's own file: the later one stood for both. An option of one does not tell which it is."""
    monkeypatch.setattr("lra.config.labels.default_options", lambda *_: {"variant.window": "8"})
    ending = " [window=4]" if options else ""

    def own(file, length, **values):
        plain = config("local", length)
        chosen = {"name": f"{file}:Mine", "options": options if file == "mine.py" else {}}
        choice = plain.variant.model_copy(update=chosen)
        return record(
            "local", length, config=plain.model_copy(update={"variant": choice}), variant_title="Mine", **values
        )

    oom = {"status": "oom", "detail": "no room", "timing": None, "speed_ratio": None, "memory": None, "flops": None}
    found = [record("full", length, speed_ratio=1.0) for length in (1024, 2048)]
    found += [own("mine.py", length, speed_ratio=1.5) for length in (1024, 2048)]
    found += [own("old/mine.py", 1024, speed_ratio=0.5), own("old/mine.py", 2048, **oom)]
    printed = [line.split("|") for line in arena_report(found).splitlines()]
    rows = {cells[1].strip(): cells[2].strip() for cells in printed if len(cells) > 5}
    assert rows[f"Mine (mine.py:Mine){ending}"] == "2 (1.5)"
    assert rows["Mine (old/mine.py:Mine)"] == "2 (0.5)"
    report = full_report(found)
    assert "Mine (old/mine.py:Mine) at 2048: oom: no room" in report
    printed = [[cell.strip() for cell in line.split("|")] for line in report.splitlines()]
    ahead = {cells[1]: cells[2] for cells in printed if len(cells) == 5}
    assert ahead[f"Mine (mine.py:Mine){ending}"] == "< 1024"
    assert ahead["Mine (old/mine.py:Mine)"] == "> 2048"


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")  # of the compiler, about what it looks at
def test_compiled_steps_are_measured(tmp_path):
    """With the real compiler, which refuses to work where operators are counted."""
    invoke(tmp_path, "--attn", "linear", "--lengths", "64", "--set", "train.compile=true")
    found = list(bench_records(tmp_path / "store"))
    assert [each.status for each in found] == ["ok", "ok"], [each.detail for each in found]
    assert all(each.flops is not None and each.flops.total > 0 for each in found)


def test_a_variant_of_a_file_in_another_folder_is_measured_and_shown(tmp_path, monkeypatch):
    (tmp_path / "mine_shown.py").write_text("import torch\n\nclass Mine(torch.nn.Identity):\n    pass\n")

    def measured(plan, configs, say):
        return [record("local", each.model.max_length, config=each, variant_title="Mine") for each in configs]

    monkeypatch.setattr(measure, "measure_length", measured)
    assert "| Mine " in invoke(tmp_path, "--attn", f"{tmp_path}/mine_shown.py:Mine", "--lengths", "64,32")


def test_the_long_table_has_crossover_lengths_and_what_was_not_counted():
    only_local = FlopCount(total=10**8, by_operator={}, uncounted={"sort": 1, "_fft_r2c": 2}, uncounted_pointwise={})
    printed = full_report([
        record("full", 1024, speed_ratio=1.0), record("full", 2048, speed_ratio=1.0),
        record("local", 1024, speed_ratio=0.5, flops=only_local), record("local", 2048, speed_ratio=2.0),
    ])  # fmt: skip
    assert "| local     |     1448 |        > 2048 |" in printed
    assert "  all: sort\n" in printed
    assert "  local: _fft_r2c" in printed


def test_there_is_no_ratio_to_a_step_of_no_bytes():
    printed = full_report([record("full", 1024, memory=measurement(step=0, check=0)), record("local", 1024)])
    row = next(line.split("|") for line in printed.splitlines() if line.startswith("| local"))
    assert row[8].strip() == "-"
    assert any(line.split() == ["|", "local", "|", "<", "1024", "|", "-", "|"] for line in printed.splitlines())


def test_a_measurement_replaces_that_of_its_own_environment_alone(tmp_path):
    one = record("full", 64)
    for torch_version in ("1.0", "1.0", "2.0"):
        environment = one.environment | {"torch": torch_version}
        save_bench_record(tmp_path, one.model_copy(update={"environment": environment}))
    assert sorted(str(each.environment["torch"]) for each in bench_records(tmp_path)) == ["1.0", "2.0"]


def test_a_damaged_or_newer_record_is_refused(tmp_path):
    path = save_bench_record(tmp_path, record("full", 64))
    assert read_bench_record(path) == record("full", 64)
    path.write_text(path.read_text().replace("0.5", "0.4"))
    with pytest.raises(StoreError, match="checksum"):
        read_bench_record(path)
    save_bench_record(tmp_path, record("full", 64, schema_version=99))
    with pytest.raises(StoreError, match="newer"):
        read_bench_record(path)
    for change in (
        {"threads": 2}, {"device_type": "cuda"}, {"memory_limit": 1}, {"config": config("local", 64)}, {"timing": None},
        {"settings_id": "f" * 20}, {"measured_at": "late"}, {"speed_ratio": -1.0}, {"environment": {"cpu": "another"}},
    ):  # fmt: skip
        saved = save_bench_record(tmp_path, record("full", 64, **change))
        if saved != path:
            saved.replace(path)
        with pytest.raises(StoreError, match=str(path)):
            read_bench_record(path)
    (tmp_path / "bench" / "foreign.json").write_text("[]")
    found = list(bench_records(tmp_path))
    assert len(found) == 2
    assert all(isinstance(entry, StoreError) for entry in found)


def test_defaults_follow_preset_device_and_quick():
    assert defaults(preset="lra", quick=False, cuda=False).profile == "official"
    assert defaults(preset=None, quick=False, cuda=True).profile == "nystromformer"
    assert defaults(preset="lra", quick=True, cuda=True).profile == "quick"
    arena = defaults(preset="lra", quick=False, cuda=True)
    assert (arena.lengths, arena.batch) == ("1024,2048,3072,4096", 32)


def test_a_task_by_the_name_of_its_data_is_that_task(tmp_path, monkeypatch):
    asked = []

    def stop(plan):
        asked.append(plan.task)
        raise UsageError("far enough")

    monkeypatch.setattr(measure.BenchPlan, "configs", stop)
    invoke(tmp_path, "--task", "IMDB", exit_code=2)
    assert asked == ["text"]


def test_batch_and_tokens_exclude_each_other():
    done = CliRunner().invoke(command, ["--batch", "2", "--tokens", "64"])
    assert done.exit_code == 2
    assert "exclude each other" in done.output
