"""Curves show the figures that they were given, and a picture is drawn."""

import math
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest

from tl_rome.counterfact.experiments.curve import CURVES, Curve
from tl_rome.counterfact.experiments.plot import plot_sequential, plot_sweep, sequential_figure, sweep_figure
from tl_rome.counterfact.experiments.sequential_result import SequentialResult
from tl_rome.counterfact.report.tables import Estimate
from tl_rome.errors import InputError


def curve(along, *x, start=10.0):
    rows = tuple(
        {name: Estimate(start + 5 * i + j, 1.0, 99.0, 7) for j, name in enumerate(CURVES)} for i in range(len(x))
    )
    return Curve("ft", along, x, rows, rows[0])


def many(start):
    return SequentialResult(curve("facts", 1, 10, start=start), (3.0,) * 3, (2.0,) * 3, (0.0, 0.1, 0.2), {})


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def drawn(ax):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.get_lines()}


def test_a_sweep_has_a_line_and_a_band_for_every_score(ax):
    assert plot_sweep(curve("layer", 0, 3), ax) is ax
    assert drawn(ax) == {name: ([0, 3], [10.0 + j, 15.0 + j]) for j, name in enumerate(CURVES)}
    assert len(ax.collections) == len(CURVES)
    extents = ax.collections[0].get_paths()[0].get_extents()
    assert (extents.ymin, extents.ymax) == (1.0, 99.0)
    assert (ax.get_xlabel(), ax.get_title(), ax.get_xscale()) == ("layer", "ft, 7 records", "linear")
    assert all(float(tick).is_integer() for tick in ax.get_xticks())
    assert len({line.get_marker() for line in ax.get_lines()}) == len(CURVES)


def test_epsilon_is_drawn_on_a_logarithmic_axis_and_a_title_can_be_given(ax):
    plot_sweep(curve("epsilon", 1e-4, 1e-3), ax, title="mine")
    assert (ax.get_xscale(), ax.get_title()) == ("log", "mine")


def test_sequential_edits_have_a_line_for_every_editor(ax):
    assert plot_sequential({"rome": many(50.0), "ft": many(20.0)}, ax, column="PS") is ax
    assert drawn(ax) == {"rome": ([1, 10], [52.0, 57.0]), "ft": ([1, 10], [22.0, 27.0])}
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["rome", "ft"]
    with pytest.raises(InputError, match="column 'GE'"):
        plot_sequential({"rome": many(1.0)}, ax, column="GE")
    with pytest.raises(InputError, match="0 results"):
        plot_sequential({}, ax)


def test_gaps_are_drawn_as_gaps(ax):
    gap = {name: Estimate(math.nan, math.nan, math.nan, 0) for name in CURVES}
    plot_sweep(Curve("ft", "layer", (0, 1), (gap, curve("layer", 0).rows[0]), gap), ax)
    assert math.isnan(drawn(ax)["S"][1][0])
    ax.figure.canvas.draw()


def test_figures_have_a_panel_each():
    sweeps = sweep_figure([curve("layer", 0, 3), curve("epsilon", 1e-4, 1e-3)])
    assert [ax.get_xlabel() for ax in sweeps.axes] == ["layer", "epsilon"]
    panels = sequential_figure({"rome": many(50.0)})
    assert [[text.get_text() for text in each.get_texts()] for each in panels.legends] == [["rome"]]
    assert all(ax.get_legend() is None for ax in panels.axes)
    assert [ax.get_title() for ax in panels.axes] == [*CURVES, "text NLL", "|dW|/|W|"]
    assert drawn(panels.axes[-1]) == {"rome": ([1, 10], [0.1, 0.2])}
    panels.canvas.draw()


def test_batches_have_a_panel_of_their_first_facts(ax):
    batches = replace(many(50.0), first=curve("facts", 1, 10, start=20.0))
    panels = sequential_figure({"memit": batches}, logarithmic=True)
    assert drawn(panels.axes[4]) == {"memit": ([1, 10], [21.0, 26.0])}
    assert {ax.get_xscale() for ax in panels.axes} == {"log"}
    with pytest.raises(InputError, match="no column 'first ES' of 'ft'"):
        plot_sequential({"rome": many(50.0)}, ax, column="first ES")
