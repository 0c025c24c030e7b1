"""The editors that the paper and its successors compare, made by name; they share what is expensive.

All ROME presets get one covariance. Those that differ in their keys alone get the same contexts and one `SharedValues`
too, so that a request's v* is optimised once for them all; so do the mass editors. Trained editors are values that the
caller has.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from tl_rome.arguments import Count, Seed
from tl_rome.editors.covariance.kept import covariances_for
from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.editors.finetune import FT, FT_L, FineTune
from tl_rome.editors.knowledge_neurons.editor import KnowledgeNeurons
from tl_rome.editors.knowledge_neurons.presets import KN, KN_CORRECTED
from tl_rome.editors.layers import LayerChoice
from tl_rome.editors.mass.config import MASS_PRESETS, mass_layers, mass_model_defaults
from tl_rome.editors.mass.editor import MassEditor
from tl_rome.editors.protocol import Editor
from tl_rome.editors.rank_one.contexts import spread_contexts
from tl_rome.editors.rank_one.editor import Rome
from tl_rome.editors.rank_one.presets import (
    DRAFT,
    NEURIPS,
    P_ROME,
    R_ROME,
    R_ROME_2024,
    RELEASED,
    RomeConfig,
    with_model_defaults,
)
from tl_rome.editors.rank_one.shared_values import SharedValues
from tl_rome.editors.trained.convergence import training_doubt
from tl_rome.editors.trained.editor import TrainedEditor
from tl_rome.errors import InputError
from tl_rome.sites import HookedModel

FINE_TUNING = {"ft": FT, "ft_l": FT_L}
"""Fine-tuning by name. The paper's layers for GPT-2 XL are 1 and 0 (appendix E.1); here both train the first."""

ROME_CONFIGS = {
    "rome": RELEASED,
    "r_rome": R_ROME,
    "r_rome_2024": R_ROME_2024,
    "p_rome": P_ROME,
    "draft": DRAFT,
    "neurips": NEURIPS,
}
"""Presets of ROME by name; "rome" is the released one."""

KN_CONFIGS = {"kn": KN, "kn_corrected": KN_CORRECTED}
"""Knowledge neurons by name: as released, and as they were meant."""

TRAINED_NAMES = ("ke", "ke_cf", "mend", "mend_cf")
"""Presets of trained editors, which have to be given."""

EDITOR_NAMES = (*FINE_TUNING, *KN_CONFIGS, *TRAINED_NAMES, *ROME_CONFIGS, *MASS_PRESETS)
"""Every name of an editor, for all that take one."""


def editor_by_name(
    model: HookedModel,
    name: str,
    *,
    layer: LayerChoice = None,
    covariance: KeyCovariance | None = None,
    covariances: Mapping[int, KeyCovariance] | None = None,
    contexts: Sequence[str] | Literal["recipe"] | None = None,
    seed: Seed = 0,
    progress: bool = True,
) -> Rome | FineTune | KnowledgeNeurons | MassEditor:
    """Make one editor that needs no training.

    Args:
        model: Left as found.
        name: Of `EDITOR_NAMES`, without `TRAINED_NAMES`.
        layer: Layer to edit, see `Rome.prepare`; fine-tuning trains the first by default, and KN finds its own. Mass
            editors choose theirs, see `MassEditor.prepare`.
        covariance: Key statistics, see `Rome.prepare`; for ROME only.
        covariances: Key statistics by layer, see `MassEditor.prepare`; for mass editors only.
        contexts: Prefixes, see `Rome.prepare`; for ROME and mass editors.
        seed: Of contexts and sampled text.
        progress: Whether long work shows progress bars.

    Raises:
        InputError: If the name is unknown or that of a trained editor, or another one is given what it does not use.
        TLRomeError: As `Rome.prepare` does.
    """
    check_names([name])
    if name in TRAINED_NAMES:
        raise InputError(_untrained(name))
    if covariances is not None and name not in MASS_PRESETS:
        raise InputError(f"{name!r} takes no statistics of several layers; leave out covariances")
    if name in ROME_CONFIGS:
        options = {"contexts": contexts, "seed": seed, "progress": progress}
        return Rome.prepare(model, layer=layer, covariance=covariance, config=ROME_CONFIGS[name], **options)
    if name in MASS_PRESETS:
        if layer is not None or covariance is not None:
            raise InputError(
                f"{name!r} edits several layers with statistics of each; leave out layer and covariance, or use "
                "MassEditor.prepare(model, layers=..., covariances=...)"
            )
        options = {"covariances": covariances, "contexts": contexts, "seed": seed, "progress": progress}
        return MassEditor.prepare(model, config=MASS_PRESETS[name], **options)
    if covariance is not None or contexts is not None:
        raise InputError(f"{name!r} reads the prompt alone; leave out covariance and contexts")
    if name in KN_CONFIGS:
        if layer is not None:
            raise InputError(f"{name!r} finds its own layers; leave out layer")
        return KnowledgeNeurons.prepare(model, config=KN_CONFIGS[name])
    return FineTune.prepare(model, config=FINE_TUNING[name], layer=layer)


