"""What the mass editors do in each of their sources, as plain values of one implementation.

MEMIT (Meng et al. 2023, arXiv 2210.07229), EMMET (Gupta et al. 2024, 2403.14236), AlphaEdit (Fang et al. 2025,
2410.02355) and PMET (Li et al. 2024, 2308.08742), each as its authors' public code has it. What differs between models
is in `model_defaults`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from tl_rome.arguments import Count, Finite, NotNegative, Positive, Share, Whole
from tl_rome.editors.departures import departures_from
from tl_rome.editors.mass.shrink.prune import PruneBase
from tl_rome.editors.model_defaults import find_defaults
from tl_rome.editors.rank_one.presets import OPENINGS, RELEASED, RomeConfig
from tl_rome.editors.rank_one.value_settings import ValueSettings, ValueSite
from tl_rome.errors import InputError
from tl_rome.sites import HookedModel


@dataclass(frozen=True, kw_only=True)
class MassConfig:
    """Settings of one mass edit; none of them says anything about the model.

    Raises:
        InputError: If a number is out of its range, a choice is unknown, or settings exclude each other.
    """

    preset: str
    """Name of the source these values follow; written into every receipt."""
    depth: Count = 5
    """Layers that are edited where none are given and none are known for the model: these many, ending with its own."""
    value_site: ValueSite = "resid_post"
    """Where z lives: the highest layer's output, that of its W_out, or of W_out with an offset on attention too."""
    key_weighting: Literal["half", "flat"] = "half"
    """Half the bare prompt's key and half the mean of the others, or the mean of all."""
    spread: Literal["linear", "sqrt", "none"] = "linear"
    """Each of the m - i layers left gets the residual by m - i, by its square root, or whole."""
    covariance_weight: NotNegative | None = None
    """lambda, the weight of C; for EMMET w. None means d_mlp, which compares across models."""
    equality_ridge: NotNegative | None = None
    """EMMET's e: lambda is e w, and 0, exact equality, for a single fact; None for the other editors."""
    ridge: NotNegative = 0.0
    """rho, of ENCORE."""
    energy_share: Share | None = None
    """Confine the change to the directions of key space that hold at most this share of tr C; C has no weight then."""
    absolute_cut: Positive | None = None
    """The same by an eigenvalue of C, in its units."""
    l2: NotNegative = 10.0
    """Weight of the change's own size inside that subspace."""
    memory: bool = False
    """Whether keys of earlier batches are kept, see `KeyMemory`."""
    learning_rate: Positive = 0.5
    """Adam's step size on delta."""
    max_evaluations: Count
    """Evaluations of the loss; there is one update fewer."""
    extra_evaluations: Whole = 0
    """See `RomeConfig`."""
    stop_loss: Finite = 5e-2
    """Optimisation ends as soon as the total loss falls below this."""
    nll_factor: Positive = 1.0
    """Weight of the NLL."""
    relax_when_predicted: bool = False
    """PMET: a tenth of that weight while the target is predicted in every context, and an end once KL is small too."""
    early_stop: bool = False
    """MPES: end at the second evaluation in which the target is predicted in every context."""
    kl_factor: NotNegative = 0.0625
    """See `RomeConfig`."""
    kl_template: str = "{} is a"
    """See `RomeConfig`."""
    norm_penalty: NotNegative = 0.5
    """Weight of ||delta|| / ||v0||^2, at the value's site."""
    clamp: Positive | None = 0.75
    """Largest ||delta|| as a multiple of ||v0||, at the value's site."""
    norm_anchor: Positive | None = None
    """NAS: W_out's output with delta is scaled to this norm, and delta dropped where it is more than twice as large."""
    context_lengths: tuple[tuple[Count, Whole], ...] = ((10, 5),)
    """See `RomeConfig`; the opening counts."""
    context_top_k: Count = 5
    """See `RomeConfig`."""
    context_openings: tuple[str, ...] = OPENINGS
    """See `RomeConfig`."""
    merge_subjects: bool = False
    """Whether facts of one subject get one delta, by their mean loss, and one key."""
    rect_share: Share | Literal["alphaedit"] | None = None
    """Keep this share of each finished change, the entries that are largest beside W_out's, see `rect`."""
    prune_base: PruneBase | None = None
    """Lower the singular values of each finished change that exceed W_out's largest, see `prune`; in a series of
    batches each is cut by itself, beside the weights that it was made on."""

    def __post_init__(self) -> None:
        if self.energy_share is not None and self.absolute_cut is not None:
            raise InputError("energy_share and absolute_cut name one subspace in two ways; give one of them")
        if self.rect_share is not None and self.prune_base is not None:
            raise InputError("rect_share and prune_base cut one change in two ways; give one of them")
        if self.in_subspace and not self.l2:
            raise InputError("l2 is 0: inside its subspace nothing would hold the change back; give a weight above 0")
        if self.in_subspace and (self.covariance_weight or self.equality_ridge is not None or self.ridge):
            raise InputError("in a subspace l2 is the only weight; leave out covariance_weight, equality_ridge, ridge")

    @property
    def in_subspace(self) -> bool:
        """Whether changes are confined to a subspace."""
        return self.energy_share is not None or self.absolute_cut is not None

    @property
    def cuts(self) -> bool:
        """Whether something is cut from finished changes."""
        return self.rect_share is not None or self.prune_base is not None

    @property
    def value_settings(self) -> ValueSettings:
        """What z depends on, once contexts are given."""
        return ValueSettings(**self._shared(ValueSettings))

    @property
    def recipe(self) -> RomeConfig:
        """The recipe of contexts, as one of ROME that has it."""
        return replace(RELEASED, **self._shared(RomeConfig))

    def _shared(self, other: type) -> dict[str, Any]:
        names = {field.name for field in fields(self)} & {field.name for field in fields(other)}
        return {name: getattr(self, name) for name in names}

    @property
    def departures(self) -> str:
        """Settings in which this is not the preset it names; for the receipt."""
        return departures_from(self, MASS_PRESETS.get(self.preset, self))

    def weight_for(self, facts: int, d_mlp: int) -> float:
        """Lambda for a batch of so many facts."""
        weight = float(d_mlp) if self.covariance_weight is None else self.covariance_weight
        if self.equality_ridge is None:
            return weight
        return 0.0 if facts == 1 else self.equality_ridge * weight


