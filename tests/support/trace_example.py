"""A trace that no model made, for tests of what is done with one."""

import torch

from tl_rome.patching import TraceResult
from tl_rome.tokens import SubjectSpan

RESULT = TraceResult(
    scores=0.1 + torch.arange(24, dtype=torch.float64).view(8, 3) / 30,
    clean_score=0.9,
    corrupted_score=0.1,
    component="resid_post",
    window=1,
    clipping="released",
    prompt="The Louvre is",
    answer=" Paris",
    predicted=" Rome",
    labels=("The", " Louvre", " is"),
    subject=SubjectSpan(0, 2),
    prepend_bos=False,
    samples=10,
    corruption="GaussianNoise(sigma=0.1, samples=10)",
    method="incremental",
    model="0123456789abcdef",
)
