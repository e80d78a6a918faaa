"""Seed mistakes into a copy of the project, one at a time, and see that the tests named for each catch it.

    python -m tests.mutation                      # all of tests/mutation/mutations.yaml; exit 1 if one survives
    python -m tests.mutation --only label-shift --only wilson-interval
    python -m tests.mutation --markdown           # and print the table of docs/appendix/fault-tests.md

Each mistake names a function (or a class or constant) and a piece of its code, which is compared as a syntax tree and
must be there exactly once. Formatting, comments and moves, also to another file, do not matter. The mistake is made in
a fresh copy of the tracked files. A verdict is `caught` (a named test failed), `SURVIVED` (all passed), `NOT SEEDED`
(it does not fit the tree) or `NO VERDICT`: pytest could not run the tests, or they fail without the mistake too, which
is tried first. Before all that, a probe makes sure that tests and the processes they start import the copy and not an
installed project.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import contextlib
import multiprocessing
import os
import py_compile
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("lra", "runners", "attention_zoo", "contextpool", "reports")
TABLE = Path(__file__).with_name("mutations.yaml")
TEST_SECONDS = 120
"""A mistake may make a test hang; it is then caught by this limit."""
RUN_SECONDS = 900
PRELOADED = (
    "torch",
    "torch._dynamo",
    "pandas",
    "scipy.stats",
    "pydantic",
    "hypothesis",
    "pytest",
    "xdist",
    "pytest_timeout",
)
"""What tests import anyway, and no mistake is in: imported once, in the process from which theirs are forked."""
FORKS = multiprocessing.get_context("forkserver")
PROBE = """
import subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = "import attention_zoo, contextpool, lra, reports, runners as r; print(*(m.__file__ for m in (attention_zoo, " \\
    "contextpool, lra, reports, r)), sep='\\\\n')"


@pytest.mark.parametrize("cwd", [ROOT, ROOT.parent])
def test_processes_import_the_copy(cwd):
    told = subprocess.run([sys.executable, "-c", CODE], cwd=cwd, capture_output=True, text=True, check=True).stdout
    assert len(told.split()) == 5
    assert all(Path(file).is_relative_to(ROOT) for file in told.split()), told


def test_the_test_imports_the_copy():
    import attention_zoo, contextpool, lra, reports, runners
    for module in (attention_zoo, contextpool, lra, reports, runners):
        assert Path(module.__file__).is_relative_to(ROOT), module.__file__
