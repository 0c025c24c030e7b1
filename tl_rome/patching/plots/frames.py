"""Traces as tables and as tokens to hover over in a notebook."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tl_rome.arguments import Whole
from tl_rome.errors import require
from tl_rome.patching.averaging.average import AverageTrace
from tl_rome.patching.averaging.roles import ROLES
from tl_rome.patching.plots.trace import drawn_position, starred_labels
from tl_rome.patching.result import TraceResult

if TYPE_CHECKING:
    import pandas


def to_frame(result: TraceResult | AverageTrace) -> "pandas.DataFrame":
    """A trace in long form, one row per cell, layers slowest.

    Args:
        result: One trace: columns `component`, `layer`, `position`, `token`, `subject`, `score`, `effect`, and `unit`
            where it has units. Or an average: `component`, `layer`, `role`, `n`, `effect`, `low`, `high`, with NaN for
            roles that no prompt has.
    """
    import pandas

    columns = _average_columns(result) if isinstance(result, AverageTrace) else _trace_columns(result)
    return pandas.DataFrame({"component": result.component, **columns})


def _trace_columns(result: TraceResult) -> dict[str, Any]:
    layer, position, *unit = (axis.flatten().tolist() for axis in _indices(result.scores))
    inside = range(result.subject.start, result.subject.end)
    return {
        "layer": layer,
        "position": position,
        "token": [result.labels[place] for place in position],
        "subject": [place in inside for place in position],
        **({"unit": [result.units[index] for index in unit[0]]} if unit else {}),
        "score": result.scores.flatten().numpy(),
        "effect": result.effects.flatten().numpy(),
    }


def _average_columns(average: AverageTrace) -> dict[str, Any]:
    layer, role = (axis.flatten().tolist() for axis in _indices(average.effects))
    return {
        "layer": layer,
        "role": [ROLES[index] for index in role],
        "n": [average.counts[index] for index in role],
        "effect": average.effects.flatten().numpy(),
        "low": average.low.flatten().numpy(),
        "high": average.high.flatten().numpy(),
    }


def _indices(values: Tensor) -> tuple[Tensor, ...]:
    return torch.meshgrid(*map(torch.arange, values.shape), indexing="ij")


def summary_frame(averages: Iterable[AverageTrace]) -> "pandas.DataFrame":
    """The averages that appendices B.1 and B.2 quote, one row per component.

    Columns: `component`, `window`, number of prompts `n`, average `clean` and `corrupted` score, `mean_maximum` over
    all cells and `mean_maximum_subject` at the last subject token, and where the average effect peaks: its `role`,
    `layer`, `score`, `effect` and the effect's interval, `low` to `high`. For hidden states the peak is sought at the
    last subject token, since restoring the last state of all brings back everything.
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


def view_trace(result: TraceResult, *, position: Whole | None = None) -> Any:
    """Tokens by layer in circuitsvis: colour is the indirect effect of the layer that is chosen or hovered over.

    A trace of heads, or of groups of features, is shown at one position, with the units in place of the tokens.

    Args:
        result: What `causal_trace` returned.
        position: Which token's units to show, where there are units; by default that of the strongest effect.

    Returns:
        A circuitsvis view that a notebook shows; `str` of it is HTML. Subject tokens are starred.

    Raises:
        InputError: If a position is given for a trace without units, or is none of the prompt's.
        MissingPackageError: If circuitsvis is not installed.
    """
    place = drawn_position(result, position)
    require("circuitsvis", extra="notebook")
    from circuitsvis.tokens import colored_tokens_multi

    labels = [str(layer) for layer in range(len(result.effects))]
    effects = result.effects if place is None else result.effects[:, place]
    rows = starred_labels(result) if place is None else [f" {unit}" for unit in result.units]
    return colored_tokens_multi(rows, effects.T.float(), labels=labels)
