"""Settings that suit a model better than those found on GPT-2 XL and GPT-J: one row per model, for all editors.

A model is known by its name and its shape. Another model of the same shape, such as a fine-tuned one or a folder with a
name of its own, gets the same row as a guess, and receipts say so: Pythia-410M has the shape of GPT-2 medium.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from tl_rome.sites import HookedModel


@dataclass(frozen=True, kw_only=True)
class ModelDefaults:
    """Settings for one model; None where the preset's own are right."""

    names: tuple[str, ...]
    """Patterns of `model.cfg.model_name` without its owner, in lower case; the first one is a name."""
    shape: tuple[int, int]
    """(n_layers, d_model)."""
    layer: int
    """Layer that ROME edits."""
    clamp: float | None = None
    """See `RomeConfig`."""
    extra_evaluations: int | None = None
    """See `RomeConfig`."""
    epsilon: float | None = None
    """See `FineTuneConfig`; for FT+L."""


MODEL_DEFAULTS = (
    # Layers of the GPT-2 models and GPT-J: the authors' causal traces and files of hyperparameters. The published text
    # counts from 1 and says 18 for GPT-2 XL.
    ModelDefaults(names=("gpt2-xl",), shape=(48, 1600), layer=17),
    ModelDefaults(names=("gpt2-large",), shape=(36, 1280), layer=12),
    # The clamp is that of the released file for this model.
    ModelDefaults(names=("gpt2-medium",), shape=(24, 1024), layer=8, clamp=3.0),
    ModelDefaults(names=("gpt-j-6b",), shape=(28, 4096), layer=5),
    # Measured by this package on COUNTERFACT records: a sweep over layers; some targets of several tokens take more
    # than the release's 20 evaluations; an epsilon of 5e-4 leaves four facts in five as they were, and 2e-3 writes all
    # of ten.
    ModelDefaults(names=("smollm2-135m",), shape=(30, 576), layer=5, extra_evaluations=20, epsilon=2e-3),
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
    row = next((row for row in MODEL_DEFAULTS if row.shape == shape), None)
    if row is None:
        return None
    known = any(fnmatchcase(name, pattern) for pattern in row.names)
    return DefaultsFound(row, "" if known else f"a guess: the shape of {row.names[0]}")
