"""Heat maps: what is drawn where, and that drawing neither warns nor changes settings."""

import warnings
from dataclasses import replace
from typing import Any

import matplotlib
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure
from support.trace_example import RESULT

from tl_rome.errors import InputError
from tl_rome.patching import plot_trace, plot_traces
from tl_rome.tokens import SubjectSpan


@pytest.fixture
def ax():
    return Figure().subplots()


@pytest.fixture
def drawn_without_warnings():
    """Draw the figure of some axes; anything that matplotlib complains of is an error."""

    def draw(ax):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ax.figure.canvas.draw()
        return ax

    yield draw
    pyplot.close("all")


def texts(ticks):
    return [label.get_text() for label in ticks]


def test_layers_run_along_x_and_starred_tokens_down_y(ax, drawn_without_warnings):
    assert plot_trace(RESULT, ax) is ax
    drawn_without_warnings(ax)
    assert texts(ax.get_yticklabels()) == ["The*", " Louvre*", " is"]
    assert texts(ax.get_xticklabels()) == ["0", "5"]
    assert ax.get_xticks().tolist() == [0.5, 5.5]
    assert ax.yaxis_inverted(), "the first token is on top"
    assert ax.get_xlabel() == "restored layer"
    assert ax.get_title() == "The Louvre* is → Paris\nRestoring single hidden states"
    (mesh,) = ax.collections
    assert mesh.get_array().reshape(3, 8).tolist() == RESULT.scores.T.tolist()
    assert mesh.colorbar.ax.get_ylabel() == "P(Paris)"


def test_the_first_token_is_on_top_on_axes_that_share_their_tokens_too():
    axes = Figure().subplots(1, 2, sharey=True)
    for ax in axes:
        plot_trace(RESULT, ax)
    assert all(ax.yaxis_inverted() for ax in axes)


@pytest.mark.parametrize(
    ("component", "cmap", "what"),
    [
        ("resid_post", "Purples", "single hidden states"),
        ("mlp_out", "Greens", "MLP outputs"),
        ("attn_out", "Reds", "attention outputs"),
        ("attn.hook_z", "Greys", "attn.hook_z"),
    ],
)
def test_each_component_has_its_colour_and_title(ax, component, cmap, what):
    plot_trace(replace(RESULT, component=component), ax)
    assert ax.collections[0].get_cmap().name == cmap
    assert ax.get_title() == f"The Louvre* is → Paris\nRestoring {what}"


def test_windows_are_named_and_a_title_can_be_given(ax):
    plot_trace(replace(RESULT, component="mlp_out", window=10), ax, title="My title")
    assert ax.get_title() == "My title"
    assert ax.get_xlabel() == "centre of the restored layers"
    plot_trace(replace(RESULT, component="mlp_out", window=10), other := Figure().subplots())
    assert other.get_title() == "The Louvre* is → Paris\nRestoring runs of 10 MLP outputs"


def test_white_is_the_corrupted_score_and_full_colour_the_best(ax):
    plot_trace(RESULT, ax)
    mesh = ax.collections[0]
    assert (mesh.norm.vmin, mesh.norm.vmax) == (0.1, RESULT.scores.max().item())
    assert min(mesh.cmap(mesh.norm(0.1))[:3]) > 0.95


def test_a_scale_can_be_given_and_what_lies_beyond_it_is_marked(ax, drawn_without_warnings):
    plot_trace(RESULT, ax, vmax=0.5)
    bar: Any = ax.collections[0].colorbar
    assert (bar.vmin, bar.vmax, bar.extend) == (0.1, 0.5, "max")
    assert bar.ax.get_ylabel() == "P(Paris)"
    low = replace(RESULT, corrupted_score=0.2)
    plot_trace(low, other := Figure().subplots())
    bar = other.collections[0].colorbar
    assert (bar.vmin, bar.extend, bar.ax.get_ylabel()) == (0.2, "min", "P(Paris)\nwhite: ≤ corrupted")
    drawn_without_warnings(other)
    noising = replace(RESULT, direction="noising", clean_score=0.5)
    plot_trace(noising, third := Figure().subplots())
    assert third.collections[0].colorbar.ax.get_ylabel() == "P(Paris)\nwhite: ≥ clean"


