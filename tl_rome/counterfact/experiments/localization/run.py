"""Tracing facts and editing them at each layer: does the trace of a fact say where to edit it?

ROME edits where causal tracing peaks. Hase et al. (2023, arXiv 2301.04213) put the trace's effect at a layer beside
the score of the edit at that layer, fact by fact, and found that the layer explains nearly all of the score and the
trace next to nothing beyond it. This is their comparison, on any model that can be traced and edited.

A fact is traced with the object that the model says now, o^c, and edited to o*; both are about the subject's last
token. Edits are virtual, as everywhere in `evaluate`, and both parts go on where they stopped.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from tl_rome.arguments import Count, Seed, Share
from tl_rome.counterfact.evaluation.evaluate import evaluate, results_folder
from tl_rome.counterfact.experiments.localization.effects import trace_subjects
from tl_rome.counterfact.experiments.localization.report import LocalizationReport
from tl_rome.counterfact.experiments.localization.scores import edit_scores
from tl_rome.counterfact.experiments.sweep import SCORES_ONLY
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.results import CaseResult, Conventions
from tl_rome.editors.protocol import Editor
from tl_rome.errors import InputError
from tl_rome.facts import Fact
from tl_rome.patching.averaging.known import collect_known_facts
from tl_rome.patching.averaging.trace_facts import with_measured_noise
from tl_rome.patching.config import TraceConfig, described
from tl_rome.sites import HookedModel, check_layer, component_name
from tl_rome.storage.files import fingerprint

TRACED = ("mlp_out", "resid_post")
"""What ROME edits, and the hidden state after it."""
_ASKED = 256
"""Records looked at before it is seen whether they are enough."""


def localization_report(
    model: HookedModel,
    records: Iterable[CounterFactRecord],
    editors: Mapping[int, Editor],
    *,
    components: Sequence[str] = TRACED,
    config: TraceConfig | None = None,
    store: str | Path | None = None,
    held_out: Share = 0.5,
    conventions: Conventions = "released",
    batch_size: Count | None = None,
    seed: Seed = 0,
    retry_failed: bool = False,
    progress: bool = True,
) -> LocalizationReport:
    """Trace facts, edit each at several layers, and see what the trace says about the edit; or continue a run.

    Args:
        model: Unedited; left as found.
        records: Facts that the model knows, see `known_records`; each case_id once.
        editors: One by layer, such as `rome_over_layers(estimate_covariances(...).values(), contexts)`.
        components: What is restored, as in `causal_trace`.
        config: How facts are traced; the defaults of `causal_trace`, which restores ten MLP outputs together.
        store: Folder of traces and of results, made if needed; by default nothing is kept.
        held_out: Share of the facts that layers are chosen on, drawn at random with `seed`.
        conventions: Whose probability of an object of several tokens the scores take.
        batch_size: Records edited and measured together, by default as `evaluate` chooses.
        seed: Of the noise, the split, the bootstrap and the random layers.
        retry_failed: See `evaluate`.
        progress: Whether to show progress bars.

    Returns:
        Effects and scores of every fact that could be traced and edited at all layers, and the statistics of both.

    Raises:
        InputError: If a layer is out of range, traces have units or no layers, fewer than four facts are left, or see
            `evaluate`.
        TLRomeError: As `evaluate` and `causal_trace` do.
    """
    chosen, layers = tuple(records), tuple(sorted(editors))
    for layer in layers:
        check_layer(model, layer)
    components = tuple(dict.fromkeys(map(component_name, components)))
    config = with_measured_noise(model, config or TraceConfig())
    if config.units is not None:
        raise InputError(f"units are {config.units!r}: what is edited is a whole layer; leave units out")
    with results_folder(store) as folder:
        facts, traced = [_stated(record) for record in chosen], folder / "effects.jsonl"
        effects, untraced = trace_subjects(model, facts, components, config, store=traced, seed=seed, progress=progress)
        named = {f"layer {layer}": editors[layer] for layer in layers}
        options: dict[str, Any] = {"batch_size": batch_size, "retry_failed": retry_failed, "progress": progress}
        results = evaluate(model, chosen, named, store=folder / "edits", config=SCORES_ONLY, seed=seed, **options)
    scores, failed = _scores(results, conventions)
    left_out = failed | {
        record.case_id: untraced[fact] for record, fact in zip(chosen, facts, strict=True) if fact in untraced
    }
    kept = [record for record in chosen if record.case_id not in left_out]
    if not kept:
        reasons = "; ".join(f"{case}: {why}" for case, why in left_out.items()) or "there is no record"
        raise InputError(f"no fact could be traced and edited ({reasons}); give facts that the model knows")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(kept), generator=generator)
    return LocalizationReport(
        effects=torch.stack([effects[_stated(record)][:, list(layers)] for record in kept], dim=1),
        scores=torch.tensor([[scores[name, record.case_id] for name in named] for record in kept], dtype=torch.float64)
        .permute(2, 0, 1)
        .contiguous(),
        held_out=order.argsort() < round(held_out * len(kept)),
        layers=layers,
        components=components,
        windows=tuple(map(config.width, components)),
        corruption=described(config.corruption),
        cases=tuple(record.case_id for record in kept),
        prompts=tuple(record.request.fact.prompt for record in kept),
        left_out=tuple(sorted(left_out.items())),
        model=fingerprint(model),
        seed=seed,
    )


def known_records(
    model: HookedModel,
    records: Iterable[CounterFactRecord],
    *,
    store: str | Path | None = None,
    limit: Count | None = None,
    progress: bool = True,
) -> list[CounterFactRecord]:
    """Records whose o^c is what the model says next after the rewriting prompt, greedily; see `collect_known_facts`.

    Args:
        model: Left as found.
        records: In order of preference.
        store: File of what was looked at, to continue an interrupted run.
        limit: How many to return at most.
        progress: Whether to show a progress bar over facts.

    Raises:
        TLRomeError: As `collect_known_facts` does.
    """
    source, chosen = iter(records), list[CounterFactRecord]()
    while (limit is None or len(chosen) < limit) and (part := tuple(islice(source, _ASKED))):
        found = collect_known_facts(model, map(_stated, part), store=store, progress=progress)
        known = {each.asked for each in found if each.fact.template == each.asked.template}
        chosen += [record for record in part if _stated(record) in known]
    return chosen[:limit]


def _stated(record: CounterFactRecord) -> Fact:
    """What the record says of the world before the rewrite."""
    return replace(record.request.fact, target=record.request.target_true)


def _scores(
    results: Sequence[CaseResult], conventions: Conventions
) -> tuple[dict[tuple[str, int], tuple[float, ...]], dict[int, str]]:
    """Edit scores by editor and case_id, and why some records have none at some layer."""
    found, failed = dict[tuple[str, int], tuple[float, ...]](), dict[int, str]()
    for result in results:
        if result.before is None or result.after is None:
            failed.setdefault(result.case_id, f"{result.editor}: {result.error}")
        else:
            found[result.editor, result.case_id] = edit_scores(result.before, result.after, conventions)
    return found, failed
