"""Tables of the committed records, cell by cell, against numbers worked out here from JSON files and bits alone.

Nothing of `reports` or of `lra.results` takes part in what is expected: plain arithmetic, and scipy for the quantiles.
"""

import csv
import hashlib
import json
import math
import shutil
import statistics
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from lra.config.schema import RunConfig
from lra.config.suites import expand, load_suite
from lra.config.yaml_loader import load_file
from reports.cli import command

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "benchmarks" / "evidence" / "store"
SUITES = ROOT / "benchmarks" / "evidence" / "suites"
BASE = "ContextPool"
SEEDS = 5
"""Of the suite `listops`."""


def read(store):
    """Read the records of a store: {run id: record}."""
    return {path.stem: json.loads(path.read_text())["record"] for path in store.glob("results/*/*.json")}


def of_suite(records, name):
    """Pick the runs of a suite whose variants differ only in their names: {display name: {seed: record}}."""
    wanted = {cell.key() for cell in expand(load_suite(str(SUITES / f"{name}.yaml")))}
    found = defaultdict(dict)
    for record in records.values():
        if RunConfig.model_validate(record["config"]).key() in wanted:
            found[record["variant_title"]][record["config"]["seed"]] = record
    return found


def percent(record):
    test = record["outcome"]["test"]
    return 100 * test["correct"] / test["total"]


def scores(by_seed):
    return [percent(record) for _, record in sorted(by_seed.items())]


def bits(store, record):
    cell = record["run_id"]
    with np.load(store / "arrays" / cell[:2] / f"{cell}.npz") as arrays:
        return arrays["test_correct"].astype(bool)


def printed(p):
    return "-" if math.isnan(p) else "<0.001" if p < 0.001 else f"{p:.3f}"


def cell_of(values, seeds):
    """Mean, deviation and number as the accuracy table writes them."""
    deviation = "" if len(values) == 1 else f" ± {statistics.stdev(values):.2f}"
    count = str(len(values)) if len(values) == seeds else f"{len(values)}/{seeds}"
    return f"{sum(values) / len(values):.2f}{deviation} ({count})"


def t_interval(values):
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    mean = sum(values) / len(values)
    return mean - half, mean + half


def binomial_p(a, b):
    """Two-sided exact probability of a split as uneven as a : b, in whole numbers."""
    n, most = a + b, max(a, b)
    tail = sum(math.comb(n, k) for k in range(most, n + 1))
    return min(1.0, 2 * tail / 2**n)