def editors_by_name(
    model: HookedModel,
    names: str | Iterable[str],
    *,
    layer: LayerChoice = None,
    covariance: KeyCovariance | None = None,
    covariances: Mapping[int, KeyCovariance] | None = None,
    contexts: Sequence[str] | Literal["recipe"] | None = None,
    max_contexts: Count | None = None,
    trained: Iterable[TrainedEditor] = (),
    seed: Seed = 0,
    progress: bool = True,
) -> dict[str, Editor]:
    """Make editors for `evaluate`, in the order of the names; an editor does not depend on which others are asked for.

    A trained one that has not converged is called so: it is "ke_cf (not converged)" in every table.

    Args:
        model: Left as found.
        names: Of `EDITOR_NAMES`; one or several.
        layer: Layer that ROME edits, see `Rome.prepare`; fine-tuning trains the first.
        covariance: Key statistics, see `Rome.prepare`.
        covariances: Key statistics by layer for mass editors, see `MassEditor.prepare`.
        contexts: Prefixes for all presets, or "recipe"; by default each preset's own, see `Rome.prepare`.
        max_contexts: Take this many of them at most, the empty one included; the cost of v* is proportional to it.
        trained: Trained editors, which are known by their presets; one for each of those named.
        seed: Of contexts and sampled text.
        progress: Whether long work shows progress bars.

    Raises:
        InputError: If a name is unknown or there is none, or a trained editor is named but not given.
        ModelMismatchError: If a trained editor is for another model.
        TLRomeError: As `Rome.prepare` does.
    """
    names = check_names(names)
    made: dict[str, Editor] = {name: FineTune.prepare(model, config=config) for name, config in FINE_TUNING.items()}
    made |= {name: KnowledgeNeurons(config) for name, config in KN_CONFIGS.items()}
    given = {editor.config.preset: editor for editor in trained}
    for name in names:
        if name in TRAINED_NAMES:
            if name not in given:
                raise InputError(_untrained(name))
            given[name].check(model)
            made[name] = given[name]
    chosen = [name for name in names if name in ROME_CONFIGS]
    if chosen:
        base = Rome.prepare(model, layer=layer, covariance=covariance, contexts=contexts, seed=seed, progress=progress)
        base = replace(base, find_values=SharedValues())
        made |= {name: _variant(model, base, ROME_CONFIGS[name], contexts) for name in chosen}
    if massed := [name for name in names if name in MASS_PRESETS]:
        made |= _mass_editors(model, massed, covariances, contexts, seed, progress)
    return {_label(name, made[name]): _shortened(made[name], max_contexts) for name in names}


def _mass_editors(
    model: HookedModel,
    names: Sequence[str],
    covariances: Mapping[int, KeyCovariance] | None,
    contexts: Sequence[str] | Literal["recipe"] | None,
    seed: int,
    progress: bool,
) -> dict[str, Editor]:
    """Mass editors that share statistics, contexts and values."""
    configs = {name: mass_model_defaults(model, MASS_PRESETS[name]) for name in names}
    given = covariances
    if covariances is None:
        layers = sorted({layer for config in configs.values() for layer in mass_layers(model, config)[0]})
        covariances = covariances_for(model, layers, seed=seed, progress=progress)
    values, made, first = SharedValues(), dict[str, Editor](), None
    for name, config in configs.items():
        known = contexts if first is None else first.contexts
        layers, choice = mass_layers(model, config, given)
        parts = {"layers": layers, "covariances": covariances, "contexts": known, "seed": seed}
        editor = MassEditor.prepare(model, config=config, **parts)
        first = first or editor
        shared = {"find_values": values, "contexts_choice": first.contexts_choice}
        made[name] = replace(editor, layer_choice=choice, **shared)
    return made


def check_names(names: str | Iterable[str]) -> list[str]:
    """The names, each once.

    Raises:
        InputError: If one is unknown or there is none.
    """
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    unknown = [name for name in names if name not in EDITOR_NAMES]
    if unknown or not names:
        what = f"there is no editor {', '.join(map(repr, unknown))}" if unknown else "no editor was named"
        raise InputError(f"{what}; choose from {', '.join(EDITOR_NAMES)}")
    return names


def _untrained(name: str) -> str:
    command = name.replace("_", "-")
    made = f"{name!r} is trained first, by `tl-rome train {command} --out FILE`"
    return f"{made}; give what load_trained reads there (--trained FILE)"


def _label(name: str, editor: Editor) -> str:
    """What an editor is called in tables."""
    doubtful = isinstance(editor, TrainedEditor) and training_doubt(editor.log, editor.config)
    return f"{name} (not converged)" if doubtful else name


def _variant(
    model: HookedModel, base: Rome, config: RomeConfig, contexts: Sequence[str] | Literal["recipe"] | None
) -> Rome:
    """The editor with another preset; its contexts are drawn anew only where the preset's recipe differs."""
    if _recipe(config) == _recipe(base.config) or contexts not in (None, "recipe"):
        return replace(base, config=with_model_defaults(model, config))
    own = Rome.prepare(model, covariance=base.covariance, contexts=contexts, config=config, seed=base.seed or 0)
    return replace(base, config=own.config, contexts=own.contexts, contexts_choice=own.contexts_choice)


def _shortened(editor: Editor, most: int | None) -> Editor:
    """The editor with at most this many contexts."""
    if not isinstance(editor, Rome | MassEditor) or most is None:
        return editor
    contexts, choice = spread_contexts(editor.contexts, editor.contexts_choice, most)
    return replace(editor, contexts=contexts, contexts_choice=choice)


def _recipe(config: RomeConfig) -> tuple:
    return config.context_lengths, config.context_top_k, config.context_openings