"""


class NotSeededError(Exception):
    """A mistake does not fit the tree."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """One seeded mistake."""

    name: str
    where: str
    """Dotted name of the function, class or constant: `lra.data.batching.TrainingBatches.epoch`."""
    change: str
    """Expression, keyword argument (`name=value`) or statements that are there exactly once."""
    to: str
    """What stands there instead. `pass` removes statements."""
    tests: tuple[str, ...]
    """Files or ids of tests that must catch it."""

    def apply(self, tree: Path) -> None:
        """Make the mistake in a copy of the project.

        Raises:
            NotSeededError: The name or the code is not there, or not exactly once.
        """
        path, code = self.seed(tree)
        path.write_text(code)

    def seed(self, tree: Path) -> tuple[Path, str]:
        """Return the file that the mistake is in and the file's code with the mistake.

        Raises:
            NotSeededError: The name or the code is not there, or not exactly once.
        """
        path, module = self.seed_tree(tree)
        return path, ast.unparse(module) + "\n"

    def seed_tree(self, tree: Path) -> tuple[Path, ast.Module]:
        """Return the file that the mistake is in and the syntax tree with the mistake.

        Raises:
            NotSeededError: The name or the code is not there, or not exactly once.
        """
        try:
            old, new = ast.parse(self.change).body, ast.parse(self.to).body
        except SyntaxError as error:
            raise NotSeededError(f"{self.name}: not Python: {error}") from error
        if _dump(old) == _dump(new):
            raise NotSeededError(f"{self.name}: changes nothing")
        path, module, scopes = self._find(tree)
        count = sum(_replace(scope, old, new) for scope in scopes)
        if count != 1:
            raise NotSeededError(f"{self.name}: {self.where} has this {count} times, not once: {self.change!r}")
        return path, module

    def _find(self, tree: Path) -> tuple[Path, ast.Module, list[ast.stmt]]:
        """Find the file of `where`, its syntax tree and what is defined in it under that name.

        The qualified name starts at the first part with a capital letter, or else is the last part. It is looked up in
        the module that the parts before it name and, where it is not there, in all files of the project.
        """
        parts = self.where.split(".")
        start = next((i for i, part in enumerate(parts) if part.lstrip("_")[:1].isupper()), len(parts) - 1)
        stem = "/".join(parts[:start])
        named = [path for path in (tree / f"{stem}.py", tree / stem / "__init__.py") if path.is_file()]
        others = (path for package in PACKAGES for path in sorted((tree / package).rglob("*.py")))
        for candidates in (named, others):
            found = []
            for path in candidates:
                module = ast.parse(path.read_text())
                if scopes := _definitions(module, parts[start:]):
                    found.append((path, module, scopes))
            if len(found) == 1:
                return found[0]
            if found:
                files = ", ".join(str(path.relative_to(tree)) for path, *_ in found)
                raise NotSeededError(f"{self.name}: {self.where} is not there; its last part is in several: {files}")
        raise NotSeededError(f"{self.name}: no {self.where}")


def _definitions(node: ast.AST, names: Sequence[str]) -> list[ast.stmt]:
    """Return the functions, classes and assignments with this qualified name."""
    if not names and isinstance(node, ast.stmt):
        return [node]
    found = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            defined = [child.name]
        elif isinstance(child, (ast.Assign, ast.AnnAssign)):
            targets = child.targets if isinstance(child, ast.Assign) else [child.target]
            defined = [target.id for target in targets if isinstance(target, ast.Name)]
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            found += _definitions(child, names)
            continue
        else:
            continue
        if names[0] in defined:
            found += _definitions(child, names[1:])
    return found


def _dump(code: Sequence[ast.AST]) -> list[str]:
    return [ast.dump(node) for node in code]


def _forms(code: list[ast.stmt]) -> dict[str, list[ast.AST]]:
    """Return what a piece of code can mean: statements, an expression or a keyword argument."""
    forms: dict[str, list[ast.AST]] = {"statements": list(code)}
    match code:
        case [ast.Expr(value=value)]:
            forms["expression"] = [value]
        case [ast.Assign(targets=[ast.Name(id=name)], value=value)]:
            forms["keyword"] = [ast.keyword(arg=name, value=value)]
    return forms


def _replace(scope: ast.AST, old: list[ast.stmt], new: list[ast.stmt]) -> int:
    """Replace code everywhere below a node and return how often it was there."""
    before, after = _forms(old), _forms(new)
    shared = before.keys() & after.keys()
    if "expression" in shared:
        shared.remove("statements")  # the same place would be counted twice
    return sum(_replace_nodes(scope, before[form], after[form]) for form in sorted(shared))


def _replace_nodes(scope: ast.AST, old: list[ast.AST], new: list[ast.AST]) -> int:
    count, width, kinds, wanted = 0, len(old), [type(node) for node in old], _dump(old)

    def is_old(nodes: list[ast.AST]) -> bool:  # the types first, since writing trees out takes long
        return [type(node) for node in nodes] == kinds and _dump(nodes) == wanted

    for node in list(ast.walk(scope)):
        for field, value in ast.iter_fields(node):
            if isinstance(value, ast.AST) and is_old([value]):
                setattr(node, field, new[0])
                count += 1
            elif isinstance(value, list):
                for start in range(len(value) - width, -1, -1):
                    if is_old(value[start : start + width]):
                        value[start : start + width] = new
                        count += 1
    return count


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of a mistake."""

    mistake: Mistake
    word: str
    """`caught`, `SURVIVED`, `NOT SEEDED` or `NO VERDICT`."""
    by: str
    """The test that failed first, or why there is no verdict."""
    seconds: float


def load_mistakes(path: Path = TABLE) -> list[Mistake]:
    """Read the table of mistakes."""
    return [
        Mistake(where=entry.pop("in"), tests=tuple(entry.pop("tests")), **entry)
        for entry in yaml.safe_load(path.read_text())
    ]


def copy_tracked(target: Path) -> None:
    """Copy the tracked files of the working tree, and compile them.

    Byte code goes by the hash of its source. By time and size, as usual, that of a file without a mistake could be
    taken for that of the file with one.
    """
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    by_hash = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(target, quiet=1, invalidation_mode=by_hash)


