"""Traces of several prompts that no model made, and their average."""

import torch

from tl_rome.patching import TraceResult
from tl_rome.patching.averaging.average import average_traces
from tl_rome.tokens import SubjectSpan

LAYERS = 5


def made_trace(start=1, end=4, length=8, *, seed=0, **changes):
    """A trace of random scores; positions before the subject have no effect."""
    scores = torch.rand(LAYERS, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores[:, :start] = 0.1
    settings = {
        "scores": scores,
        "clean_score": 0.8 + 0.01 * seed,
        "corrupted_score": 0.1,
        "component": "mlp_out",
        "window": 3,
        "clipping": "released",
        "prompt": f"prompt {seed}",
        "answer": " Paris",
        "predicted": " Paris",
        "labels": tuple(f" t{position}" for position in range(length)),
        "subject": SubjectSpan(start, end),
        "prepend_bos": False,
        "samples": 10,
        "corruption": "noise",
        "method": "incremental",
        "model": "0123456789abcdef",
    }
    return TraceResult(**settings | changes)


def average_of(results, seed=0, **options):
    return average_traces(results, seed=seed, **{"resamples": 300, **options})


def peaked(layer, *, height=0.5, seed=0, role_position=3, **changes):
    """A trace whose largest effect at the subject's last token is at a layer."""
    scores = 0.1 + 0.02 * torch.rand(LAYERS, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores[layer, role_position] = 0.1 + height
    return made_trace(seed=seed, scores=scores, **changes)
