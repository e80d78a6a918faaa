# SPDX-License-Identifier: Apache-2.0
"""YAML that means what it says: YAML 1.2 scalars, no duplicate keys, no aliases, no tags, bounded size and depth.

JSON is read as well. What `dump_text` writes is read as the same values.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from lra.errors import UsageError
from lra.reading import read_file, reason

MAX_BYTES = 1 << 18
"""Bytes of a file; the longest of this project has 8,000."""
MAX_NODES = 20_000
"""Keys and values; reading so many takes two seconds."""
MAX_DIGITS = 18
"""Of an integer, its sign included: below 2^63 in any case."""
MAX_DEPTH = 50
_LINE_BREAKS = re.compile("[\x85\u2028\u2029]")
"""Line breaks for YAML 1.1, and characters like others for JSON and for an editor."""


class SeveralDocumentsError(UsageError):
    """Text with more than one document, where one is expected."""


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema: `1e-3` is a number, `no` and `12:30` are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - the base class's form

    depth = nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]  # the stubs leave it untyped
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=mark)
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag is not None:
            raise yaml.MarkedYAMLError(problem="tags are not allowed", problem_mark=mark)
        self.depth, self.nodes = self.depth + 1, self.nodes + 1
        if self.nodes > MAX_NODES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_NODES:,} keys and values")
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_INTEGER = re.compile(r"^[-+]?(0|[1-9][0-9]*)$")
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$")
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), list("tf"))
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(null|~|)$"), ["n", "~", ""])
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:int", _INTEGER, list("-+0123456789"))
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.MarkedYAMLError(problem=f"key {key!r:.80} is not text", problem_mark=key_node.start_mark)
        if key in result:
            raise yaml.MarkedYAMLError(problem=f"duplicate key {key[:80]!r}", problem_mark=key_node.start_mark)
        result[key] = loader.construct_object(value_node, deep=True)
    return result


def _text(_: _StrictLoader, node: yaml.ScalarNode) -> str:
    # JSON may write a character beyond U+FFFF as two, each half of it.
    return node.value.encode("utf-16", "surrogatepass").decode("utf-16")


def _integer(_: _StrictLoader, node: yaml.ScalarNode) -> int:
    if len(node.value) > MAX_DIGITS:
        raise yaml.MarkedYAMLError(problem=f"a number of more than {MAX_DIGITS} digits", problem_mark=node.start_mark)
    return int(node.value)


def _real(_: _StrictLoader, node: yaml.ScalarNode) -> float:
    value = float(node.value)
    if not math.isfinite(value):
        raise yaml.MarkedYAMLError(problem="a number that is too large", problem_mark=node.start_mark)
    return value


_StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping)
_StrictLoader.add_constructor("tag:yaml.org,2002:str", _text)
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _integer)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _real)


def load_text(text: str, origin: str) -> Any:
    """Parse YAML text; `origin` names it in errors.

    Raises:
        UsageError: One line, `origin:line:column: what is wrong`.
        SeveralDocumentsError: The text goes on after a line `---`.
    """
    if len(text) > MAX_BYTES:
        raise UsageError(f"{origin}: larger than {MAX_BYTES} characters")
    if odd := _LINE_BREAKS.search(text):
        code = f"{ord(odd[0]):04x}"
        raise UsageError(f'{origin}: the character U+{code.upper()} is read as a line break; write "\\u{code}" for it')
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{origin}:{mark.line + 1}:{mark.column + 1}" if mark is not None else origin
        kind = SeveralDocumentsError if error.problem == "but found another document" else UsageError
        raise kind(f"{place}: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UsageError(f"{origin}: not readable as YAML: {reason(error)}") from error


class _Dumper(yaml.SafeDumper):
    """SafeDumper that puts text in quotes also where `_StrictLoader` would take it for a number, such as `1e5`."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the base class's form
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *_StrictLoader.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_StrictLoader.yaml_implicit_resolvers}
    }


def dump_text(values: dict[str, Any]) -> str:
    """Write plain values as YAML, which `load_text` reads as the same values."""
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False)
    return text


def load_file(path: Path) -> Any:
    """Parse a YAML file.

    Raises:
        UsageError: The file is missing, not UTF-8, or not acceptable YAML.
    """
    try:
        text = read_file(path, MAX_BYTES, UsageError).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: {error}") from error
    return load_text(text, str(path))
