import pytest

from lra.config.yaml_loader import load_file, load_text
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
    ],
)
def test_refuses_in_one_line(text, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_text(text, "f")
    assert "\n" not in str(caught.value)


def test_missing_and_binary_files_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        load_file(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="binary"):
        load_file(tmp_path / "binary.yaml")