MEMIT = MassConfig(preset="memit", max_evaluations=20)
"""MEMIT's public code."""

MEMIT_SEQ = replace(MEMIT, preset="memit_seq", memory=True)
"""MEMIT with key memory, for batch after batch in one model."""

EMMET = replace(MEMIT, preset="emmet", depth=1, covariance_weight=1.0, equality_ridge=0.1, max_evaluations=25)
"""The settings for GPT-J and Llama-2; a single fact is stored exactly."""

ALPHAEDIT = replace(MEMIT, preset="alphaedit", energy_share=0.1, l2=10.0, memory=True)
"""AlphaEdit with a subspace that compares across models; L2 as released."""

ALPHAEDIT_RELEASED = replace(ALPHAEDIT, preset="alphaedit_released", energy_share=None, absolute_cut=2e-2)
"""The absolute cut of the public code, in the units of each model's own C."""

PMET = replace(
    MEMIT,
    preset="pmet",
    value_site="w_out+w_o",
    spread="sqrt",
    learning_rate=0.2,
    max_evaluations=30,
    kl_factor=1.0,
    relax_when_predicted=True,
)
"""PMET's GPT-J settings; the offset on attention is thrown away, as by its released default."""

MEMIT_RECT = replace(MEMIT, preset="memit_rect", rect_share="alphaedit")
"""MEMIT of which RECT keeps 40%, as in AlphaEdit's tables (2401.04700 in the code of 2410.02355)."""

MEMIT_PRUNE = replace(MEMIT, preset="memit_prune", prune_base=math.e)
"""MEMIT with PRUNE's natural logarithm, on the right base (2405.16821)."""

_ALL = (MEMIT, MEMIT_SEQ, EMMET, ALPHAEDIT, ALPHAEDIT_RELEASED, PMET, MEMIT_RECT, MEMIT_PRUNE)
MASS_PRESETS = {config.preset: config for config in _ALL}
"""The presets by name."""


def mass_preset_named(name: str) -> MassConfig:
    """The preset of this name.

    Raises:
        InputError: If there is none.
    """
    if name not in MASS_PRESETS:
        raise InputError(f"there is no preset {name!r}; use one of {', '.join(MASS_PRESETS)}, or a MassConfig")
    return MASS_PRESETS[name]


def mass_model_defaults(model: HookedModel, config: MassConfig) -> MassConfig:
    """A preset with what suits the model; any other configuration as it is.

    Args:
        model: Only its name and its shape are looked at.
        config: Preset, or a configuration of one's own, which is kept.
    """
    found = find_defaults(model)
    if found is None or config != MASS_PRESETS.get(config.preset) or config.preset not in found.row.mass:
        return config
    return replace(config, **found.row.mass[config.preset].changes)


def mass_layers(
    model: HookedModel, config: MassConfig, available: Iterable[int] | None = None
) -> tuple[tuple[int, ...], str]:
    """The layers to edit, lowest first, and why these, for the receipt.

    Args:
        model: Only its name and its shape are looked at.
        config: Says whose layers.
        available: Those that there are statistics of, which are taken where nothing is known; else the rule's are.
    """
    found = find_defaults(model)
    if found is not None and config.preset in found.row.mass:
        return found.row.mass[config.preset].layers, found.guess or f"known for {found.row.names[0]}"
    if available is not None:
        return tuple(sorted(available)), "those of the statistics"
    last = model.cfg.n_layers // 4
    layers = tuple(range(max(0, last - config.depth + 1), last + 1))
    return layers, f"ending a quarter of the way up; nothing is known for {model.cfg.model_name}"