def table(store, *arguments):
    """Print a table as CSV and read it: the header and the rows."""
    words = ["table", *map(str, arguments), "--store", str(store), "--format", "csv"]
    done = CliRunner().invoke(command, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    header, *rows = [row for row in csv.reader(done.stdout.splitlines()) if row and not row[0].startswith("#")]
    return header, rows


def compare(found, expected):
    """Return how many cells were compared, and those that differ."""
    assert set(found) == set(expected)
    wrong = {key: (found[key], expected[key]) for key in expected if found[key] != expected[key]}
    return len(expected), wrong


def accuracy_check(store, records):
    """Compare the accuracy table of the section `listops`, baselines included."""
    runs = of_suite(records, "listops")
    expected = {(variant, "ListOps (%)"): cell_of(scores(by_seed), SEEDS) for variant, by_seed in runs.items()}
    baselines = {name: value for by_seed in runs.values() for record in by_seed.values() for name, value in
             record["baselines"].items()}  # fmt: skip
    known = load_file(ROOT / "reports" / "known_baselines.yaml")["listops"]
    digests = {record["data_digest"] for by_seed in runs.values() for record in by_seed.values()}
    baselines |= {name: value for digest in digests for name, value in known[digest].items()}
    expected |= {(name.capitalize(), "ListOps (%)"): f"{value:.2f}" for name, value in baselines.items()}
    trained = scores(of_suite(records, "rivals")["MLP only"])
    expected["MLP only, trained", "ListOps (%)"] = cell_of(trained, SEEDS)
    header, rows = table(store, "accuracy", "--suite", SUITES / "listops.yaml")
    return compare({(row[0], column): cell for row in rows for column, cell in zip(header[1:], row[1:], strict=True)},
                   expected)  # fmt: skip


def seeds_check(store, records):
    """Compare the table of seeds: number, mean, interval, extremes and how many learnt."""
    expected = {}
    for variant, by_seed in of_suite(records, "listops").items():
        values = scores(by_seed)
        low, high = t_interval(values)
        learnt = 0
        for record in by_seed.values():
            n, p, z = record["outcome"]["test"]["total"], percent(record) / 100, stats.norm.ppf(0.975)
            centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
            blind = max(record["baselines"]["chance"], record["baselines"]["majority"]) / 100
            learnt += (centre - half) / (1 + z * z / n) > blind
        row = {
            "runs": str(len(values)), "mean (%)": f"{sum(values) / len(values):.2f}",
            "interval (%)": f"{low:.2f} to {high:.2f} (t)", "lowest (%)": f"{min(values):.2f}",
            "highest (%)": f"{max(values):.2f}", "above chance": f"{learnt}/{len(values)}",
        }  # fmt: skip
        expected |= {(variant, name): cell for name, cell in row.items()}
    header, rows = table(store, "seeds", "--suite", SUITES / "listops.yaml")
    return compare({(row[1], name): cell for row in rows for name, cell in zip(header[2:], row[2:], strict=True)},
                   expected)  # fmt: skip


def pairs_check(store, records, other, bits_of=None):
    """Compare the table of ContextPool against another variant of the section `listops`."""
    bits_of = bits_of or store
    runs = of_suite(records, "listops")
    seeds = sorted(set(runs[BASE]) & set(runs[other]))
    pairs = [(runs[BASE][seed], runs[other][seed]) for seed in seeds]
    differences = [percent(a) - percent(b) for a, b in pairs]
    low, high = t_interval(differences)
    mean, error = sum(differences) / len(seeds), statistics.stdev(differences) / math.sqrt(len(seeds))
    p = 2 * stats.t.sf(abs(mean) / error, len(seeds) - 1)
    split = [((a & ~b).sum(), (b & ~a).sum()) for a, b in ((bits(bits_of, a), bits(bits_of, b)) for a, b in pairs)]
    expected = {
        "task": "ListOps", "seeds": str(len(seeds)), "difference (points)": f"{mean:+.2f}",
        "95 % interval (points)": f"[{low:+.2f}, {high:+.2f}]", "p (paired t)": printed(p), "p (Holm)": printed(p),
        "McNemar p per seed": ", ".join(printed(binomial_p(int(a), int(b))) for a, b in split),
        f"only {BASE}": ", ".join(str(a) for a, _ in split), f"only {other}": ", ".join(str(b) for _, b in split),
    }  # fmt: skip
    header, (row,) = table(store, "head-to-head", BASE, other, "--suite", SUITES / "listops.yaml")
    found = dict(zip(header, row, strict=True))
    power = stats.nct.sf(
        stats.t.ppf(0.975, len(seeds) - 1), len(seeds) - 1, float(found["detectable (points)"]) / error
    )
    expected["detectable (points)"] = found["detectable (points)"] if abs(power - 0.8) < 0.01 else f"power {power:.2f}"
    return compare(found, expected)


def cost_check(store, records):
    """Compare the cost table: medians over seeds, and their ratios to full attention."""
    runs = of_suite(records, "listops")

    def median(variant, name):
        return statistics.median(record["cost"][name] for record in runs[variant].values())

    expected = {}
    for variant, by_seed in runs.items():
        first = next(iter(by_seed.values()))
        for name, source, unit, form in (
            ("speed (tokens/s)", "tokens_per_second", 1, ",.0f"),
            ("peak memory (MiB)", "peak_memory_bytes", 2**20, ",.0f"),
            ("operations (MFLOPs)", "flops", 1e6, ",.1f"),
        ):  # fmt: skip
            value = median(variant, source)
            expected[variant, name] = format(value / unit, form)
            expected[variant, f"{name.partition(' (')[0]} (x full)"] = f"{value / median('Full attention', source):.2f}"
        expected[variant, "device"] = first["environment"]["cpu"]
        expected[variant, "parameters"] = f"{first['cost']['parameters']:,}"
        share = first["cost"]["parameters"] / first["cost"]["parameters_full"]
        expected[variant, "parameters (x full)"] = f"{share:.3f}"
        expected[variant, "backend"] = ", ".join(sorted({record["backend"] for record in by_seed.values()}))
    header, rows = table(store, "cost", "--suite", SUITES / "listops.yaml")
    return compare({(row[1], name): cell for row in rows for name, cell in zip(header[2:], row[2:], strict=True)},
                   expected)  # fmt: skip


@pytest.mark.nightly
def test_every_cell_of_the_section_is_what_the_records_give():
    """Accuracy, seeds and cost of all variants, and every one against ContextPool."""
    records = read(STORE)
    checks = [check(STORE, records) for check in (accuracy_check, seeds_check, cost_check)]
    others = sorted(set(of_suite(records, "listops")) - {BASE})
    checks += [pairs_check(STORE, records, other) for other in others]
    assert [wrong for _, wrong in checks if wrong] == []
    assert [count for count, _ in checks] == [11 + 6, 11 * 6, 11 * 10] + [10] * 10


@pytest.mark.parametrize(
    ("suite", "names", "count"),
    [("depth", [], 12 + 3 * 12), pytest.param("ablation", [BASE], 14, marks=pytest.mark.nightly)],
)
def test_depths_and_options_are_what_the_records_give(suite, names, count):
    cells = [json.loads(cell.key()) for cell in expand(load_suite(str(SUITES / f"{suite}.yaml")))]
    found = [record for record in read(STORE).values() if record["config"] in cells]
    assert len(found) == len(cells)
    groups = defaultdict(dict)
    for record in found:
        config = record["config"]
        options = json.dumps(config["variant"]["options"], sort_keys=True)
        groups[record["variant_title"], config["model"]["num_layers"], options][config["seed"]] = record
    header, rows = table(STORE, suite, *names, "--suite", SUITES / f"{suite}.yaml")
    column = header.index("test accuracy (%)")
    wanted = [cell_of(scores(group), 3) for key, group in groups.items() if key[0] in (names or [key[0]])]
    assert sorted(row[column] for row in rows) == sorted(wanted)
    compared = len(wanted)
    if suite == "depth":
        by_name = {(row[1], row[2]): row for row in rows}
        for (variant, layers, _), group in groups.items():
            costs = [record["cost"] for record in group.values()]
            batch = next(iter(group.values()))["config"]["train"]["batch_size"]
            seconds = statistics.median(batch / cost["examples_per_second"] for cost in costs)
            row = dict(zip(header, by_name[variant, str(layers)], strict=True))
            assert row["test accuracy (%)"] == cell_of(scores(group), 3)
            assert row["operations (MFLOPs)"] == f"{statistics.median(cost['flops'] for cost in costs) / 1e6:,.1f}"
            assert row["step time (s)"] == f"{seconds:.3f}"
            compared += 3
    assert compared == count


@pytest.mark.nightly
def test_holm_goes_over_the_tasks_of_a_section():
    """Two tasks: the smaller p counts twice, the larger one at least as much as that."""
    wanted = {cell.key() for cell in expand(load_suite(str(SUITES / "pairs.yaml")))}
    by_task = defaultdict(lambda: defaultdict(dict))
    for record in read(STORE).values():
        if RunConfig.model_validate(record["config"]).key() in wanted:
            config = record["config"]
            by_task[record["task_title"]][record["variant_title"]][config["seed"]] = percent(record)
    compared = 0
    for other in ("Full attention", "ContextPool control"):
        expected = {}
        for task, runs in by_task.items():
            seeds = sorted(set(runs[BASE]) & set(runs[other]))
            differences = [runs[BASE][seed] - runs[other][seed] for seed in seeds]
            low, high = t_interval(differences)
            expected[task] = [
                str(len(seeds)), f"{sum(differences) / len(seeds):+.2f}", f"[{low:+.2f}, {high:+.2f}]",
                stats.ttest_1samp(differences, 0.0).pvalue,
            ]  # fmt: skip
        (small, first), (large, second) = sorted((row[-1], task) for task, row in expected.items())
        holm = {first: min(1.0, 2 * small), second: min(1.0, max(2 * small, large))}
        header, rows = table(STORE, "head-to-head", BASE, other, "--suite", SUITES / "pairs.yaml")
        columns = [
            header.index(name)
            for name in ("seeds", "difference (points)", "95 % interval (points)", "p (paired t)", "p (Holm)")
        ]
        found = {row[0]: [row[column] for column in columns] for row in rows}
        assert found == {task: [*row[:3], printed(row[3]), printed(holm[task])] for task, row in expected.items()}
        compared += sum(map(len, found.values()))
    assert compared == 2 * 2 * 5


@pytest.fixture
def changed(tmp_path):
    """A copy of the store in which one run of ContextPool has twenty more right answers, its checksums made to fit."""
    for part in ("results", "arrays"):
        shutil.copytree(STORE / part, tmp_path / part)
    record = of_suite(read(tmp_path), "listops")[BASE][0]
    right = bits(tmp_path, record)
    right[np.flatnonzero(~right)[:20]] = True
    record["outcome"]["test"]["correct"] += 20
    path = tmp_path / "arrays" / record["run_id"][:2] / f"{record['run_id']}.npz"
    with np.load(path) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    np.savez(path, **columns | {"test_correct": right})
    record["arrays_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    rewrite(tmp_path, record)
    return tmp_path


@pytest.mark.nightly
def test_a_changed_record_is_noticed(changed):
    """The tables of the changed store against what the true records give: exactly its cells differ."""
    records = read(STORE)
    assert set(accuracy_check(changed, records)[1]) == {(BASE, "ListOps (%)")}
    assert set(seeds_check(changed, records)[1]) >= {(BASE, "mean (%)"), (BASE, "interval (%)")}
    assert {variant for variant, _ in seeds_check(changed, records)[1]} == {BASE}
    differing = pairs_check(changed, records, "Full attention", bits_of=STORE)[1]
    assert {
        "difference (points)",
        "95 % interval (points)",
        f"only {BASE}",
        "only Full attention",
        "detectable (points)",
    } <= set(differing)
    assert accuracy_check(changed, read(changed))[1] == {}


def rewrite(store, record):
    body = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    envelope = {"record": record, "sha256": hashlib.sha256(body).hexdigest()}
    (store / "results" / record["run_id"][:2] / f"{record['run_id']}.json").write_text(json.dumps(envelope))
