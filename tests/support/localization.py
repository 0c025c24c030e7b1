"""A localization report that no model made."""

import torch

from tl_rome.counterfact.experiments.localization.report import LocalizationReport
from tl_rome.counterfact.experiments.localization.scores import SCORES

LAYERS = (1, 4, 6)


def made_report(facts=12, *, link=0.0, seed=0, **changes):
    """Scores that depend on the layer, which is best at 4, and by `link` on the first component's effects."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(2 + len(SCORES), facts, len(LAYERS), generator=generator, dtype=torch.float64)
    effects, noise = draw[:2], draw[2:]
    scores = torch.tensor([0.2, 0.5, 0.3]) + 0.1 * noise + link * effects[0]
    settings = {
        "effects": effects,
        "scores": scores,
        "held_out": torch.arange(facts) % 2 == 0,
        "layers": LAYERS,
        "components": ("mlp_out", "resid_post"),
        "windows": (10, 1),
        "corruption": "noise",
        "cases": tuple(range(100, 100 + facts)),
        "prompts": tuple(f"prompt {fact}" for fact in range(facts)),
        "left_out": ((7, "it could not be traced"),),
        "model": "0123456789abcdef",
        "resamples": 300,
    }
    return LocalizationReport(**settings | changes)
