"""Average maps and lines: what is drawn where, legibly in grey, without a warning."""

import warnings
from dataclasses import replace

import matplotlib
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from support.average_example import LAYERS, average_of, made_trace

from tl_rome.errors import InputError
from tl_rome.patching.averaging.roles import ROLES
from tl_rome.patching.plots.average import plot_average, plot_averages, plot_roles

RESULTS = [made_trace(1, 4, 8, seed=seed) for seed in range(4)]
AVERAGE = average_of(RESULTS)
NO_MIDDLE = average_of([made_trace(1, 3, 6, seed=seed) for seed in range(4)])


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture(autouse=True)
def close_figures():
    yield
    pyplot.close("all")


def draw(ax):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ax.figure.canvas.draw()
    return ax


def grey(color):
    return float(torch.tensor(to_rgb(color)) @ torch.tensor([0.299, 0.587, 0.114]))


def test_layers_run_along_x_and_roles_down_y(ax):
    assert plot_average(AVERAGE, ax) is ax
    draw(ax)
    rows = [label.get_text() for label in ax.get_yticklabels()]
    assert rows == [f"{role}*" if "subject" in role else role for role in ROLES]
    (mesh,) = ax.collections
    assert mesh.get_array().reshape(len(ROLES), LAYERS).tolist() == AVERAGE.effects.T.tolist()
    assert ax.yaxis_inverted()
    assert ax.get_xlabel() == "centre of the restored layers"
    assert ax.get_title() == "Restoring runs of 3 MLP outputs, 4 prompts"
    assert mesh.colorbar.ax.get_ylabel() == "average indirect effect"


def test_white_is_no_effect_and_an_absent_role_is_hatched(ax):
    mesh = plot_average(NO_MIDDLE, ax).collections[0]
    draw(ax)
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0.0, NO_MIDDLE.effects.nan_to_num(-1).max().item())
    assert min(mesh.cmap(mesh.norm(0.0))[:3]) > 0.95
    row = mesh.get_array().reshape(len(ROLES), LAYERS)[1]
    assert row.mask.all()
    assert ax.patch.get_hatch()
    assert not plot_average(AVERAGE, Figure().subplots()).patch.get_hatch()


def test_when_noising_dark_is_what_lowers(ax):
    noising = average_of([replace(result, direction="noising") for result in RESULTS])
    mesh = plot_average(noising, ax).collections[0]
    draw(ax)
    assert mesh.norm.vmax == 0.0
    assert min(mesh.cmap(mesh.norm(0.0))[:3]) > 0.95
    assert grey(mesh.cmap(mesh.norm(noising.effects.min().item()))) < 0.4
    assert ax.get_title().startswith("Corrupting runs of 3 MLP outputs")


def test_three_maps_share_their_roles():
    averages = [
        average_of([replace(result, component=component) for result in RESULTS])
        for component in ("resid_post", "mlp_out", "attn_out")
    ]
    axes = plot_averages(averages)
    draw(axes[0])
    assert [ax.collections[0].get_cmap().name for ax in axes] == ["Purples", "Greens", "Reds"]
    assert all(ax.yaxis_inverted() for ax in axes)
    assert [len(ax.get_yticklabels()) for ax in axes] == [6, 0, 0]
    mine = Figure().subplots(1, 2)
    assert plot_averages(averages[:2], mine) == list(mine)
    with pytest.raises(InputError, match="3 averages need as many axes"):
        plot_averages(averages, mine)
    with pytest.raises(InputError, match="0 averages"):
        plot_averages([])


def test_lines_and_bands_are_effects_and_intervals(ax):
    assert plot_roles(AVERAGE, ax, roles=["last subject token", "last token"]) is ax
    draw(ax)
    lines = [line for line in ax.lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines] == ["last subject token*", "last token"]
    for line, band, role in zip(lines, ax.collections, ("last subject token", "last token"), strict=True):
        index = ROLES.index(role)
        assert line.get_ydata().tolist() == AVERAGE.effects[:, index].tolist()
        corners = band.get_paths()[0].vertices
        assert corners[:, 1].min() == AVERAGE.low[:, index].min()
        assert corners[:, 1].max() == AVERAGE.high[:, index].max()
    assert ax.get_ylabel() == "average indirect effect"
    assert "4 prompts (95% bands)" in ax.get_title()


def test_lines_can_be_told_apart_in_grey(ax):
    plot_roles(AVERAGE, ax, roles=ROLES)
    lines = [line for line in ax.lines if not line.get_label().startswith("_")]
    assert len({(line.get_marker(), str(line._dash_pattern)) for line in lines}) == len(ROLES)
    assert all(grey(line.get_color()) < 0.8 for line in lines), "pale lines vanish"


def test_roles_that_no_prompt_has_are_left_out_and_unknown_ones_refused(ax):
    plot_roles(NO_MIDDLE, ax, roles=ROLES)
    assert "middle subject tokens*" not in [line.get_label() for line in ax.lines]


def test_titles_can_be_given_and_new_figures_are_made():
    for plot in (plot_average, plot_roles):
        ax = draw(plot(AVERAGE, title="My title"))
        assert ax.get_title() == "My title"


def test_no_setting_and_no_open_figure_is_left_changed():
    figures = pyplot.get_fignums()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings = dict(matplotlib.rcParams)
        plot_average(AVERAGE, Figure().subplots())
        plot_roles(AVERAGE, Figure().subplots())
        assert dict(matplotlib.rcParams) == settings
    assert pyplot.get_fignums() == figures
