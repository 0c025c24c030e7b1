"""Heat maps in the paper's manner: layers along x, tokens along y, subject tokens starred (figure 1 e, f, g)."""

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from tl_rome.arguments import Finite, Whole
from tl_rome.errors import InputError
from tl_rome.figures import drawable, new_axes
from tl_rome.patching.result import TraceResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tl_rome.patching.averaging.average import AverageTrace

_STYLE = {
    "resid_post": ("Purples", "single hidden states"),
    "mlp_out": ("Greens", "MLP outputs"),
    "attn_out": ("Reds", "attention outputs"),
}
"""Colour map and title of each component; colours as in the paper, all monotone in grey."""
_LINE = 60
"""Characters of a title's line."""


def plot_trace(
    result: TraceResult,
    ax: "Axes | None" = None,
    *,
    title: str | None = None,
    position: Whole | None = None,
    vmax: Finite | None = None,
) -> "Axes":
    """Draw one trace; colour is the score, white that of the run that was patched, dark the strongest effect.

    A trace of heads, or of groups of features, is drawn at one position: layers along x, units down y.

    Args:
        result: What `causal_trace` returned.
        ax: Axes to draw into; a new figure's by default.
        title: Replaces the default title, which has the prompt, its subject starred.
        position: Which token's units to draw, where there are units; by default that of the strongest effect.
        vmax: Score that is drawn darkest, for one scale in several figures; by default that of the strongest effect.

    Returns:
        The axes; nothing is shown or saved.

    Raises:
        InputError: If a position is given for a trace without units, or is none of the prompt's.
    """
    if ax is None:
        ax = new_axes(*figure_size(result))
    place = drawn_position(result, position)
    heat_map(
        ax,
        result.scores if place is None else result.scores[:, place],
        starred_labels(result) if place is None else result.units,
        result.component,
        base=result.base_score,
        darkest=vmax,
        falling=result.direction == "noising",
        name=_score_name(result),
        pale="clean" if result.direction == "noising" else "corrupted",
    )
    at = "" if place is None else f", at {result.labels[place]!r}"
    lines = [title] if title else [*starred_prompt(result), patched(result) + at]
    ax.set_title("\n".join(map(drawable, lines)), fontsize="medium", parse_math=False)
    ax.set_xlabel(layer_label(result))
    if place is not None:
        ax.set_ylabel("unit")
    return ax


def plot_traces(
    results: Sequence[TraceResult], axes: "Sequence[Axes] | None" = None, *, shared_scale: bool = False
) -> "list[Axes]":
    """Draw traces of one prompt side by side, as figure 1 does hidden states, MLPs and attention.

    Args:
        results: One for each panel; the prompt stands above them, and tokens are named once.
        axes: As many axes of one figure to draw into; a new figure's by default.
        shared_scale: Whether one colour is one score in all panels, so that a weak effect looks weak; they need one
            metric and direction then. Otherwise the strongest effect of each panel is drawn darkest.

    Returns:
        The axes; nothing is shown or saved.

    Raises:
        InputError: If there are no results, another number of axes, another prompt, or no scale that could be shared.
    """
    if not results or (axes is not None and len(axes) != len(results)):
        raise InputError(f"{len(results)} traces need as many axes and at least one; got axes {axes}")
    if len({result.prompt for result in results}) > 1:
        raise InputError("these traces are of several prompts; draw each prompt by itself")
    first, vmax = results[0], None
    if shared_scale:
        if len({(result.metric, result.direction, result.answer) for result in results}) > 1:
            raise InputError("a shared scale needs one metric, direction and answer; draw them without it")
        extreme = min if first.direction == "noising" else max
        vmax = extreme(extreme(result.scores.flatten().tolist()) for result in results)
    if axes is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=panels_size(results), dpi=150, layout="constrained")
        axes = panels(figure, len(results), sharey=not any(result.units for result in results))
    for result, ax in zip(results, axes, strict=True):
        plot_trace(result, ax, title=patched(result), vmax=vmax)
    figure: Any = axes[0].figure
    figure.suptitle("\n".join(map(drawable, starred_prompt(first))), fontsize="medium").set_parse_math(False)
    return list(axes)


def panels(figure: "Figure", count: int, *, sharey: bool) -> "list[Axes]":
    """Axes side by side, further from each other than a colour bar's label is from its own."""
    grid = figure.subplots(1, count, sharey=sharey, squeeze=False)
    if (engine := figure.get_layout_engine()) is not None and hasattr(engine, "set"):
        engine.set(wspace=0.05)  # type: ignore[call-arg]
    return list(grid[0])


def panels_size(results: Sequence[TraceResult]) -> tuple[float, float]:
    """Width and height, in inches, of traces side by side; the tokens are labelled once, and a page has a fixed width.

    Args:
        results: One for each panel.
    """
    width, height = figure_size(results[0])
    return (0.65 * len(results) * width, height) if len(results) > 1 else (width, height)


