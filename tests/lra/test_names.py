"""Titles that print alike are equal."""

import pytest

from lra.names import legible


@pytest.mark.parametrize("title", ["Full attention", "ContextPool Ω²", "naïve 1.0", "局所"])
def test_a_title_that_can_be_read_stays(title):
    assert legible(title) == title


@pytest.mark.parametrize(
    "title",
    [
        "Mixer ",
        " Mixer",
        "Mix\u200ber",
        "Mix\u00ader",
        "Mixer\ufe0f",
        "\u2060Mixer",
        "Mixer\u3164",
        "Mixer\n",
        "Mixer\u00a0",
    ],
)
def test_what_cannot_be_seen_is_left_out(title):
    assert legible(title) == "Mixer"


def test_all_spaces_are_alike():
    assert legible("Two \t\u2003 words\u00a0here") == "Two words here"
