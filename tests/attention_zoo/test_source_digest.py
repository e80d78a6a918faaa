"""The digest of Python code: changed by every change of the code, by nothing else."""

import pytest

from attention_zoo.source_digest import code_digest


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("x = 1", "x = True"),
        ("x = 1", "x = 1.0"),
        ("f(**a)", "f(a)"),
        ("{**a}", "{a: 1}"),
        ("x = 'a'", "x = b'a'"),
        ("x = {None: y}", "x = {**y}"),
        ("def f(*, a): 1", "def f(*, a=None): 1"),
    ],
)
def test_constants_and_calls_are_told_apart(one, other):
    assert code_digest(one.encode()) != code_digest(other.encode())


def test_the_digest_of_a_text_is_the_same_in_every_version_of_python():
    text = "def f(a, *, b=None, **c):\n    'doc'\n    return f'{a!r:>{b}}' 'x', [*c], {**c, 'k': -1.0}, a[1:, ...]\n"
    assert code_digest(text.encode())[:16] == "e378ccddbb64b763"


def test_comments_docstrings_and_layout_do_not_count():
    one = '"""A module."""\ndef f(x):\n    \'Doc.\'\n    return 2 * x  # twice\n'
    other = "# other\n\ndef f(x):\n    'More.'\n\n    return (2\n        * x)\n"
    assert code_digest(one.encode()) == code_digest(other.encode())
    assert code_digest(b"def (") == code_digest(b"x = 1" + b" + 1" * 900) == ""
