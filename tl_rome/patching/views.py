"""Traces as tables and as tokens to hover over in a notebook."""

from typing import TYPE_CHECKING, Any

from tl_rome.patching.average import AverageTrace
from tl_rome.patching.plot import starred_labels
from tl_rome.patching.result import TraceResult
from tl_rome.patching.roles import ROLES

if TYPE_CHECKING:
    import pandas


def to_frame(result: TraceResult | AverageTrace) -> "pandas.DataFrame":
    """A trace in long form, one row per cell, layers slowest.

    Args:
        result: One trace: columns `component`, `layer`, `position`, `token`, `subject`, `score`, `effect`. Or an
            average: `component`, `layer`, `role`, `n`, `effect`, `low`, `high`, with NaN for roles that no prompt has.
    """
    import pandas

    if isinstance(result, AverageTrace):
        n_layers, columns = result.effects.shape
        cells: dict[str, Any] = {
            "role": ROLES * n_layers,
            "n": result.counts * n_layers,
            "effect": result.effects.flatten().numpy(),
            "low": result.low.flatten().numpy(),
            "high": result.high.flatten().numpy(),
        }
    else:
        n_layers, columns = result.scores.shape
        inside = [result.subject.start <= position < result.subject.end for position in range(columns)]
        cells = {
            "position": list(range(columns)) * n_layers,
            "token": result.labels * n_layers,
            "subject": inside * n_layers,
            "score": result.scores.flatten().numpy(),
            "effect": result.effects.flatten().numpy(),
        }
    layers = [layer for layer in range(n_layers) for _ in range(columns)]
    return pandas.DataFrame({"component": result.component, "layer": layers, **cells})


def summary_frame(averages: "list[AverageTrace] | tuple[AverageTrace, ...]") -> "pandas.DataFrame":
    """The figures of appendix A.1, one row per component.

    Columns: prompts `n`, average `clean` and `corrupted` score, `mean_maximum` over all cells and at the last subject
    token, and where the average effect peaks: its role, layer, score, effect and the effect's interval. For hidden
    states the peak is sought at the last subject token, since restoring the last state of all brings back everything.
    """
    import pandas

    rows = []
    for average in averages:
        peak = average.peak("last subject token" if average.component == "resid_post" else None)
        rows.append(
            {
                "component": average.component,
                "window": average.window,
                "n": average.n,
                "clean": average.clean_score,
                "corrupted": average.corrupted_score,
                "mean_maximum": average.mean_maximum(),
                "mean_maximum_subject": average.mean_maximum("last subject token"),
                "role": peak.role,
                "layer": peak.layer,
                "score": peak.score,
                "effect": peak.effect,
                "low": peak.low,
                "high": peak.high,
            }
        )
    return pandas.DataFrame(rows)


def view_trace(result: TraceResult) -> Any:
    """Tokens by layer in circuitsvis: colour is the indirect effect of the layer that is chosen or hovered over.

    Args:
        result: What `causal_trace` returned.

    Returns:
        A circuitsvis view that a notebook shows; `str` of it is HTML. Subject tokens are starred.
    """
    from circuitsvis.tokens import colored_tokens_multi

    labels = [str(layer) for layer in range(len(result.effects))]
    return colored_tokens_multi(starred_labels(result), result.effects.T.float(), labels=labels)
