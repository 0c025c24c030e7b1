"""The picture of a summary shows the table's figures."""

import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from support.results import case, measurement

from tl_rome.counterfact.report.plot import plot_summary
from tl_rome.counterfact.report.summary import summarize
from tl_rome.counterfact.results import UNEDITED
from tl_rome.errors import InputError

BEFORE = measurement(False, [False], [True])
RESULTS = [
    *(case(i, measurement(True, [i > 1], [i > 0]), BEFORE) for i in range(4)),
    *(case(i, measurement(i > 0, [], [False]), BEFORE, editor="ft") for i in range(4)),
]


def test_points_and_intervals_are_those_of_the_table():
    summary = summarize(RESULTS, resamples=50)
    ax = plot_summary(summary, Figure().subplots(), columns=("ES", "PS", "NS"))
    handles, names = ax.get_legend_handles_labels()
    assert names == [UNEDITED, "rome", "ft"]
    for handle, name in zip(handles, names, strict=True):
        measured = [summary.rows[name][column] for column in ("ES", "PS", "NS") if summary.rows[name][column].n]
        assert isinstance(handle, ErrorbarContainer)
        points, _, (bars,) = handle.lines
        assert points.get_ydata() == pytest.approx([each.mean for each in measured])
        drawn = [y for (_, low), (_, high) in bars.get_segments() for y in (low, high)]
        assert drawn == pytest.approx([y for each in measured for y in (each.low, each.high)])
        if name == "ft":
            assert len(points.get_ydata()) == 2, "ft has no paraphrases"
    assert "n = 4 records" in ax.get_title()


def test_columns_that_do_not_exist_are_refused():
    with pytest.raises(InputError, match="name some of S, ES"):
        plot_summary(summarize(RESULTS), Figure().subplots(), columns=("XX",))
