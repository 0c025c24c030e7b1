"""From the values of a batch to its edit."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.editors.edits.batch_edit import BatchEdit
from tl_rome.editors.mass.closed_form import CovariancePrior, Prior, SubspacePrior
from tl_rome.editors.mass.finish import Solved, finish_batch, probe_all
from tl_rome.editors.mass.layers import write_layers
from tl_rome.editors.mass.memory import KeyMemory
from tl_rome.editors.mass.parts import MassParts
from tl_rome.editors.mass.requests import alike_warning
from tl_rome.editors.mass.subspace import KeySubspace, doubt_of_subspaces, quiet_subspace
from tl_rome.editors.mass.sweeps.choice import sweep_layers
from tl_rome.editors.rank_one.key import sink_warning
from tl_rome.editors.rank_one.value import OptimisedValue
from tl_rome.facts import EditRequest
from tl_rome.running.memory import fitting_tokens, is_out_of_memory
from tl_rome.sites import HookedModel

_log = logging.getLogger(__name__)
_LEAST_TOKENS = 64
"""Bound on tokens at once below which a batch is not tried again."""


def batch_edit(
    editor: MassParts,
    model: HookedModel,
    requests: Sequence[EditRequest],
    groups: Sequence[tuple[int, ...]],
    values: tuple[list[OptimisedValue], float],
    memory: KeyMemory | None,
    warnings: Sequence[str],
) -> tuple[BatchEdit, Mapping[int, Float[Tensor, "d_mlp n"]]]:
    """The edit that writes all requests, and the keys of each layer.

    Args:
        editor: Says what to keep, and how to write.
        model: Left as found.
        requests: The facts.
        groups: Indices of the requests that share a value.
        values: One for each group, and the seconds that finding them took.
        memory: Of earlier batches.
        warnings: Of the batch.

    Raises:
        TLRomeError: As the editor does.
    """
    started, (found, seconds) = time.perf_counter(), values
    facts = [request.fact for request in requests]
    cautions = [sink_warning(model, fact) for fact in facts]
    before = probe_all(model, requests)
    config, last = editor.config, editor.layers[-1]
    deltas = torch.stack([value.delta for value in found])
    prior_of = partial(_prior, editor, memory)

    def solve(most: int) -> Solved:
        sweep = sweep_layers(model, facts, editor.contexts, last, config.value_site, max_batch_tokens=most)
        return write_layers(model, sweep, editor.layers, groups, deltas, config, prior_of, editor.covariances)

    solved = _within_memory(solve, fitting_tokens(model, 4096))
    of_fact = {index: value for group, value in zip(groups, found, strict=True) for index in group}
    doubt = doubt_of_subspaces(editor.covariances.values()) if config.in_subspace else None
    names = [requests[group[0]] for group in groups]
    noticed = [each for each in (alike_warning(names, editor.covariances[last], solved.keys[last]), doubt) if each]
    for warning in noticed:
        _log.warning("the edit of %d facts: %s", len(requests), warning)
    figures = {
        "preset": config.preset,
        "departures": config.departures,
        "layer_choice": editor.layer_choice,
        "contexts": len(editor.contexts),
        "contexts_choice": editor.contexts_choice,
        "covariance": _statistics_in_words(editor),
        "earlier": 0 if memory is None else memory.facts,
        "seconds": seconds + time.perf_counter() - started,
    }
    edit = finish_batch(
        model,
        requests,
        solved,
        [of_fact[index] for index in range(len(requests))],
        before,
        contexts=editor.contexts,
        cautions=cautions,
        warnings=(*warnings, *noticed),
        figures=figures,
        provenance=_provenance(editor, model, found),
    )
    return edit, solved.keys


def _within_memory(solve: Callable[[int], Solved], most: int) -> Solved:
    """What a call gives with a bound on tokens that are run at once; half of it where memory runs out.

    Raises:
        torch.OutOfMemoryError: If memory does not suffice with the least bound.
    """
    while True:
        try:
            return solve(most)
        except RuntimeError as error:
            if not is_out_of_memory(error) or most <= _LEAST_TOKENS:
                raise
        most //= 2
        _log.warning("out of memory with %d tokens of the batch at once; going on with %d", 2 * most, most)


def _prior(editor: MassParts, memory: KeyMemory | None, layer: int, facts: int) -> tuple[Prior, KeySubspace | None]:
    earlier = None if memory is None else memory.earlier(layer)
    config, covariance = editor.config, editor.covariances[layer]
    if not config.in_subspace:
        weight = config.weight_for(facts, len(covariance.second_moment))
        return CovariancePrior(covariance, weight, config.ridge, earlier), None
    subspace = quiet_subspace(covariance, energy_share=config.energy_share, absolute_cut=config.absolute_cut)
    return SubspacePrior(subspace.basis, config.l2, earlier), subspace


def _statistics_in_words(editor: MassParts) -> str:
    found = {f"{each.count} tokens, {each.source}" for each in editor.covariances.values()}
    return "; ".join(sorted(found))


def _provenance(editor: MassParts, model: HookedModel, found: Sequence[OptimisedValue]) -> dict[str, Any]:
    return {
        "editor": type(editor).__name__,
        "config": asdict(editor.config),
        "layers": list(editor.layers),
        "contexts": list(editor.contexts),
        "seed": editor.seed,
        "prepend_bos": bool(model.cfg.default_prepend_bos),
        "covariances": {str(layer): editor.covariances[layer].digest for layer in editor.layers},
        "losses": [list(value.losses) for value in found],
    }
