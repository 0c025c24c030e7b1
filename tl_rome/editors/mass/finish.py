"""From the updates of a batch to its edit: what the model says to every fact without them and with them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tl_rome.editors.edits.batch_edit import BatchEdit
from tl_rome.editors.edits.receipts.batch_receipt import BatchReceipt, FactReceipt, LayerReceipt
from tl_rome.editors.edits.receipts.outcome import Outcome, probe_requests
from tl_rome.editors.edits.receipts.safety import find_text_warnings
from tl_rome.editors.edits.receipts.verdict import Taken, first_context, verdict_warning
from tl_rome.editors.edits.update import Update
from tl_rome.editors.edits.weights import edited_digest, weight_digest
from tl_rome.editors.edits.written import hooks_reason, updates_applied
from tl_rome.editors.rank_one.value import OptimisedValue
from tl_rome.facts import EditRequest
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint

_log = logging.getLogger(__name__)
_AT_ONCE = 64
"""Requests that are probed together."""
_REMEDY = "a smaller covariance_weight (or l2), more evaluations (extra_evaluations), or a larger clamp"
_AFTER_TEXT = ", or more contexts"


@dataclass(frozen=True, eq=False)
class Solved:
    """What a batch writes, before it is measured."""

    updates: tuple[Update, ...]
    layers: tuple[LayerReceipt, ...]
    residual_left: tuple[float, ...]
    """For each request."""
    keys: Mapping[int, Any]
    """K [d_mlp, n] of each layer; float64, on the CPU."""


def probe_all(model: HookedModel, requests: Sequence[EditRequest], prefix: str | None = None) -> list[Outcome]:
    """`probe_requests`, a part of the requests at a time."""
    parts = (requests[first : first + _AT_ONCE] for first in range(0, len(requests), _AT_ONCE))
    return [outcome for part in parts for outcome in probe_requests(model, part, prefix)]


def finish_batch(
    model: HookedModel,
    requests: Sequence[EditRequest],
    solved: Solved,
    found: Sequence[OptimisedValue],
    before: Sequence[Outcome],
    *,
    contexts: Sequence[str],
    cautions: Sequence[Sequence[str]],
    warnings: Sequence[str],
    figures: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> BatchEdit:
    """The edit that makes some updates, with its effect measured; signs of damage or of no effect are logged too.

    Args:
        model: Left as found.
        requests: What the updates are for.
        solved: The updates.
        found: The value of each request.
        before: What the model says to each without them.
        contexts: Those of the editor; the first that is not empty stands for a paraphrase, see `verdict`.
        cautions: Further warnings of each request.
        warnings: Those of the batch.
        figures: The other fields of its receipt.
        provenance: How the edit was made, JSON-serialisable.

    Raises:
        NumericsError: If the edited weights are not finite.
    """
    places = [update.place for update in solved.updates]
    digests = [weight_digest(model, place) for place in places]
    with updates_applied(model, solved.updates):
        after = probe_all(model, requests, first_context(contexts))
        pairs = [(old, edited_digest(model, each, old)) for old, each in zip(digests, solved.updates, strict=True)]
        known = dict(zip(places, pairs, strict=True))
    facts = []
    rows = zip(requests, found, before, after, solved.residual_left, cautions, strict=True)
    for request, value, old, new, left, caution in rows:
        taken = Taken.of(new)
        weak = verdict_warning(taken, _REMEDY, _AFTER_TEXT)
        probs, ranks = (list(zip(getattr(old, name), getattr(new, name), strict=True)) for name in ("probs", "ranks"))
        facts.append(
            FactReceipt(
                prompt=request.fact.prompt,
                target_new=request.target_new,
                target_true=request.target_true,
                prob_new=probs[0],
                prob_true=probs[1] if len(probs) > 1 else None,
                rank_new=ranks[0],
                rank_true=ranks[1] if len(ranks) > 1 else None,
                verdict=taken.verdict,
                **asdict(taken),
                evaluations=len(value.losses),
                final_loss=value.losses[-1]["loss"],
                residual_left=left,
                warnings=(*caution, *([] if weak is None else [weak])),
            )
        )
    damage = find_text_warnings(before[0], after[0])
    for warning in damage:
        _log.warning("the edit of %d facts may disable the model: %s", len(requests), warning)
    receipt = BatchReceipt(
        facts=tuple(facts),
        layers=solved.layers,
        text_nll=(before[0].text_nll, after[0].text_nll),
        text_entropy=(before[0].text_entropy, after[0].text_entropy),
        runs_as_hooks=hooks_reason(model, places),
        warnings=(*warnings, *damage),
        **figures,
    )
    missed = [fact for fact in facts if fact.verdict != "took"]
    if missed:
        first = missed[0]
        shown = f"first {first.prompt!r} -> {first.target_new!r}: {first.warnings[-1]}"
        _log.warning("%d of %d facts took only partly or not at all; %s", len(missed), len(facts), shown)
    return BatchEdit(solved.updates, tuple(requests), receipt, fingerprint(model), provenance, known)