def run_tests(tree: Path, tests: Sequence[str], *options: str) -> tuple[int | None, str]:
    """Run tests of a copy in a fresh process; return pytest's exit code and output."""
    output = tree.with_name(f"{tree.name}.log")
    fixed = ["-n", "0", "-m", "", "-rfE", "-p", "no:cacheprovider", "--assert=plain", "--timeout", str(TEST_SECONDS)]
    process = FORKS.Process(target=_run_pytest, args=(tree, output, [*fixed, *options, *tests]))
    process.start()
    process.join(RUN_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode, output.read_text(errors="replace")


def _run_pytest(tree: Path, output: Path, arguments: list[str]) -> None:
    """Run pytest in the folder `tree`, with what it and its children print in a file, and exit with its code."""
    import pytest

    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(tree)
    sys.path[:] = [str(tree), *(entry for entry in sys.path if entry and Path(entry) != ROOT)]
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    os.environ["PYTHONPATH"] = str(tree)
    sys.exit(int(pytest.main(arguments)))


def check_copy(tree: Path) -> str | None:
    """Return why the tests of a copy would test something else, None if they would not."""
    probe = tree / "tests" / "test_probe_of_mutations.py"
    probe.write_text(PROBE)
    code, output = run_tests(tree, [str(probe.relative_to(tree))])
    probe.unlink()
    return None if code == 0 else output


def check_unmutated(snapshot: Path, tests: Sequence[str]) -> str | None:
    """Return what goes wrong when tests run without a mistake, None if they pass."""
    with copied(snapshot) as tree:
        code, output = run_tests(tree, tests)
    return None if code == 0 else output


@contextlib.contextmanager
def copied(snapshot: Path) -> Iterator[Path]:
    """Give a copy of a folder, and remove it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(snapshot, tree)
        yield tree


def judge(snapshot: Path, mistake: Mistake) -> Verdict:
    """Make a mistake in a fresh copy of `snapshot` and run the tests named for it."""
    start = time.monotonic()
    try:
        with copied(snapshot) as tree:
            mistake.apply(tree)
            code, output = run_tests(tree, mistake.tests, "-x")
    except NotSeededError as error:
        return Verdict(mistake=mistake, word="NOT SEEDED", by=str(error), seconds=0.0)
    failed = re.search(r"^(?:FAILED|ERROR) (tests/\S+)", output, re.MULTILINE)
    if code == 0:
        word, by = "SURVIVED", ", ".join(mistake.tests)
    elif code == 1 and failed:
        word, by = "caught", failed[1]
    else:
        word, by = "NO VERDICT", f"pytest ended with {code}: {output.strip()[-300:]}"
    return Verdict(mistake=mistake, word=word, by=by, seconds=time.monotonic() - start)


def judge_all(snapshot: Path, mistakes: Sequence[Mistake], jobs: int) -> Iterator[Verdict]:
    """Yield verdicts as they come. Tests that fail without a mistake give none."""
    with ThreadPoolExecutor(jobs) as pool:
        clean: dict[tuple[str, ...], Future[str | None]] = {}
        waiting: list[Future[Verdict]] = []
        for mistake in mistakes:
            if mistake.tests not in clean:
                clean[mistake.tests] = pool.submit(check_unmutated, snapshot, mistake.tests)
            waiting.append(pool.submit(_judge_after, clean[mistake.tests], snapshot, mistake))
        for future in as_completed(waiting):
            yield future.result()


def _judge_after(clean: Future[str | None], snapshot: Path, mistake: Mistake) -> Verdict:
    problem = clean.result()
    if problem is not None:
        by = f"its tests do not pass without it: {problem.strip()[-300:]}"
        return Verdict(mistake=mistake, word="NO VERDICT", by=by, seconds=0.0)
    return judge(snapshot, mistake)


def as_markdown(verdicts: Sequence[Verdict]) -> str:
    """Write the table of docs/appendix/fault-tests.md."""
    lines = ["| mistake | in | verdict |", "| --- | --- | --- |"]
    for verdict in sorted(verdicts, key=lambda verdict: (verdict.mistake.where, verdict.mistake.name)):
        by = verdict.by.partition("[")[0]
        lines.append(f"| {verdict.mistake.name} | `{verdict.mistake.where}` | {verdict.word} by `{by}` |")
    return "\n".join(lines)


def main() -> int:
    """Judge the mistakes asked for; return 0 if all are caught."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="NAME", help="this mistake; may be given several times")
    parser.add_argument("--jobs", type=int, default=2, help="mistakes judged at the same time")
    parser.add_argument("--markdown", action="store_true", help="end with the table of docs/appendix/fault-tests.md")
    arguments = parser.parse_args()
    mistakes = load_mistakes()
    unknown = set(arguments.only or ()) - {mistake.name for mistake in mistakes}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(mistake.name for mistake in mistakes)}")
    if arguments.only:
        mistakes = [mistake for mistake in mistakes if mistake.name in arguments.only]
    os.environ["OMP_NUM_THREADS"] = "1"
    FORKS.set_forkserver_preload(list(PRELOADED))
    start = time.monotonic()
    verdicts: list[Verdict] = []
    with tempfile.TemporaryDirectory() as folder:
        snapshot = Path(folder) / "tree"
        copy_tracked(snapshot)
        problem = check_copy(snapshot)
        if problem is not None:
            print(f"{problem}\nthe tests of a copy would not test the copy", file=sys.stderr)
            return 2
        for verdict in judge_all(snapshot, mistakes, arguments.jobs):
            verdicts.append(verdict)
            place = f"[{len(verdicts):2}/{len(mistakes)}] {time.monotonic() - start:4.0f} s"
            print(
                f"{place}  {verdict.word:10}  {verdict.mistake.name}  {verdict.seconds:.0f} s  {verdict.by}", flush=True
            )
    caught = sum(verdict.word == "caught" for verdict in verdicts)
    if arguments.markdown:
        print(as_markdown(verdicts))
    print(f"{caught} of {len(mistakes)} caught in {(time.monotonic() - start) / 60:.1f} minutes")
    return 0 if caught == len(mistakes) else 1
