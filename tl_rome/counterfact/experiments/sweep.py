"""Sweeps of one setting of an editor: over layers, and over epsilon (appendix E.1, figure 17).

Every value is an editor of its own to `evaluate`, each record is edited in a model of its own, and no text is
generated. The paper draws 50 records of COUNTERFACT.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tl_rome.arguments import Count, Seed
from tl_rome.counterfact.evaluation.evaluate import evaluate
from tl_rome.counterfact.evaluation.measure import EvaluationConfig
from tl_rome.counterfact.experiments.curve import Curve
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.report.summary import summarize
from tl_rome.counterfact.results import Conventions
from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.editors.finetune import FT, FT_L, FineTune, FineTuneConfig
from tl_rome.editors.protocol import Editor
from tl_rome.editors.rank_one.editor import Rome
from tl_rome.editors.rank_one.presets import RELEASED, RomeConfig
from tl_rome.errors import InputError
from tl_rome.sites import HookedModel

SCORES_ONLY = EvaluationConfig(generation_length=0, kl=False, essence_template=None)
"""Rewrite, paraphrase and neighbourhood scores, and nothing that costs more."""


def sweep_editors(
    model: HookedModel,
    records: Iterable[CounterFactRecord],
    editors: Mapping[int, Editor] | Mapping[float, Editor],
    *,
    name: str = "editor",
    along: str = "layer",
    store: str | Path | None = None,
    conventions: Conventions = "released",
    batch_size: Count | None = None,
    seed: Seed = 0,
    retry_failed: bool = False,
    progress: bool = True,
) -> Curve:
    """Evaluate an editor at several values of one setting; or continue an earlier sweep.

    Args:
        model: Unedited; left as found.
        records: Each case_id once.
        editors: By the value of the setting, see `finetune_over_layers` and its like.
        name: What is swept, for tables and legends; with `store`, it distinguishes sweeps in one folder.
        along: The setting, for tables and axes.
        store: Folder of results, see `evaluate`; the unedited model is measured once for all sweeps in it.
        conventions: Whose conventions the figures follow.
        batch_size: Records edited and measured together, by default as `evaluate` chooses.
        seed: Of the bootstrap.
        retry_failed: See `evaluate`.
        progress: Whether to show a progress bar for each value.

    Raises:
        InputError: If there are no editors, or see `evaluate`.
        TLRomeError: As `evaluate` does.
    """
    if not editors:
        raise InputError("there is nothing to sweep; give an editor for at least one value")
    rows = {x: f"{name}, {along} {x:g}" for x in editors}
    if len(set(rows.values())) < len(rows):
        raise InputError(f"values of {along} are too close to be distinguished: {', '.join(map(repr, rows))}")
    named = {rows[x]: editor for x, editor in editors.items()}
    options: dict[str, Any] = {"batch_size": batch_size, "retry_failed": retry_failed, "progress": progress}
    results = evaluate(model, records, named, store=store, config=SCORES_ONLY, **options)
    return Curve.of(summarize(results, conventions=conventions, seed=seed), name, along, rows)


def finetune_over_layers(layers: Iterable[int], config: FineTuneConfig = FT) -> dict[int, FineTune]:
    """Fine-tuning of each layer (figure 17, FT)."""
    return {layer: FineTune(layer, config) for layer in layers}


def finetune_over_epsilon(
    epsilons: Iterable[float], layer: int = 0, config: FineTuneConfig = FT_L
) -> dict[float, FineTune]:
    """Constrained fine-tuning of one layer with each bound on the change of a weight (figure 17, FT+L).

    Raises:
        InputError: If an epsilon is not positive.
    """
    return {epsilon: FineTune(layer, replace(config, epsilon=epsilon)) for epsilon in epsilons}


def rome_over_layers(
    covariances: Iterable[KeyCovariance], contexts: Sequence[str], config: RomeConfig = RELEASED
) -> dict[int, Rome]:
    """ROME at each layer of some key statistics (figure 5, at the subject's last token).

    `estimate_covariances` makes those of several layers in one pass.

    Raises:
        InputError: If the first context is not the empty one.
    """
    return {each.layer: Rome(each, tuple(contexts), config) for each in covariances}
