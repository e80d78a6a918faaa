"""The style of figures: ticks of logarithmic axes, and the look of each variant."""

import itertools

import pandas as pd
import pytest

from attention_zoo import available
from attention_zoo.registry import plugin_origin
from reports.figures.style import COLOURS, IN_ORDER, REFERENCE_COLOUR, looks, new_figure, plain_ticks


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
