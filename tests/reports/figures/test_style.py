"""The style of figures: ticks of logarithmic axes, and the look of each variant."""

import itertools

import pytest

from attention_zoo import available
from attention_zoo.registry import plugin_origin
from reports.figures.style import COLOURS, IN_ORDER, REFERENCE_COLOUR, look_of, new_figure, plain_ticks


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


def test_every_variant_of_this_project_has_its_place_among_the_colours():
    own = {name for name in available() if not plugin_origin(name)}
    assert set(IN_ORDER) == own - {"full"}
    assert len(IN_ORDER) == len(set(IN_ORDER))


def test_no_two_variants_of_this_project_look_alike():
    looks = [look_of(name) for name in ("full", *IN_ORDER)]
    assert len(set(looks)) == len(IN_ORDER) + 1
    assert [look.colour for look in looks].count(REFERENCE_COLOUR) == 1
    assert look_of("unheard_of") == look_of("unheard_of")
    assert look_of("unheard_of").colour in COLOURS
    assert look_of("local", 1) != look_of("local")
    assert look_of("local", 1).colour == look_of("local").colour
