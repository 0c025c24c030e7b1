"""From updates to an edit: what the model says without it and with it goes into the receipt, which is made once."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tl_rome.editors.edits.edit import Edit
from tl_rome.editors.edits.receipts.outcome import Outcome, RunToTop, probe_model
from tl_rome.editors.edits.receipts.receipt import MatrixChange, Receipt, UpdateFigures
from tl_rome.editors.edits.receipts.safety import find_warnings
from tl_rome.editors.edits.receipts.verdict import Taken, first_context, verdict_warning
from tl_rome.editors.edits.update import DenseUpdate, Update, check_places
from tl_rome.editors.edits.weights import edited_digest, weight_digest
from tl_rome.editors.edits.written import hooks_reason, updates_applied
from tl_rome.facts import EditRequest
from tl_rome.running.matrices import MlpMatrix
from tl_rome.running.packed import read_matrix
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint

_log = logging.getLogger(__name__)


def finish_edit(
    model: HookedModel,
    request: EditRequest,
    updates: Sequence[Update],
    figures: UpdateFigures,
    *,
    before: Outcome,
    provenance: Mapping[str, Any],
    started: float,
    remedy: str,
    after_text: str = "",
    contexts: Sequence[str] = (),
    cautions: Sequence[str] = (),
    unedited: dict[MlpMatrix, str] | None = None,
    run: RunToTop | None = None,
) -> Edit:
    """The edit that makes some updates, with its effect measured; signs of damage or of no effect are logged too.

    Args:
        model: Left as found.
        request: What the updates are for.
        updates: The changes, each of another matrix.
        figures: What their editor knows of them.
        before: What the model says to the request without them, see `probe_model`.
        provenance: How they were made, JSON-serialisable.
        started: `time.perf_counter()` when the work on this edit began.
        remedy: What to try if the edit does not take, in words; `after_text` is added to it, see `verdict_warning`.
        after_text: See there.
        contexts: Those that the editor used; the first one that is not empty stands for a paraphrase, see `verdict`.
        cautions: Further warnings, which have been logged.
        unedited: Digests of matrices as they are, to which those that are missing are added; for many edits of one
            model, a digest of which is taken once then.
        run: How to run the edited model, see `probe_requests`.

    Raises:
        InputError: If two updates are of the same matrix.
        NumericsError: If the edited weights are not finite.
    """
    check_places(updates)
    places = [update.place for update in updates]
    changes = tuple(_change(model, update) for update in updates)
    unedited = {} if unedited is None else unedited
    unedited |= {place: weight_digest(model, place) for place in places if place not in unedited}
    with updates_applied(model, updates):
        after = probe_model(model, request, first_context(contexts), run=run)
        digests_after = [edited_digest(model, update, unedited[update.place]) for update in updates]
    taken = Taken.of(after)
    damage = find_warnings(figures, before, after)
    weak = verdict_warning(taken, remedy, after_text)
    probs = list(zip(before.probs, after.probs, strict=True))
    ranks = list(zip(before.ranks, after.ranks, strict=True))
    receipt = Receipt(
        **asdict(figures),
        changes=changes,
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
        final_loss=figures.losses[-1] if figures.losses else None,
        seconds=time.perf_counter() - started,
        verdict=taken.verdict,
        runs_as_hooks=hooks_reason(model, places),
        **asdict(taken),
        warnings=(*cautions, *damage, *([] if weak is None else [weak])),
    )
    for warning in damage:
        _log.warning("the edit %r -> %r may disable the model: %s", receipt.prompt, receipt.target_new, warning)
    if weak is not None:
        _log.warning("the edit %r -> %r: %s", receipt.prompt, receipt.target_new, weak)
    digests = {place: (unedited[place], after) for place, after in zip(places, digests_after, strict=True)}
    return Edit(tuple(updates), request, receipt, fingerprint(model), provenance, digests)


def _change(model: HookedModel, update: Update) -> MatrixChange:
    """How large an update is."""
    size = read_matrix(model, update.place)[0].detach().float().norm().cpu()
    if isinstance(update, DenseUpdate):
        return MatrixChange(update.layer, update.matrix, None, (update.change.float().norm().cpu() / size).item())
    grams = [factor.double().T @ factor.double() for factor in (update.left, update.right)]
    norm = (grams[0] * grams[1]).sum().clamp(min=0).sqrt()
    return MatrixChange(update.layer, update.matrix, update.rank, (norm.cpu() / size).item())
