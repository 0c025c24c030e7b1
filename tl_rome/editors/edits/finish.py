"""From an update to an edit: what the model says without it and with it goes into the receipt, which is made once."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tl_rome.editors.edits.edit import Edit, updates_applied
from tl_rome.editors.edits.outcome import Outcome, probe_model
from tl_rome.editors.edits.receipt import Receipt, UpdateFigures
from tl_rome.editors.edits.safety import find_warnings
from tl_rome.editors.edits.update import Update
from tl_rome.facts import EditRequest
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint

_log = logging.getLogger(__name__)


def finish_edit(
    model: HookedModel,
    request: EditRequest,
    update: Update,
    figures: UpdateFigures,
    *,
    before: Outcome,
    provenance: Mapping[str, Any],
    started: float,
) -> Edit:
    """The edit that makes an update, with its effect measured; signs of damage are logged too.

    Args:
        model: Left as found.
        request: What the update is for.
        update: The change of one layer.
        figures: What its editor knows of it.
        before: What the model says to the request without it, see `probe_model`.
        provenance: How it was made, JSON-serialisable.
        started: `time.perf_counter()` when the work on this edit began.

    Raises:
        NumericsError: If the edited weights are not finite.
    """
    with updates_applied(model, (update,)):
        after = probe_model(model, request)
    probs = list(zip(before.probs, after.probs, strict=True))
    ranks = list(zip(before.ranks, after.ranks, strict=True))
    receipt = Receipt(
        **asdict(figures),
        prompt=request.fact.prompt,
        target_new=request.target_new,
        target_true=request.target_true,
        prob_new=probs[0],
        prob_true=probs[1] if len(probs) > 1 else None,
        rank_new=ranks[0],
        rank_true=ranks[1] if len(ranks) > 1 else None,
        text_nll=(before.text_nll, after.text_nll),
        text_entropy=(before.text_entropy, after.text_entropy),
        evaluations=len(figures.losses),
        final_loss=figures.losses[-1],
        seconds=time.perf_counter() - started,
        warnings=find_warnings(figures, before, after),
    )
    for warning in receipt.warnings:
        _log.warning("the edit %r -> %r may disable the model: %s", receipt.prompt, receipt.target_new, warning)
    return Edit((update,), request, receipt, fingerprint(model), provenance)
