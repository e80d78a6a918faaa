"""`lra-sweep` and its launchers with real processes: crashes, a killed driver, a signal, Ray and Slurm's stand-in."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from lra.config.suites import expand, load_suite
from lra.results.records import Store
from runners.cli.run import command as lra_run
from runners.cli.sweep import command
from runners.sweep.launchers import process as process_module
from runners.sweep.launchers.base import Job
from runners.sweep.launchers.local import LocalLauncher, cpu_slots
from runners.sweep.launchers.process import run_job
from tests.runners.tiny_runs import TINY, tiny, tiny_data

ROOT = Path(__file__).resolve().parents[3]
SWEEP = [sys.executable, "-m", "runners.cli.sweep"]
RUN = [sys.executable, "-m", "runners.cli.run"]
FAULTY = """
import os, signal
from attention_zoo import register_variant, Traits
from attention_zoo.variants.full import FullAttention, FullConfig


@register_variant("faulty", traits=Traits(memory="quadratic", complexity="O(n^2)"), paper="none")
class Faulty(FullAttention):
    config: FullConfig

    def __init__(self, config: FullConfig, dims) -> None:
        super().__init__(config, dims)

    def forward(self, x, mask=None):
        os.kill(os.getpid(), signal.SIGSEGV)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


def write_suite(folder, **values):
    base = {
        "name": "mine", "title": "", "profile": "quick", "track": "open", "tasks": ["listops"], "seeds": [0, 1],
        "variants": {"full": {}}, "settings": TINY,
    }  # fmt: skip
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(base | values))
    return path


def sweep(verb, suite, home, store, *more):
    return [*SWEEP, verb, str(suite), "--store", str(store), "--data-dir", str(home), *more]


def call(arguments, **settings):
    return subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=250, **settings)


def outcomes(store):
    return {record.run_id: record.outcome for record in Store(store).records()}


def notes(store):
    """Status words of all attempts, by run."""
    found = {}
    for path in sorted(Path(store).glob("attempts/*/*.json")):
        found.setdefault(path.parent.name, []).append(json.loads(path.read_text())["status"])
    return found