def test_heads_are_drawn_by_layer_at_one_position(drawn_without_warnings):
    scores = torch.stack([RESULT.scores, RESULT.scores.flip(0) + 0.05], -1)
    heads = replace(RESULT, scores=scores, units=("0", "1"), component="attn.hook_z")
    ax = drawn_without_warnings(plot_trace(heads))
    layer, position, score, unit = heads.strongest()
    drawn = ax.collections[0].get_array().reshape(2, 8)
    assert drawn.tolist() == scores[:, position].T.tolist()
    assert drawn[heads.units.index(unit), layer] == drawn.max() == score
    assert texts(ax.get_yticklabels()) == ["0", "1"]
    assert ax.get_title().endswith("Restoring attn.hook_z, at ' is'")
    other = plot_trace(heads, Figure().subplots(), position=0)
    assert other.collections[0].get_array().reshape(2, 8).tolist() == scores[:, 0].T.tolist()
    assert other.get_title().endswith(", at 'The'")
    with pytest.raises(InputError, match="position 3 is none"):
        plot_trace(heads, position=3)


def test_traces_of_one_prompt_stand_side_by_side_on_one_scale(drawn_without_warnings):
    weak = replace(RESULT, scores=0.1 + (RESULT.scores - 0.1) / 50, component="mlp_out")
    axes = plot_traces([RESULT, weak], shared_scale=True)
    drawn_without_warnings(axes[0])
    top = RESULT.scores.max().item()
    assert [ax.collections[0].norm.vmax for ax in axes] == [top, top]
    assert axes[0].figure.get_suptitle() == "The Louvre* is → Paris"
    assert [ax.get_title() for ax in axes] == ["Restoring single hidden states", "Restoring MLP outputs"]
    own = plot_traces([RESULT, weak], Figure().subplots(1, 2))
    assert own[1].collections[0].norm.vmax == weak.scores.max().item()
    with pytest.raises(InputError, match="several prompts"):
        plot_traces([RESULT, replace(RESULT, prompt="Big Ben is")])
    with pytest.raises(InputError, match="one metric"):
        plot_traces([RESULT, replace(RESULT, metric="logprob")], shared_scale=True)


def test_long_prompts_are_wrapped():
    prompt = "word " * 40 + "The Louvre is"
    title = plot_trace(replace(RESULT, prompt=prompt), Figure().subplots()).get_title()
    assert max(map(len, title.splitlines())) <= 60


def test_a_trace_without_effect_can_be_drawn(ax, drawn_without_warnings):
    plot_trace(replace(RESULT, scores=torch.full((8, 3), 0.05, dtype=torch.float64)), ax)
    drawn_without_warnings(ax)
    assert ax.collections[0].norm.vmin < ax.collections[0].norm.vmax


def test_a_prompt_of_one_token_and_a_model_of_one_layer(drawn_without_warnings):
    one = replace(RESULT, scores=RESULT.scores[:1, :1], labels=("Rome",), subject=SubjectSpan(0, 1))
    ax = drawn_without_warnings(plot_trace(one))
    assert texts(ax.get_yticklabels()) == ["Rome*"]
    assert texts(ax.get_xticklabels()) == ["0"]


def test_odd_labels_are_drawn_as_text(drawn_without_warnings):
    labels = ("costs $x^2$", " $", "_{東")
    ax = drawn_without_warnings(plot_trace(replace(RESULT, labels=labels, answer=" 東$_京$")))
    # No font of matplotlib's own has these characters; an escape says more than a box, and drawing it does not warn.
    assert texts(ax.get_yticklabels()) == ["costs $x^2$*", " $*", r"_{\u6771"]
    bar_label = ax.collections[0].colorbar.ax.yaxis.label
    assert bar_label.get_text() == r"P(\u6771$_\u4eac$)"
    assert not any(label.get_parse_math() for label in [*ax.get_yticklabels(), bar_label])


@pytest.mark.filterwarnings("error")
def test_no_setting_and_no_open_figure_is_left_changed():
    figures = pyplot.get_fignums()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        settings = dict(matplotlib.rcParams)
        plot_trace(RESULT, Figure().subplots())
        assert dict(matplotlib.rcParams) == settings
    assert pyplot.get_fignums() == figures
