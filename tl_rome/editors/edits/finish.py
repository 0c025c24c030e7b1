"""From an update to an edit: what the model says without it and with it goes into the receipt, which is made once."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tl_rome.editors.edits.edit import Edit, updates_applied
from tl_rome.editors.edits.outcome import Outcome, probe_model
from tl_rome.editors.edits.receipt import Receipt, UpdateFigures
from tl_rome.editors.edits.safety import find_warnings
from tl_rome.editors.edits.update import Update
from tl_rome.editors.edits.verdict import Taken, first_context, verdict_warning
from tl_rome.editors.edits.weights import weight_digest
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
    contexts: Sequence[str] = (),
    cautions: Sequence[str] = (),
) -> Edit:
    """The edit that makes an update, with its effect measured; signs of damage or of no effect are logged too.

    Args:
        model: Left as found.
        request: What the update is for.
        update: The change of one layer.
        figures: What its editor knows of it.
        before: What the model says to the request without it, see `probe_model`.
        provenance: How it was made, JSON-serialisable.
        started: `time.perf_counter()` when the work on this edit began.
        contexts: Those that the editor used; the first one that is not empty stands for a paraphrase, see `verdict`.
        cautions: Further warnings, which have been logged.

    Raises:
        NumericsError: If the edited weights are not finite.
    """
    before_digest = weight_digest(model, update.layer)
    with updates_applied(model, (update,)):
        after = probe_model(model, request, first_context(contexts))
        after_digest = weight_digest(model, update.layer)
    taken = Taken.of(after)
    damage = find_warnings(figures, before, after)
    weak = verdict_warning(taken, fine_tuned=figures.key_norm is None)
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
        verdict=taken.verdict,
        **asdict(taken),
        warnings=(*cautions, *damage, *([] if weak is None else [weak])),
    )
    for warning in damage:
        _log.warning("the edit %r -> %r may disable the model: %s", receipt.prompt, receipt.target_new, warning)
    if weak is not None:
        _log.warning("the edit %r -> %r: %s", receipt.prompt, receipt.target_new, weak)
    digests = {update.layer: (before_digest, after_digest)}
    return Edit((update,), request, receipt, fingerprint(model), provenance, digests)
