"""The style of figures: ticks of logarithmic axes, and the look of each variant."""

import itertools

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_zoo import available
from attention_zoo.registry import plugin_origin
from reports.figures.style import COLOURS, IN_ORDER, REFERENCE_COLOUR, looks, new_figure, plain_ticks, shown, wrapped


@pytest.mark.parametrize(
    ("low", "high"), [(1, 1000), (497, 676), (430, 480), (8, 21), (41e3, 55e3), (500, 1250), (2, 9)]
)
def test_ticks_of_a_logarithmic_axis_are_round_and_apart(low, high):
    axes = new_figure(2.0).subplots()
    axes.set(xscale="log", xlim=(low, high))
    plain_ticks(axes.xaxis, low, high)
    ticks = axes.xaxis.get_majorticklocs()
    assert 2 <= len(ticks) <= 5
    assert all(len(f"{tick:g}".rstrip("0").replace(".", "").strip("0")) <= 3 for tick in ticks)
    assert all((b / a) ** 7.5 > high / low for a, b in itertools.pairwise(ticks))


def look_of(variant):
    """The look of a variant alone, which depends on its registered name."""
    return looks(pd.DataFrame({"variant": [variant], "label": [variant]}))[variant]


def test_every_variant_of_this_project_has_its_place_among_the_colours():
    own = {name for name in available() if not plugin_origin(name)}
    assert set(IN_ORDER) == own - {"full"}
    assert len(IN_ORDER) == len(set(IN_ORDER))


def test_no_two_variants_of_this_project_look_alike():
    drawn = [look_of(name) for name in ("full", *IN_ORDER)]
    assert len(set(drawn)) == len(IN_ORDER) + 1
    assert [look.colour for look in drawn].count(REFERENCE_COLOUR) == 1
    assert look_of("unheard_of") == look_of("unheard_of")
    assert look_of("unheard_of").colour in COLOURS
    assert len({(look.colour, look.marker) for look in drawn}) == len({(x.colour, x.dash) for x in drawn}) == len(drawn)


def test_labels_of_one_variant_share_its_colour_and_differ_in_their_marker():
    labels = [("full", "full"), ("local", "local"), ("s4d", "s4d"), *(("mine", f"mine [{k}]") for k in range(9))]
    labels += [("local", f"local [{k}]") for k in range(5)]
    frame = pd.DataFrame(labels, columns=["variant", "label"])
    found = looks(frame)
    assert {found[label].colour for variant, label in labels if variant == "local"} == {look_of("local").colour}
    assert len({(look.colour, look.marker) for look in found.values()}) == len(labels)
    assert {name: found[name] for name in ("full", "local", "s4d")} == {n: look_of(n) for n in ("full", "local", "s4d")}
    assert len(set(looks(frame[frame["variant"] == "mine"][:7]).values())) == 7


def test_a_long_name_is_cut_in_the_middle():
    assert shown("a" * 20 + "b" * 21) == "a" * 18 + "..." + "b" * 19
    assert shown("n" * 40) == "n" * 40


@pytest.mark.parametrize("lines", [1, 4])
def test_names_that_are_cut_stay_different_and_keep_their_ends(lines):
    start, end = (
        "ContextPool [base=local, base_options={'rotary': False, ",
        "'backend': 'auto'}, kernel_size=5]",
    )
    middle = [f"{start}'window': {window}, 'bias': 'none', {end}" for window in (25, 50)]
    names = [*middle, middle[0] + " (1 of 3 runs)", middle[0] + " (2 of 3 runs)", "local"]
    found = wrapped(names, 24, lines)
    assert len(set(found)) == 5
    assert found[-1] == "local"
    for count, text in ((1, found[2]), (2, found[3])):
        assert text.replace("\n", " ").endswith(f"({count} of 3 runs)")
    assert max(len(line) for text in found for line in text.split("\n")) <= 24
    (alone,) = wrapped(middle[:1], 24, lines)
    assert alone.count("\n") < lines
    assert "..." in alone


@given(st.lists(st.text(alphabet="ab", max_size=60), min_size=1, max_size=6), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_as_many_names_as_there_are_look_different(names, lines):
    assert len(set(wrapped(names, 8, lines))) == len(set(names))
