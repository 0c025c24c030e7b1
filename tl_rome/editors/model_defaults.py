"""Settings of ROME that suit a model better than those found on GPT-2 XL and GPT-J, by the model's shape."""

from dataclasses import replace
from typing import Any

from tl_rome.editors.rank_one.presets import P_ROME, R_ROME, RELEASED, RomeConfig
from tl_rome.sites import HookedModel

_SETTINGS: dict[tuple[int, int], dict[str, Any]] = {
    (24, 1024): {"clamp": 3.0},
    (30, 576): {"extra_evaluations": 20},
}
"""By (n_layers, d_model): GPT-2 medium from its file in the released code; SmolLM2-135M, which takes more than the
release's 20 evaluations to learn some targets of several tokens."""


def suited(model: HookedModel, config: RomeConfig) -> RomeConfig:
    """The released preset, `R_ROME` or `P_ROME` with what suits the model; any other configuration as it is.

    Args:
        model: Only its shape is looked at.
        config: Preset, or a configuration of one's own, which is kept.
    """
    if config not in (RELEASED, R_ROME, P_ROME):
        return config
    return replace(config, **_SETTINGS.get((model.cfg.n_layers, model.cfg.d_model), {}))
