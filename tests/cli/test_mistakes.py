"""Plausible mistakes on each of the six command lines: a clear line, the right exit code, no traceback."""

import json
import re
import shlex
from collections import Counter

import pytest
import yaml
from click.testing import CliRunner

from lra.config.builtin import config_folder
from tests.docs.tries import COMMANDS
from tests.reports.synthetic import five_tasks

RUN = "lra-run --attn full --task listops"
OPEN = f"{RUN} --track open --set"
BENCH = "lra-bench --quick --attn full --lengths 16"

MISTAKES = [
    ("lra-run", 2, "--task is missing: lra-run --attn contextpool --task listops; other tasks are text"),
    ("lra-run --task imdb", 2, "--attn is missing: lra-run --attn full,contextpool --task imdb; lra-zoo list"),
    ("lra-run --attn linear", 2, "--task is missing: lra-run --attn linear --task listops"),
    ("lra-run listops", 2, "unexpected extra argument (listops)"),
    ("lra-run --attn ful --task listops", 2, "unknown variant 'ful'; did you mean 'full'?"),
    ("lra-run --attn full --task path-x", 2, "did you mean 'pathx' or 'pathx256'?"),
    ("lra-doctor --stores x", 2, "No such option '--stores'"),
    ("lra-doctor now", 2, "unexpected extra argument (now)"),
    ("lra-doctor --store suite.yaml", 2, "'suite.yaml' is a file"),
    (f"{RUN} --seed 3", 2, "No such option '--seed'"),
    (f"{RUN} --seeds 0..4", 2, "'0..4' is not a seed; write 3, 0-4 or 0,2,5"),
    (f"{RUN} --profile {'x' * 5000}", 2, "File name too long"),
    (f"{RUN} --profile {'x' * 5000}.yaml", 2, "File name too long"),
    (f"lra-run --config {'x' * 5000}", 2, "File name too long"),
    (f"lra-sweep plan {'x' * 5000}", 2, "File name too long"),
    (f"lra-data prepare text --from {'x' * 5000}", 3, "File name too long"),
    (f"{RUN} --threads 1000000", 2, "1000000 is not in the range 1<=x<=1024"),
    ("lra-sweep run suite.yaml --slots 1000000", 2, "1000000 is not in the range 1<=x<=1024"),
    ("lra-data prepare listops --workers 1000000", 2, "1000000 is not in the range 1<=x<=1024"),
    (f"{RUN} --checkpoint-seconds nan", 2, "nan is not a number"),
    ("lra-sweep run suite.yaml --timeout inf", 2, "inf is not a number"),
    ("lra-bench --seconds nan", 2, "nan is not a number"),
    (f"{RUN} --seeds 0-99999999999", 2, "more than 1,000 seeds"),
    (f"{RUN} --seeds {'9' * 5000}", 2, "is not a seed"),
    (f"{OPEN} train.lr=1e999", 2, "a number that is too large"),
    (f"{OPEN} train.steps={'9' * 5000}", 2, "a number of more than 18 digits"),
    (f"lra-bench --quick --attn full --lengths {'9' * 5000}", 2, "is not a length"),
    (f"{RUN} --profile quik", 2, "unknown profile 'quik'; did you mean 'quick'?"),
    (f"{RUN} --profile nowhere/x.yaml", 2, "nowhere/x.yaml: no such file"),
    (f"{RUN} --profile damaged.yaml", 2, "damaged.yaml:1:6: expected ',' or ']'"),
    (f"{RUN} --profile binary.yaml", 2, "binary.yaml: 'utf-8' codec can't decode"),
    (f"{RUN} --profile list.yaml", 2, "list.yaml: expected a mapping at the top"),
    (f"{RUN} --set train.steps=10", 2, "--track open admits it"),
    (f"{RUN} --compile --set train.compile=false", 2, "--compile: --set train.compile says otherwise; leave one out"),
    (f"{RUN} --set variant.bias=t5 --set variant.bias=none", 2, "variant.bias: given as t5 and as none; leave one out"),
    (f"{BENCH} --set variant.bias=t5 --set variant.bias=none", 2, "variant.bias: given as t5 and as none"),
    ("lra-zoo check full --set variant.bias=t5 --set bias=none", 2, "bias: given as t5 and as none"),
    ("lra-data prepare listops --set seed=1 --set data.seed=2", 2, "seed: given as 1 and as 2; leave one out"),
    (f"{RUN} --set pretrain.share=0.95", 2, "pretrain.share: input should be less than or equal to 0.9 (got 0.95)"),
    (f"{RUN} --set pretrain.mask_rate=0.2", 2, "pretrain.mask_rate: without effect, since pretrain.share is 0"),
    (f"{OPEN} pretrain.loss=l1 --set pretrain.share=0.5", 2, "task 'listops' has ids; cross_entropy is for it"),
    ("lra-run --attn full --task text --profile official --set pretrain.share=0.5", 2, "is its test split"),
    (f"{OPEN} model.causal=true --set model.pooling=cls", 2, "the first place is read, which sees no other"),
    (f"{RUN} --from ab12", 2, "no single record in lra-results begins with 'ab12'"),
    ("lra-report table accuracy --any-budget", 2, "--any-budget belongs to head-to-head"),
    (f"{OPEN} train.stepps=10", 2, "train.stepps: unknown key; did you mean 'steps'"),
    (f"{OPEN} model.num_heads=5 --dry-run", 2, "model.num_heads: dim 64 is not a multiple of 5"),
    (f"{OPEN} model.head_dim=3 --set model.positions=rotary --dry-run", 2, "need an even head_dim, got 3"),
    (
        "lra-run --attn linear --task listops --track open --set model.positions=t5",
        2,
        "linear cannot have these positions",
    ),
    (f"{RUN} --set variants.contextpol.placement=stream", 2, "'contextpol' is not among the variants; known: full"),
    (
        "lra-run --attn full,local --task listops --set variant.window=8",
        2,
        "variant.window: no option of full; for one of several variants write variants.local.window",
    ),
    (
        "lra-run --attn full,linformer,nystrom,local --task listops --set variant.window=8",
        2,
        "variant.window: an option of local only; for one of several variants write variants.local.window",
    ),
    ("lra-run --attn full,local --task listops --set variants.local.windo=8", 2, "variants.local.windo: no option of"),
    ("lra-run --attn full,ful --task listops --set variant.window=8", 2, "unknown variant 'ful'; did you mean 'full'?"),
    ("lra-run --attn contextpool --task listops --set variant.placement=streem", 2, "expected 'branch' or 'stream'"),
    (f"{RUN} --device gpu", 2, "--device gpu: not a device; write auto, cpu, cuda or cuda:N"),
    (f"{RUN} --tracker tensorbord", 2, "unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
    (f"{RUN} --store a-file/x", 3, "cannot write to the store a-file/x: Not a directory"),
    ("lra-run --config nowhere.json", 2, "--config nowhere.json: no such file"),
    ("lra-run --config a-file", 2, "a-file: neither a configuration nor a record"),
    ("lra-run --config two-runs.yaml", 2, "two-runs.yaml: several runs; --config runs one"),
    (
        "lra-run --config profile.yaml",
        2,
        "a profile, not the configuration of one run; --attn NAME --task NAME",
    ),
    ("lra-run --config suite.yaml", 2, "a suite, not the configuration of one run; lra-sweep run suite.yaml runs it"),
    ("lra-run --config run.json --attn full", 2, "--config is a whole run"),
    ("lra-run --attn full --task text", 3, "lra-data fetch text"),
    ("lra-run --model full --task listops", 2, "--model full: it has no parameter num_classes"),
    ("lra-run --model nowhere.py:build --task listops", 2, "nowhere.py: no such file"),
    ("lra-run --model hf:nowhere.json --task listops", 2, "hf:nowhere.json: "),
    ("lra-run --config run.json --model m.py:build", 2, "--config is a whole run"),
    ("lra-run --evaluate zz", 2, "begins with 'zz'"),
    ("lra-run --evaluate zz --task listops", 2, "--evaluate takes a run as it is"),
    ("lra-sweep rum quick", 2, "No such command 'rum'"),
    ("lra-sweep run quik", 2, "unknown suite 'quik'; did you mean 'quick'?"),
    ("lra-sweep plan nowhere.yaml", 2, "nowhere.yaml: no such file"),
    ("lra-sweep plan suite.yaml --probee", 2, "No such option '--probee'"),
    ("lra-sweep plan no-variant.yaml", 2, "unknown variant 'fulll'; did you mean 'full'?"),
    ("lra-sweep plan no-option.yaml", 2, "variant.x: no option of full; known: backend, bias, rotary"),
    ("lra-sweep plan no-task.yaml", 2, "unknown task 'listop'; did you mean 'listops'?"),
    ("lra-sweep plan no-profile.yaml", 2, "unknown profile 'quik'; did you mean 'quick'?"),
    ("lra-sweep plan no-open-track.yaml", 2, "in a suite: `track: open`"),
    ("lra-sweep run suite.yaml --slots 0", 2, "0 is not in the range 1<=x<=1024"),
    ("lra-sweep run suite.yaml --launcher slrum", 2, "'slrum' is not one of 'local', 'ray', 'slurm'"),
    ("lra-sweep run suite.yaml --slurm slurm_partition=gpu", 2, "--slurm needs --launcher slurm, not local"),
    ("lra-sweep run suite.yaml --ray-address auto", 2, "--ray-address needs --launcher ray, not local"),
    ("lra-sweep run suite.yaml --time-limit 1h", 2, "'1h' is not a valid float"),
    ("lra-sweep status suite.yaml --store nowhere", 0, "There is no store at nowhere yet."),
    ("lra-sweep retry suite.yaml --store nowhere", 0, "There is no store at nowhere yet."),
    ("lra-sweep gc suite.yaml --store nowhere", 0, "There is no store at nowhere yet."),
    ("lra-sweep gc suit.yaml --store nowhere", 2, "suit.yaml: no such file; did you mean 'suite.yaml'?"),
    ("lra-bench --quik", 2, "No such option '--quik'"),
    ("lra-bench --attn contextpol", 2, "unknown variant 'contextpol'; did you mean 'contextpool'"),
    ("lra-bench --attn ''", 2, "unknown variant ''"),
    ("lra-bench --lengths 1k", 2, "'1k' is not a length; write 1024,2048,4096"),
    ("lra-bench --lengths ''", 2, "'' is not a length"),
    ("lra-bench --task listop", 2, "unknown task 'listop'; did you mean 'listops'?"),
    ("lra-bench --batch 4 --tokens 100", 2, "--batch and --tokens exclude each other"),
    (f"{BENCH} --set model.num_heads=5", 2, "is not a multiple of 5"),
    (f"{BENCH} --set variants.contextpol.placement=stream", 2, "'contextpol' is not among the variants"),
    (f"{BENCH} --json a-file/x.json", 2, "cannot write a-file/x.json"),
    (f"{BENCH} --device cuda:x", 2, "--device cuda:x: not a device"),
    ("lra-data prepar listops", 2, "No such command 'prepar'"),
    ("lra-data prepare listop", 2, "unknown task 'listop'; did you mean 'listops'?"),
    ("lra-data prepare listops --set sed=1", 2, "data.sed: unknown key; did you mean 'seed'?"),
    ("lra-data prepare listops --data-dir a-file/x", 3, "cannot make a-file/x"),
    ("lra-data prepare text", 3, "Fetch and prepare it with: lra-data fetch text"),
    ("lra-data prepare text --from nowhere.tgz", 3, "nowhere.tgz: no such file or folder"),
    ("lra-data prepare text --from a-fil", 3, "a-fil: no such file or folder; did you mean 'a-file'?"),
    ("lra-data prepare listops --from a-file", 2, "listops is generated; --set source=official reads it from --from"),
    (
        "lra-data prepare text --from folder",
        3,
        "folder: no train-*.parquet in it; a folder must be of parquet files",
    ),
    ("lra-data prepare text --from a-file", 3, "a-file: not a sound archive"),
    ("lra-data where txt", 2, "unknown task 'txt'; did you mean 'text'?"),
    ("lra-data fetch pathfinder", 2, "pathfinder is generated; lra-data prepare pathfinder makes it"),
    ("lra-data fetch text --mirror nonsense", 2, "only https addresses are fetched from"),
    ("lra-data verify text", 3, "no data of text is prepared"),
    ("lra-data show listops --split valid", 2, "'valid' is not one of 'train', 'validation', 'test'"),
    ("lra-data show listops --out x.png", 2, "--out draws images, and listops has none"),
    ("lra-data remove listop --yes", 3, "did you mean 'listops'?"),
    ("lra-data remove text --yes", 3, "nothing named 'text' is prepared in home\n"),
    ("lra-zoo lst", 2, "No such command 'lst'"),
    ("lra-zoo describe ful", 2, "unknown variant 'ful'; did you mean 'full'?"),
    ("lra-zoo check ../full", 2, "unknown variant '../full'; did you mean 'full'?"),
    ("lra-zoo check", 2, "Missing argument 'NAME'"),
    ("lra-zoo docs --out a-file/x.md", 2, "cannot write a-file/x.md"),
    ("lra-zoo docs --out folder", 2, "File 'folder' is a directory"),
    ("lra-report table accurracy", 2, "unknown preset 'accurracy'; did you mean 'accuracy'?"),
    ("lra-report table accuracy --store nowhere", 2, "no store at nowhere"),
    ("lra-report table accuracy --store folder", 2, "holds no records yet"),
    ("lra-report table accuracy --store .", 2, "holds no records yet; did you mean --store lra-results?"),
    ("lra-report table accuracy --profile quik", 2, "'quik'"),
    ("lra-report table accuracy --format md", 2, "'md' is not one of"),
    ("lra-report table head-to-head full", 2, "takes 2"),
    ("lra-report table calibration quick", 2, "calibration takes 2 profiles, got 1"),
    ("lra-report table head-to-head full contextpol", 2, "did you mean 'contextpool'?"),
    ("lra-report locality 3f2a --hide wide", 2, "--hide wide: 'wide' is not a radius; write 3, 0-4 or 0,2,5"),
    ("lra-report locality 3f2a --figure map.jpg", 2, "--figure map.jpg: the figure is written as png, svg, pdf"),
    ("lra-report figures --out a-file/x", 2, "cannot write a-file/x"),
    ("lra-report html --out folder", 2, "File 'folder' is a directory"),
    ("lra-report compare zz zz", 2, "no record begins with 'zz'"),
    ("lra-report pooling zz --out x.gif", 2, "png, svg, pdf"),
]
SUITE = {"name": "s", "title": "t", "profile": "quick", "tasks": ["listops"], "seeds": [0], "variants": {"full": {}}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A folder with what the mistakes are made with."""
    folder = tmp_path_factory.mktemp("bench")
    five_tasks(folder / "lra-results", seeds=1)
    (folder / "folder").mkdir()
    suites = {
        "suite": {},
        "no-variant": {"variants": {"fulll": {}}},
        "no-option": {"variants": {"full": {"x": 1}}},
        "no-task": {"tasks": ["listop"]},
        "no-profile": {"profile": "quik"},
        "no-open-track": {"settings": {"model.num_layers": [1, 2]}},
    }
    for name, changes in suites.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(SUITE | changes))
    files = {"a-file": b"x", "damaged.yaml": b"a: [1", "binary.yaml": b"\xff\xfe", "list.yaml": b"- 1\n"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "two-runs.yaml").write_text("task: listops\n---\ntask: text\n")
    (folder / "profile.yaml").write_text((config_folder("profiles") / "quick.yaml").read_text())
    (folder / "run.json").write_text(json.dumps({}))
    return folder


@pytest.mark.parametrize(("line", "code", "message"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_a_mistake_is_a_clear_line(bench, monkeypatch, line, code, message):
    monkeypatch.chdir(bench)
    monkeypatch.setenv("LRA_HOME", "home")
    monkeypatch.delenv("LRA_STORE", raising=False)
    before = sorted(path.name for path in bench.iterdir())
    name, *words = shlex.split(line)
    done = CliRunner().invoke(COMMANDS[name], words, prog_name=name, catch_exceptions=False)
    assert done.exit_code == code, done.output
    assert message in re.sub(r"No such option: (\S+)", r"No such option '\1'", done.stderr)  # click before 8.5
    assert len([text for text in done.stderr.splitlines() if text.startswith("Error: ")]) <= 3
    assert {path.name for path in bench.iterdir()} - set(before) <= {"home", "lra-results"}


def test_every_command_has_its_mistakes():
    counts = Counter(line.split()[0] for line, _, _ in MISTAKES)
    assert set(counts) == set(COMMANDS)
    assert min(counts.values()) >= 3
    assert sum(counts.values()) >= 75