def heat_map(
    ax: "Axes",
    values: Float[Tensor, "layer row"],
    rows: Sequence[str],
    component: str,
    *,
    base: float,
    name: str,
    pale: str,
    darkest: float | None = None,
    falling: bool = False,
) -> None:
    """Draw values with layers along x in a component's colours, with a bar; NaN is hatched.

    Args:
        ax: Axes to draw into.
        values: What the colours say.
        rows: What the rows are, from the top.
        component: Chooses the colours.
        base: Value drawn in white, with all that lie beyond it; the bar says so if there are any.
        name: Label of the colour bar.
        pale: What the base is, in a word.
        darkest: Value drawn darkest; that of the strongest effect by default.
        falling: Whether values below the base are drawn dark, instead of those above.
    """
    n_layers = len(values)
    finite = values[values.isfinite()].tolist()
    given = finite if darkest is None else [darkest]
    low, high = (min([base - 1e-9, *given]), base) if falling else (base, max([base + 1e-9, *given]))
    cmap = _style(component)[0] + ("_r" if falling else "")
    if len(finite) < values.numel():
        ax.patch.set(hatch="////", edgecolor="0.8")
    mesh = ax.pcolormesh(values.T.numpy(), cmap=cmap, vmin=low, vmax=high)
    ax.set_ylim(len(rows), 0)  # not inverted: axes that share their y axis would invert it once each
    ax.set_xticks([layer + 0.5 for layer in range(0, n_layers, 5)], [str(layer) for layer in range(0, n_layers, 5)])
    ax.set_yticks([row + 0.5 for row in range(len(rows))], [drawable(row) for row in rows], parse_math=False)
    ax.tick_params(axis="y", length=0)
    under, over = any(value < low for value in finite), any(value > high for value in finite)
    extend = {(True, False): "min", (False, True): "max", (True, True): "both"}.get((under, over), "neither")
    bar = ax.figure.colorbar(mesh, ax=ax, pad=0.02, aspect=25, extend=extend)
    beyond = over if falling else under
    white = f"\nwhite: {'≥' if falling else '≤'} {pale}" if beyond else ""
    bar.set_label(drawable(name) + white, parse_math=False, labelpad=2)
    bar.outline.set_visible(False)  # type: ignore[operator]


def drawn_position(result: TraceResult, position: int | None) -> int | None:
    """Which position of a trace with units is drawn; None for one without.

    Raises:
        InputError: If a position is given for a trace without units, or is none of the prompt's.
    """
    if not result.units:
        if position is not None:
            raise InputError("this trace has no units, so all its positions are drawn; leave out the position")
        return None
    if position is None:
        return result.strongest().position
    if not 0 <= position < len(result.labels):
        raise InputError(f"position {position} is none of the prompt's, which are 0 to {len(result.labels) - 1}")
    return position


def patched(result: "TraceResult | AverageTrace") -> str:
    """Title that says what a trace patches."""
    verb = "Corrupting" if result.direction == "noising" else "Restoring"
    run = f"runs of {result.window} " if result.window > 1 else ""
    severed = f", {result.severed} severed" if result.severed else ""
    return f"{verb} {run}{_style(result.component)[1]}{severed}"


def layer_label(result: "TraceResult | AverageTrace") -> str:
    """What the layers along the x axis are."""
    what = "corrupted" if result.direction == "noising" else "restored"
    return f"centre of the {what} layers" if result.window > 1 else f"{what} layer"


def component_color(component: str) -> tuple[float, float, float, float]:
    """A strong colour of the component's map, for lines."""
    from matplotlib import colormaps

    return colormaps[_style(component)[0]](0.75)


def starred_labels(result: TraceResult) -> list[str]:
    """The tokens' labels, those of the subject with a star."""
    inside = range(result.subject.start, result.subject.end)
    return [label + "*" if position in inside else label for position, label in enumerate(result.labels)]


def starred_prompt(result: TraceResult) -> list[str]:
    """Prompt and answer in lines that fit a figure, the subject with a star."""
    span = result.labels[result.subject.start : result.subject.end]
    subject = "".join(span).strip()
    prompt = result.prompt.replace(subject, f"{subject}*", 1) if subject else result.prompt
    return wrap(f"{prompt} → {result.answer.strip()}", width=_LINE, max_lines=3)


def figure_size(result: TraceResult) -> tuple[float, float]:
    """Width and height, in inches, at which a trace's labels have room."""
    rows = len(result.units or result.labels)
    return 3.6 + 0.07 * len(result.scores), 1.4 + 0.22 * rows


def _score_name(result: TraceResult) -> str:
    prob = f"P({result.answer.strip()})"
    return {"prob": prob, "logprob": f"log {prob}"}.get(result.metric, result.metric)


def _style(component: str) -> tuple[str, str]:
    return _STYLE.get(component, ("Greys", component))
