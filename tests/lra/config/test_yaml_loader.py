import contextlib
import json
import math
import os
import time

import pytest
import yaml

from lra.config.yaml_loader import dump_text, load_file, load_text
from lra.errors import UsageError


def test_scalars_are_those_of_yaml_1_2():
    text = "a: 1e-3\nb: no\nc: 010\nd: 12:30:45\ne: .5\nf: -1.5e+3\ng: null\nh: true\ni: [1, -2, 3.]\nj:\nk: off"
    assert load_text(text, "f") == {
        "a": 0.001, "b": "no", "c": "010", "d": "12:30:45", "e": 0.5, "f": -1500.0, "g": None, "h": True,
        "i": [1, -2, 3.0], "j": None, "k": "off",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", r"^f:3:1: duplicate key 'a'$"),
        ("a: {x: 1, x: 2}", "duplicate key 'x'"),
        ("a: &x 1\nb: *x", "aliases are not allowed"),
        ("!!python/object/apply:os.system [x]", "tags are not allowed"),
        ("a: !!str 3", "tags are not allowed"),
        ("[" * 3000, "nested deeper than 50"),
        ("a: [1", "expected ',' or ']'"),
        ("a: b: c", "mapping values are not allowed"),
        ("a: \x00", "not readable as YAML"),
        ("1: 2", "key 1 is not text"),
        ("a" * (1 << 21), "larger than"),
        ("a: 'b\x85c'", r'^f: the character U\+0085 is read as a line break; write "\\u0085" for it$'),
        ("a: b\u2028c", r"U\+2028"),
        (r'{"a": "\ud83d"}', "not readable as YAML"),
        ("a: 1e999", "a number that is too large"),
        ("a: -1e999", "a number that is too large"),
        ("9" * 5000, "a number of more than 18 digits"),
        ("-" + "9" * 18, "a number of more than 18 digits"),
        pytest.param("[" + "1," * 20_000 + "1]", "more than 20,000 keys and values", marks=pytest.mark.nightly),
        ("{" + ", ".join(f"k{n}: 1" for n in range(15_000)) + "}", "more than 20,000 keys and values"),
    ],
)
def test_refuses_in_one_line(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_text(text, "f")
    assert "\n" not in str(caught.value)


TEXTS = [
    "1e5",
    "-2E5",
    ".5",
    "1.",
    "no",
    "12:30",
    "~",
    "",
    "1_000",
    "a\x85b",
    "a\u2028b",
    "\U0001f600",
    " x ",
    "a: b",
    "null",
]


def test_what_is_written_is_read_as_the_same_values():
    values = {"texts": TEXTS, "numbers": [1e5, 1e-5, 0.5, 10, -3, 1e22], "none": None, "yes": True}
    assert load_text(dump_text(values), "f") == values
    plain = yaml.safe_dump(values)  # the broken twin: text that becomes a number
    assert load_text(plain, "f")["texts"][0] == 1e5
    assert load_text(json.dumps(values), "f") == values  # with characters beyond U+FFFF as two halves


def test_what_a_plain_loader_would_take():
    """The broken twin: without the limits, infinity and 5,000 digits become values."""
    assert yaml.safe_load("a: .inf") == {"a": math.inf}
    assert float("1e999") == math.inf
    assert load_text("[9e307, 999999999999999999, -99999999999999999]", "f")[1] == 10**18 - 1


@pytest.mark.parametrize(
    "text",
    [
        "[" + "1," * 130_000 + "1]",
        pytest.param("a:\n" + "- 1\n" * 60_000, marks=pytest.mark.nightly),
        "\n" * 260_000,
        "{" + "a: {" * 49,
    ],
)
def test_a_text_of_the_longest_length_is_read_or_refused_soon(text):
    started = time.process_time()
    with pytest.raises(UsageError) if text.strip() else contextlib.nullcontext():
        load_text(text, "f")
    assert time.process_time() - started < 3


@pytest.mark.timeout(10)
def test_a_pipe_is_no_file_of_settings(tmp_path):
    os.mkfifo(tmp_path / "x.yaml")
    with pytest.raises(UsageError, match="a pipe"):
        load_file(tmp_path / "x.yaml")


def test_missing_and_binary_files_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_file(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="binary"):
        load_file(tmp_path / "binary.yaml")
