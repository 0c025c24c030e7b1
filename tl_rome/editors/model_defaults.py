"""Settings that suit a model better than those found on GPT-2 XL and GPT-J: one row per model, for all editors.

A model is known by its name and its shape. Another model of the same shape, such as a fine-tuned one or a folder with a
name of its own, gets the same row as a guess, and receipts say so: Pythia-410M has the shape of GPT-2 medium.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from tl_rome.sites import HookedModel


@dataclass(frozen=True)
class MassDefaults:
    """What a preset of mass editing is for one model."""

    layers: tuple[int, ...]
    """Layers that are edited, lowest first."""
    changes: Mapping[str, Any]
    """Settings that are not those of the preset, see `MassConfig`."""


@dataclass(frozen=True, kw_only=True)
class ModelDefaults:
    """Settings for one model; None where the preset's own are right."""

    names: tuple[str, ...]
    """Patterns of `model.cfg.model_name` without its owner, in lower case; the first one is a name."""
    shape: tuple[int, int]
    """(n_layers, d_model)."""
    layer: int | None = None
    """Layer that ROME edits."""
    clamp: float | None = None
    """See `RomeConfig`."""
    extra_evaluations: int | None = None
    """See `RomeConfig`."""
    epsilon: float | None = None
    """See `FineTuneConfig`; for FT+L."""
    mass: Mapping[str, MassDefaults] = field(default_factory=dict)
    """By preset of mass editing."""


_MEMITS = ("memit", "memit_seq", "memit_rect", "memit_prune")
_ALPHAEDITS = ("alphaedit", "alphaedit_released")


def _memits(layers: tuple[int, ...], weight: float, **changes: Any) -> dict[str, MassDefaults]:
    """MEMIT, and what remembers or cuts its changes."""
    return {name: MassDefaults(layers, {"covariance_weight": weight, **changes}) for name in _MEMITS}


def _alphaedits(layers: tuple[int, ...], **changes: Any) -> dict[str, MassDefaults]:
    """AlphaEdit, by both cuts."""
    return {name: MassDefaults(layers, changes) for name in _ALPHAEDITS}


_EASYEDIT = {"max_evaluations": 25, "clamp": 4.0, "norm_penalty": 1e-3}
"""EasyEdit's files of MEMIT for models of seven billion parameters and fewer."""


