"""The prompt, the noise and the call that tests of tracing share."""

import torch

from tl_rome.facts import Fact
from tl_rome.patching import GaussianNoise, causal_trace

FACT = Fact("In {} is", "Eiffel Tower")  # four tokens, the subject two of them
NOISE = GaussianNoise(0.7, samples=2)


def trace(model, component="resid_post", *, fact=FACT, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return causal_trace(
        model, fact, component, generator=generator, **{"corruption": NOISE, "progress": False, **options}
    )
