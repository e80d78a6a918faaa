"""The pages about variants: one is current, the code of the other works."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from attention_zoo import VariantSpec, available
from attention_zoo.registry import plugin_origin
from runners.cli import variant_docs

ROOT = Path(__file__).resolve().parents[2]
GUIDE = (ROOT / "docs" / "add-a-variant.md").read_text(encoding="utf-8")


def blocks() -> dict[str, str]:
    """Read the files that the guide shows, by path."""
    return {
        name: f"{code}\n"
        for name, code in re.findall(r"^```(?:python|toml)\n# ([\w/.]+)\n(.*?)\n```$", GUIDE, re.DOTALL | re.MULTILINE)
    }


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out the guide's package as an installer would: its files, and a dist-info with the entry point."""
    folder = tmp_path_factory.mktemp("site")
    files = blocks()
    for name, code in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    project = tomllib.loads(files["pyproject.toml"])["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


def python(package: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": f"{package}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=package, env=environment, capture_output=True, text=True, check=False
    )


def test_the_guide_shows_its_three_files():
    assert set(blocks()) == {"my_mixers/mean_gate.py", "pyproject.toml", "tests/test_mean_gate.py"}


@pytest.mark.nightly  # the test after it makes the same checks by the name of the variant
def test_the_guides_variant_passes_its_own_test(package):
    done = python(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/test_mean_gate.py")
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert f"mean_gate: {passed[1]} of {passed[1]} checks passed" in GUIDE


@pytest.mark.nightly
def test_the_guides_variant_is_found_described_and_checked_by_name(package):
    code = "main(['describe', 'mean_gate'], standalone_mode=False); main(['check', 'Mean-Gate'])"
    done = python(package, "-c", f"from runners.cli.zoo import main; {code}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "my-mixers 0.1.0" in done.stdout
    assert "how much of its own value a token keeps" in done.stdout
    shown = re.search(r"\$ lra-zoo check mean_gate\n(.*?)```", GUIDE, re.DOTALL)
    assert shown is not None
    assert [line for line in shown[1].splitlines() if line != "..." and line not in done.stdout] == []


def test_the_guide_names_every_method_that_may_be_overridden():
    from attention_zoo import SequenceMixer

    hooks = [name for name, value in vars(SequenceMixer).items() if callable(value) and not name.startswith("_")]
    hooks = sorted(set(hooks) - {"forward", "check_input", "dropped"})
    assert len(hooks) >= 6
    assert hooks == sorted(re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE))


@pytest.fixture(scope="module")
def own_specs() -> list[VariantSpec]:
    specs, problems = variant_docs.catalogue(own_only=True)
    assert problems == []
    return specs


def test_the_pages_of_variants_are_current(own_specs):
    assert {spec.name for spec in own_specs} == {name for name in available() if not plugin_origin(name)}
    assert len(own_specs) >= 39
    page = (ROOT / "docs" / "variants.md").read_text(encoding="utf-8")
    details = (ROOT / "docs" / "appendix" / "variants-details.md").read_text(encoding="utf-8")
    assert page == variant_docs.page(own_specs), "run `lra-zoo docs`"
    assert details == variant_docs.details(own_specs), "run `lra-zoo docs`"
    for spec in own_specs:
        first, second = (text.partition(f"\n## {spec.name}\n")[2].partition("\n## ")[0] for text in (page, details))
        assert f"| {spec.title} " in page
        refers = spec.name == "contextpool_conv_only"
        assert ("See [`contextpool`](#contextpool)." in first) == refers
        assert refers or all(number in first + second for number in re.findall(r"arXiv:[\d.]+", spec.paper))
        assert all(f"`{name}={default!r}`" in second for name, _, default, _ in spec.config.describe())


def test_nothing_of_a_docstring_is_lost_or_shown_twice(own_specs):
    for spec in own_specs:
        text = variant_docs._docstring(spec)
        first, second = variant_docs.split_docstring(text)
        assert "\n\n".join(first + second) == text
        assert not any(part.startswith("Departures") for part in first)
        assert not first[-1].endswith((":", ",")), spec.name


def test_a_formula_and_its_letters_stay_with_the_idea():
    long = " ".join(["word"] * variant_docs.SHORT) + ":"
    letters = "with w the word."
    text = "\n\n".join(["Title.", long, "    w = 1,", letters, "More.", "Departures:", "- one"])
    assert variant_docs.split_docstring(text) == (
        ["Title.", long, "    w = 1,", letters],
        ["More.", "Departures:", "- one"],
    )
    listed = ["Title.", "Two kinds:", "- a\n- b", "More.", "Departures:", "- one"]
    assert variant_docs.split_docstring("\n\n".join(listed)) == (listed[:3], listed[3:])
    late = ["Title.", "Idea.", "Two kinds:", "- a\n- b"]
    assert variant_docs.split_docstring("\n\n".join(late)) == (late[:2], late[2:])


def test_the_page_says_what_few_variants_have(own_specs):
    (full,) = (spec for spec in own_specs if spec.name == "full")
    traits = replace(full.traits, memory="quadratic", padding_length_invariant=False, waivers={"reach": "it is wide"})
    page = variant_docs.page([replace(full, traits=traits)])
    for remark in (
        "`full` (quadratic)",
        "amount of padding for `full`.",
        "Waived checks: `full` (reach, because it is wide).",
    ):
        assert remark in page
        assert remark not in variant_docs.page([full])


def test_the_pages_link_to_every_section(own_specs):
    page, details = variant_docs.page(own_specs), variant_docs.details(own_specs)
    names = [spec.name for spec in own_specs]
    assert re.findall(r"^\| \[`\w+`\]\(#(\w+)\)", page, re.MULTILINE) == names
    assert re.findall(r"^## (\w+)$", page, re.MULTILINE) == names
    assert re.findall(r"variants-details.md#(\w+)", page) == re.findall(r"^## (\w+)$", details, re.MULTILINE) == names