MODEL_DEFAULTS = (
    # Layers of the GPT-2 models and GPT-J: the authors' causal traces and files of hyperparameters. The published text
    # counts from 1 and says 18 for GPT-2 XL.
    ModelDefaults(
        names=("gpt2-xl",),
        shape=(48, 1600),
        layer=17,
        mass={
            **_memits((13, 14, 15, 16, 17), 20_000.0),
            **_alphaedits((13, 14, 15, 16, 17)),
            "emmet": MassDefaults((17,), {"covariance_weight": 1000.0, "max_evaluations": 20}),
            # A file of BLUE's repository; PMET's own has none for this model.
            "pmet": MassDefaults(
                (13, 14, 15, 16, 17),
                {
                    "covariance_weight": 10_000.0,
                    "max_evaluations": 20,
                    "learning_rate": 0.5,
                    "clamp": 2.0,
                    "kl_factor": 0.0625,
                },
            ),
        },
    ),
    ModelDefaults(names=("gpt2-large",), shape=(36, 1280), layer=12),
    # The clamp is that of the released file for this model.
    ModelDefaults(names=("gpt2-medium",), shape=(24, 1024), layer=8, clamp=3.0),
    ModelDefaults(
        names=("gpt-j-6b",),
        shape=(28, 4096),
        layer=5,
        mass={
            **_memits((3, 4, 5, 6, 7, 8), 15_000.0, max_evaluations=25),
            **_alphaedits((3, 4, 5, 6, 7, 8), max_evaluations=25),
            "emmet": MassDefaults((5,), {}),
            "pmet": MassDefaults((3, 4, 5, 6, 7, 8), {"covariance_weight": 6000.0}),
        },
    ),
    # MEMIT's paper and PMET's file. Neither names a layer for ROME.
    ModelDefaults(
        names=("gpt-neox-20b",),
        shape=(44, 6144),
        mass={
            **_memits((6, 7, 8, 9, 10), 20_000.0, clamp=0.3),
            "pmet": MassDefaults(
                (6, 7, 8, 9, 10),
                {"covariance_weight": 15_000.0, "learning_rate": 0.5, "clamp": 0.8, "kl_factor": 0.8},
            ),
        },
    ),
    # EMMET's repository, which has a MEMIT of this one layer too; otherwise EasyEdit's.
    ModelDefaults(
        names=("llama-2-7b", "llama-2-7b-hf", "llama-2-7b-chat*"),
        shape=(32, 4096),
        mass={
            **_memits((4, 5, 6, 7, 8), 15_000.0, **_EASYEDIT),
            "emmet": MassDefaults((5,), {"clamp": 4.0, "norm_penalty": 1e-3}),
            "pmet": MassDefaults(
                (4, 5, 6, 7, 8),
                {
                    "covariance_weight": 15_000.0,
                    "max_evaluations": 20,
                    "learning_rate": 0.5,
                    "clamp": 1.0,
                    "kl_factor": 0.0625,
                },
            ),
        },
    ),
    ModelDefaults(
        names=("llama-7b*", "mistral-7b*"), shape=(32, 4096), mass=_memits((4, 5, 6, 7, 8), 15_000.0, **_EASYEDIT)
    ),
    ModelDefaults(
        names=("qwen2.5-7b*",),
        shape=(28, 3584),
        mass={
            **_memits((4, 5, 6, 7, 8), 15_000.0, **_EASYEDIT),
            **_alphaedits((4, 5, 6, 7, 8), l2=1.0, **_EASYEDIT),
        },
    ),
    ModelDefaults(names=("qwen2-7b*",), shape=(28, 3584), mass=_memits((4, 5, 6, 7, 8), 15_000.0, **_EASYEDIT)),
    ModelDefaults(names=("llama-3.2-3b*",), shape=(28, 3072), mass=_memits((4, 5, 6, 7, 8), 15_000.0, **_EASYEDIT)),
    # AlphaEdit's repository, and BLUE's for PMET.
    ModelDefaults(
        names=("meta-llama-3-8b-instruct", "meta-llama-3-8b", "llama-3-8b*"),
        shape=(32, 4096),
        mass={
            **_memits((4, 5, 6, 7, 8), 15_000.0, max_evaluations=25, learning_rate=0.1),
            **_alphaedits((4, 5, 6, 7, 8), max_evaluations=25, learning_rate=0.1),
            "pmet": MassDefaults(
                (4, 5, 6, 7, 8),
                {"covariance_weight": 15_000.0, "max_evaluations": 25, "learning_rate": 0.1, "kl_factor": 0.0625},
            ),
        },
    ),
    # Measured by this package on COUNTERFACT records: a sweep over layers; some targets of several tokens take more
    # than the release's 20 evaluations; an epsilon of 5e-4 leaves four facts in five as they were, and 2e-3 writes all
    # of ten.
    # Mass editing: five layers around ROME's, and lambda = d_mlp, as the published ones are in proportion to theirs.
    ModelDefaults(
        names=("smollm2-135m",),
        shape=(30, 576),
        layer=5,
        extra_evaluations=20,
        epsilon=2e-3,
        mass={
            **_memits((3, 4, 5, 6, 7), 1500.0, extra_evaluations=20),
            **_alphaedits((3, 4, 5, 6, 7), extra_evaluations=20, l2=1.0),
            "emmet": MassDefaults((7,), {"covariance_weight": 1500.0, "max_evaluations": 20, "extra_evaluations": 20}),
            "pmet": MassDefaults((3, 4, 5, 6, 7), {"covariance_weight": 1500.0, "learning_rate": 0.5}),
        },
    ),
)


@dataclass(frozen=True)
class DefaultsFound:
    """A row that fits a model."""

    row: ModelDefaults
    """The settings."""
    guess: str
    """Why they may not suit, in words; empty where the model is known by its name."""


def find_defaults(model: HookedModel) -> DefaultsFound | None:
    """The row of a model, by name and shape, or else by shape alone; None if there is none.

    Args:
        model: Only its name and its shape are looked at.
    """
    shape = model.cfg.n_layers, model.cfg.d_model
    name = (getattr(model.cfg, "model_name", None) or "").split("/")[-1].lower()
    rows = [row for row in MODEL_DEFAULTS if row.shape == shape]
    for row in rows:
        if any(fnmatchcase(name, pattern) for pattern in row.names):
            return DefaultsFound(row, "")
    if len(rows) != 1:  # none, or several models of one shape that have little in common
        return None
    return DefaultsFound(rows[0], f"a guess: the shape of {rows[0].names[0]}")