@pytest.fixture(scope="module")
def clean(home, tmp_path_factory):
    """The store of an undisturbed sweep over one seed, and what it printed."""
    folder = tmp_path_factory.mktemp("clean")
    suite = write_suite(folder, seeds=[0])
    arguments = sweep("run", suite, home, folder / "store", "--device", "cpu", "--slots", "1", "--threads", "1")
    done = CliRunner().invoke(command, arguments[len(SWEEP) :], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return folder / "store", done


def test_a_sweep_prints_a_line_per_run_and_no_bars_into_a_pipe(clean):
    store, done = clean
    assert len(outcomes(store)) == 1
    lines = [line for line in done.stderr.splitlines() if ": ok: " in line]
    assert [line.split("] ")[1].split(":")[0] for line in lines] == ["listops full, seed 0"]
    assert "\r" not in done.stderr


@pytest.fixture(scope="module")
def clean_pair(home, tmp_path_factory):
    """The outcomes of an undisturbed sweep over two seeds, two at a time."""
    folder = tmp_path_factory.mktemp("pair")
    more = ("--device", "cpu", "--slots", "2", "--threads", "1")
    done = call(sweep("run", write_suite(folder), home, folder / "store", *more))
    assert done.returncode == 0, done.stderr
    assert len(outcomes(folder / "store")) == 2
    return outcomes(folder / "store")


@pytest.mark.nightly
def test_a_crashing_variant_costs_nobody_else_and_ends_with_5(clean, home, tmp_path):
    site = tmp_path / "site"
    info = site / "faulty-1.dist-info"
    info.mkdir(parents=True)
    (site / "faulty_attention.py").write_text(FAULTY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[attention_zoo.variants]\nfaulty = faulty_attention\n")
    environment = os.environ | {"PYTHONPATH": str(site)}
    suite = write_suite(tmp_path, variants={"faulty": {}, "full": {}}, seeds=[0])
    arguments = sweep("run", suite, home, tmp_path / "store", "--device", "cpu", "--slots", "2", "--threads", "1")
    done = call(arguments, env=environment)
    assert done.returncode == 5, done.stderr
    assert sorted(notes(tmp_path / "store").values()) == [["failed"] * 3, ["ok"]]
    assert "listops faulty, seed 0: failed: killed by SIGSEGV" in done.stderr
    assert outcomes(tmp_path / "store").items() <= outcomes(clean[0]).items()
    log = next(path for path in tmp_path.glob("store/logs/*.log") if "Segmentation fault" in path.read_text())
    assert 'faulty_attention.py", line' in log.read_text()  # where it crashed


@pytest.fixture
def invoke(clean, home):
    """Calls a verb on the finished sweep, in this process."""

    def call_verb(verb, *more):
        suite, store = clean[0].parent / "mine.yaml", clean[0]
        arguments = [verb, str(suite), "--store", str(store), "--data-dir", str(home), *more]
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    return call_verb


def test_plan_status_retry_and_gc_of_a_finished_sweep(invoke, clean):
    before = outcomes(clean[0])
    plan, parameters = invoke("plan"), f"{next(Store(clean[0]).records()).cost.parameters:,}"
    assert plan.splitlines()[2].split()[4:] == ["ok", "6", parameters, "1.000"]
    assert "1 runs: 1 ok" in plan
    assert "6/6" in invoke("status")
    assert "0 runs will be tried again" in invoke("retry")
    assert list(clean[0].glob("checkpoints/*/step-*.pt"))
    assert not invoke("gc").startswith("0.0 MiB")
    assert not list(clean[0].glob("checkpoints/*/step-*.pt"))
    assert outcomes(clean[0]) == before


@pytest.mark.parametrize(("verb", "notes"), [("plan", 0), ("status", 1), ("retry", 1), ("gc", 1)])
def test_looking_at_a_store_that_is_not_there_does_not_make_it(home, tmp_path, verb, notes):
    tiny_data(home)  # without data a run has no id, and nothing is looked up
    suite = write_suite(tmp_path)
    done = CliRunner().invoke(command, [verb, str(suite), "--store", str(tmp_path / "store"), "--data-dir", str(home)])
    assert done.exit_code == 0, done.output
    assert done.stderr == f"There is no store at {tmp_path / 'store'} yet.\n" * notes
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


def test_runs_whose_data_is_gone_when_they_start_are_not_left_out(tmp_path, monkeypatch):
    """As `lra-data remove` does while data of another task is generated."""

    def prepare_and_lose(config, home, *, progress):
        shutil.rmtree(tiny_data(home).path)

    monkeypatch.setattr("runners.train.prepare_data.prepare", prepare_and_lose)
    suite, home = write_suite(tmp_path), tmp_path / "home"
    arguments = ["run", str(suite), "--store", str(tmp_path / "store"), "--data-dir", str(home)]
    done = CliRunner().invoke(command, arguments)
    assert (done.exit_code, done.stdout) == (3, "")
    assert done.stderr == (
        "Error: the data of listops has been removed or changed since it was prepared; start again\n"
    )


def test_a_sweep_whose_record_is_gone_at_the_end_does_not_end_well(home, tmp_path, monkeypatch):
    monkeypatch.setattr("runners.sweep.driver.Sweep.run", lambda self: True)
    arguments = ["run", str(write_suite(tmp_path)), "--store", str(tmp_path / "store"), "--data-dir", str(home)]
    tiny_data(home)
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 5
    assert done.stderr.endswith(": 2 not run\n")


@pytest.mark.parametrize("content", [b"{", b'{"status": "unheard of", "detail": ""}'])
def test_status_names_a_note_that_it_cannot_read(home, tmp_path, content):
    data, suite, store = tiny_data(home), write_suite(tmp_path, seeds=[0, 1]), Store(tmp_path / "store")
    run_ids = [config.run_id(data.digest) for config in expand(load_suite(str(suite)))]
    for run_id in run_ids:
        store.log_attempt(run_id, "oom", "as it says", {})
    [note] = (store.root / "attempts" / run_ids[1]).iterdir()
    note.write_bytes(content)
    for more in ([], ["--json"]):
        words = ["status", str(suite), "--store", str(store.root), "--data-dir", str(home), *more]
        done = CliRunner().invoke(command, words)
        assert done.exit_code == 0, done.output
        [line] = done.stderr.splitlines()
        assert line.startswith(str(note))
        assert line.endswith("; passed over")
    assert [row["status"] for row in json.loads(done.stdout)] == ["oom", "not run"]


@pytest.mark.nightly
def test_plan_probes_what_is_not_done(home, tmp_path):
    suite = write_suite(tmp_path, seeds=[0, 1])
    folders = ["--store", str(tmp_path / "store"), "--data-dir", str(home)]
    done = CliRunner().invoke(
        command, ["plan", str(suite), *folders, "--probe", "--slots", "2", "--threads", "1", "--device", "cpu"]
    )
    assert done.exit_code == 0, done.output
    assert "minutes" in done.output.splitlines()[0]
    assert [len(line.split()) for line in done.output.splitlines()[2:4]] == [12, 12]  # a number in each column
    assert (
        "Left: 0 minutes in all on cpu, evaluations included, with 2 runs at a time and 1 threads each." in done.output
    )
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("option", ["--launcher", "--engine"])
def test_the_former_name_of_the_launcher_option_still_works(option, tmp_path):
    done = CliRunner().invoke(command, ["run", "quick", option, "local", "--slurm", "a=b", "--store", str(tmp_path)])
    assert done.exit_code == 2
    assert "--slurm needs --launcher slurm, not local" in done.output
    assert "--engine" not in CliRunner().invoke(command, ["run", "--help"]).output


@pytest.mark.nightly
def test_a_killed_driver_is_started_again_and_finishes_the_rest(clean_pair, home, tmp_path):
    suite = write_suite(tmp_path)
    arguments = sweep("run", suite, home, tmp_path / "store", "--device", "cpu", "--slots", "1", "--threads", "1")
    driver = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(tmp_path.glob("store/logs/*.log")))
    driver.kill()
    driver.wait()
    done = call(arguments)
    assert done.returncode == 0, done.stderr
    assert outcomes(tmp_path / "store") == clean_pair
    assert sorted(notes(tmp_path / "store").values()) == [["ok"], ["ok"]]  # nothing twice


@pytest.mark.nightly
def test_a_signal_to_the_driver_saves_the_runs_and_ends_with_75(home, tmp_path):
    suite = write_suite(tmp_path, seeds=[0], settings=TINY | {"train.steps": 10**6, "train.eval_every": 10**6})
    more = ("--device", "cpu", "--slots", "1", "--threads", "1", "--checkpoint-seconds", "0.1")
    driver = subprocess.Popen(
        sweep("run", suite, home, tmp_path / "store", *more), cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: list(tmp_path.glob("store/checkpoints/*/step-*.pt")))
    verb = ["status", str(suite), "--store", str(tmp_path / "store"), "--data-dir", str(home)]
    assert "1 runs: 1 running" in CliRunner().invoke(command, verb).stdout
    driver.send_signal(signal.SIGTERM)
    _, stderr = driver.communicate(timeout=60)
    assert driver.returncode == 75, stderr
    assert "preempted" in stderr
    assert list(notes(tmp_path / "store").values()) == [["preempted"]]


def test_a_run_repeats_from_its_record_with_the_same_bits(clean, home, tmp_path):
    path = next(clean[0].glob("results/*/*.json"))
    arguments = ["--store", str(tmp_path / "store"), "--data-dir", str(home), "--device", "cpu", "--threads", "1"]
    done = CliRunner().invoke(lra_run, ["--config", str(path), *arguments, "--quiet"])
    assert done.exit_code == 0, done.stderr
    again = outcomes(tmp_path / "store")
    assert len(again) == 1
    assert again.items() <= outcomes(clean[0]).items()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values["variant"]["options"].clear(), "names every option"),
        (lambda values: values["variant"].update(name="ful"), "did you mean 'full'"),
        (lambda values: values["variant"].update(origin="other 1"), "is '' here, not 'other 1'"),
        (lambda values: values["train"].update(stepz=1), "train.stepz: unknown key; did you mean 'steps'"),
        (lambda values: values.clear(), "neither a configuration nor a record"),
        (lambda values: values.pop("seed"), "seed: missing"),
        (lambda values: values["model"].pop("qkv_bias"), "not a complete configuration of this version"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_refused(change, message, tmp_path):
    from lra.errors import UsageError
    from runners.train.plan import read_config

    path = tmp_path / "run.json"
    path.write_text(tiny().model_dump_json())
    assert read_config(str(path)) == (tiny(), None)
    values = tiny().model_dump()
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(UsageError, match=message):
        read_config(str(path))


def test_a_configuration_goes_without_the_options_of_a_grid():
    done = CliRunner().invoke(lra_run, ["--config", "x.json", "--attn", "full"])
    assert done.exit_code == 2
    assert "--config is a whole" in done.stderr
    assert call(RUN).returncode == 2


STAND_IN = """
import faulthandler, os, signal, sys, time
what = sys.stdin.read()
print("got", what, sys.argv[1:], os.environ.get("CUDA_VISIBLE_DEVICES"), flush=True)
if what == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
if what == "polite":
    signal.signal(signal.SIGTERM, lambda *rest: sys.exit(75))
if what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if what == "chatty":
    for _ in range(40):
        print("x" * 2**20, flush=True)
        time.sleep(0.02)
    print("the last line")
if what in ("polite", "deaf"):
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Jobs that run a small module instead of a run."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(process_module, "MODULE", "stand_in")
    monkeypatch.setattr(process_module, "DUMP_SECONDS", 20.0)

    def job(what, **settings):
        return Job(key=what, config=what, arguments=("--x",), log=tmp_path / "logs" / what, **settings)

    return job


def wait_for(condition):
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_job_takes_the_code_of_this_process_and_not_that_of_the_working_folder(stand_in, tmp_path, monkeypatch):
    other = tmp_path / "a clone of another commit"
    other.mkdir()
    (other / "stand_in.py").write_text("print('another program')")
    monkeypatch.chdir(other)
    assert run_job(stand_in("hello"), {}, lambda: False).detail.startswith("got hello")


def test_a_process_gets_its_configuration_and_leaves_its_output(stand_in):
    ended = run_job(stand_in("hello"), {"CUDA_VISIBLE_DEVICES": "3"}, lambda: False)
    assert (ended.returncode, ended.timed_out) == (0, False)
    assert ended.detail == "got hello ['--config', '-', '--x'] 3"
    again = run_job(stand_in("hello"), {"CUDA_VISIBLE_DEVICES": ""}, lambda: False)
    assert again.detail.count("got hello") == 1
    logs = sorted(stand_in("hello").log.parent.glob("*.log"))
    assert [log.name for log in logs] == ["hello-1.log", "hello-2.log"]  # one for each process
    assert [log.read_text().count("got hello") for log in logs] == [1, 1]


def test_a_process_that_prints_without_end_fills_no_disk(stand_in, monkeypatch):
    monkeypatch.setattr(process_module, "LOG_BYTES", 2**20)
    monkeypatch.setattr(process_module, "POLL_SECONDS", 0.01)
    ended = run_job(stand_in("chatty"), {}, lambda: False)
    log = stand_in("chatty").log.with_name("chatty-1.log")
    assert log.stat().st_size < 2**23  # of the 40 MiB that it printed
    assert log.read_text().startswith("(earlier output was dropped)\n")
    assert ended.detail.endswith("the last line")


def test_a_crash_shows_as_its_signal_with_the_stack(stand_in):
    ended = run_job(stand_in("crash"), {}, lambda: False)
    assert ended.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in ended.detail
    assert "stand_in.py" in ended.detail


def ready(job):
    return any("ready" in log.read_text() for log in job.log.parent.glob(f"{job.log.name}-*.log"))


def test_a_stop_is_polite_and_a_hanging_process_is_killed_with_its_stack(stand_in):
    polite = stand_in("polite")
    assert run_job(polite, {}, lambda: ready(polite)).returncode == 75
    deaf = stand_in("deaf", grace_seconds=0.2)
    ended = run_job(deaf, {}, lambda: ready(deaf))
    assert ended.returncode == -signal.SIGABRT
    assert "line 18 in <module>" in ended.detail  # where it hung


def test_a_timeout_ends_a_process(stand_in):
    ended = run_job(stand_in("deaf", timeout_seconds=2.0, grace_seconds=0.1), {}, lambda: False)
    assert ended.timed_out
    assert ended.returncode in (-signal.SIGABRT, -signal.SIGTERM)  # the latter if it never came to ignore it


def test_the_local_launcher_gives_each_process_its_own_slot(stand_in):
    with LocalLauncher([{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]) as launcher:
        launcher.start([stand_in("a"), stand_in("b")])
        assert launcher.free_slots() == 0
        ended = []
        wait_for(lambda: ended.extend(launcher.poll()) or len(ended) == 2)
        assert launcher.free_slots() == 2
        assert sorted(end.detail.split()[-1] for end in ended) == ["0", "1"]
        launcher.start([stand_in("polite")])
        wait_for(lambda: ready(stand_in("polite")))
    assert [end.returncode for end in launcher.poll()] == [75]


def test_a_log_that_cannot_be_written_is_a_lost_process(stand_in, tmp_path):
    (tmp_path / "logs").write_text("a file where the folder should be")
    with LocalLauncher(cpu_slots(1)) as launcher:
        launcher.start([stand_in("a")])
        ended = []
        wait_for(lambda: ended.extend(launcher.poll()) or ended)
        assert ended[0].returncode is None
        assert "cannot run a process" in ended[0].detail


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed")
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="the extra `slurm` is not installed"
)

KILL_A_WORKER = """
import os, signal, subprocess, sys, threading, time
from pathlib import Path


def kill_one():
    while True:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
                command = stat.with_name("cmdline").read_bytes()
            except OSError:
                continue
            if b"-m\\0runners.cli.run" in command and os.environ["MARK"].encode() in command:
                os.kill(int(fields[1]), signal.SIGKILL)  # the parent of a run's process: a Ray worker
                Path(os.environ["MARK"], "killed").write_text(fields[1])
                return
        time.sleep(0.05)


threading.Thread(target=kill_one, daemon=True).start()
from runners.cli.sweep import main
main()
"""


@needs_ray
@pytest.mark.nightly
def test_ray_with_a_killed_worker_gives_the_same_records(clean_pair, home, tmp_path):
    suite, store = write_suite(tmp_path), tmp_path / "store"
    store.mkdir()
    arguments = sweep(
        "run", suite, home, store, "--launcher", "ray", "--device", "cpu", "--slots", "2", "--threads", "1"
    )
    arguments = [sys.executable, "-c", KILL_A_WORKER, *arguments[3:]]
    done = call(arguments, env=os.environ | {"MARK": str(store)})
    assert done.returncode == 0, done.stderr
    assert (store / "killed").is_file()
    assert outcomes(store) == clean_pair
    assert sorted(words[-1] for words in notes(store).values()) == ["ok", "ok"]


@needs_ray
@pytest.mark.nightly
@pytest.mark.timeout(900)  # Ray is started twice
def test_a_killed_driver_of_ray_is_started_again_and_finishes_the_rest(clean_pair, home, tmp_path):
    suite, store = write_suite(tmp_path), tmp_path / "store"
    arguments = sweep(
        "run", suite, home, store, "--launcher", "ray", "--device", "cpu", "--slots", "1", "--threads", "1"
    )
    driver = subprocess.Popen(arguments, cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: list(store.glob("logs/*.log")))
    driver.kill()
    driver.wait()
    done = call(arguments)
    assert done.returncode == 0, done.stderr
    assert outcomes(store) == clean_pair
    # With its driver Ray ends its workers, and these their processes: a run that had begun may have noted that.
    assert sorted(words[-1] for words in notes(store).values()) == ["ok", "ok"]
    assert all(words.count("ok") == 1 for words in notes(store).values())  # nothing twice


@needs_submitit
def test_the_slurm_launcher_runs_jobs_through_submitit(stand_in, tmp_path):
    from runners.sweep.launchers.slurm import SlurmLauncher

    launcher = SlurmLauncher(folder=tmp_path / "slurm", slots=2, threads=1, gpus=0, cluster="local", settings={})
    with launcher:
        assert launcher.free_slots() == 2
        launcher._running = {}
        launcher.start([stand_in("hello")])
        ended = []
        wait_for(lambda: ended.extend(launcher.poll()) or ended)
    assert ended[0].key == "hello"
    assert ended[0].returncode is not None
    assert launcher.free_slots() == 2
