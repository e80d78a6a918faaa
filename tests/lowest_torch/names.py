"""Names and parameters of the lowest torch that pyproject.toml allows, to compare with those that the sources use.

With that version installed, `python -m tests.lowest_torch.names` writes the table `names.json` anew.
"""

import ast
import importlib
import inspect
import json
import pkgutil
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[2]
TABLE = Path(__file__).with_name("names.json")
Uses = set[tuple[str, tuple[str, ...]]]
"""Dotted names below torch, each with the keywords of a call; none for a use that is no call."""


def used(source: str) -> Uses:
    """List what a source uses of torch by name. Methods of tensors and modules are not seen."""
    tree, known, found = ast.parse(source), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name.partition(".")[0] == "torch":
                    known[each.asname or "torch"] = each.name if each.asname else "torch"
                    found.add((each.name, ()))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            known |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
            found |= {(f"{node.module}.{each.name}", ()) for each in node.names}

    def dotted(node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return known.get(node.id)
        owner = dotted(node.value) if isinstance(node, ast.Attribute) else None
        return owner and f"{owner}.{node.attr}"

    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := dotted(node.func)):
            found.add((name, tuple(sorted(word.arg for word in node.keywords if word.arg))))
        elif isinstance(node, ast.Attribute) and (name := dotted(node)):
            found.add((name, ()))
    return found


def missing(uses: Uses, table: dict[str, dict[str, list[str] | None]]) -> list[str]:
    """List the uses that the version of the table would refuse."""
    refused = []
    for name, keywords in sorted(uses):
        *owner, last = name.split(".")
        # The longest beginning that is a module; what comes after it is in the module, and the rest is not checked.
        while owner and ".".join(owner) not in table:
            last = owner.pop()
        if not owner or last.startswith("__"):
            continue  # torch itself, or what every module has
        is_whole = f"{'.'.join(owner)}.{last}" == name
        if name not in table and last not in table[".".join(owner)]:
            refused.append(name)
        elif is_whole and (parameters := table[".".join(owner)].get(last)) is not None:
            refused += [f"{name}({word}=)" for word in keywords if word not in parameters]
    return refused


def all_used() -> Uses:
    """List what the packages use of torch."""
    packages = ("attention_zoo", "contextpool", "lra", "runners", "reports")
    files = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    return set().union(*(used(path.read_text(encoding="utf-8")) for path in files))


def _modules(uses: Uses) -> dict[str, ModuleType]:
    found = {}
    for name, _ in uses:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            try:
                module = importlib.import_module(".".join(parts[:end]))
            except ImportError:
                break
            found[".".join(parts[:end])] = module
    return found


def _parameters(thing: object) -> list[str] | None:
    """Return the names of parameters; None if there is no signature or it takes any keyword."""
    try:
        parameters = inspect.signature(thing).parameters.values() if callable(thing) else []
    except (TypeError, ValueError):
        return None
    open_ended = not callable(thing) or any(each.kind is each.VAR_KEYWORD for each in parameters)
    return None if open_ended else [each.name for each in parameters]


def _content(where: str, module: ModuleType, uses: Uses) -> dict[str, list[str] | None]:
    if type(module) is not ModuleType:  # it makes its content when asked, as torch.ops does
        asked = {use.removeprefix(f"{where}.").partition(".")[0] for use, _ in uses if use.startswith(f"{where}.")}
        return {name: None for name in sorted(asked) if hasattr(module, name)}
    inside = {each.name for each in pkgutil.iter_modules(getattr(module, "__path__", []))}
    names = sorted(inside.union(name for name in dir(module) if not name.startswith("_")))
    return {name: _parameters(getattr(module, name, None)) for name in names}


if __name__ == "__main__":
    uses = all_used()
    table = {name: _content(name, module, uses) for name, module in sorted(_modules(uses).items())}
    lines = [f"{json.dumps(name)}: {json.dumps(names)}" for name, names in table.items()]
    TABLE.write_text("{\n" + ",\n".join([f'"version": "{torch.__version__.partition("+")[0]}"', *lines]) + "\n}\n")
