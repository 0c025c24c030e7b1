"""Which layer ROME should edit: where restoring MLP outputs at the subject's last token brings back most (section 2.2).

The authors edit layer 17 of GPT-2 XL (18 in the paper, which counts from 1 there) because the average effect of
restoring ten MLP outputs peaks there. A peak over a
broad plateau is a weak choice; how often other draws of the prompts would have moved it is reported beside it. Near the
edges windows are clipped: the one plotted at layer 0 covers the layers above it only.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.arguments import Count, Seed, Share
from tl_rome.bootstrap import interval, resampled_means
from tl_rome.errors import InputError
from tl_rome.fact_files import load_sample_facts
from tl_rome.facts import Fact
from tl_rome.patching.averaging.average import AverageTrace, average_traces
from tl_rome.patching.averaging.known import collect_known_facts
from tl_rome.patching.averaging.roles import Role, role_index
from tl_rome.patching.config import TraceConfig
from tl_rome.patching.corruption import GaussianNoise, at_scale_of
from tl_rome.patching.trace import trace_together
from tl_rome.running.borrowed import borrows
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode_fact

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LayerSuggestion:
    """The layer to edit, and how sure that is."""

    layer: int
    """Where the average effect peaks."""
    low: int
    """First layer of the interval in which the peak lies in `confidence` of the bootstrap draws."""
    high: int
    """Last layer of that interval."""
    confidence: float
    """Of the interval."""
    shares: Float[Tensor, " layer"]
    """Share of bootstrap draws that peak at each layer; they sum to 1."""
    effect: float
    """Average indirect effect at the layer."""
    effect_low: float
    """Lower end of its interval over prompts."""
    effect_high: float
    """Upper end of its interval over prompts."""
    role: Role
    """Where the effect was read."""
    n: int
    """Prompts that it was read on."""

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"layer {self.layer} ({self.confidence:.0%} interval {self.low}-{self.high}, peaks there in "
            f"{self.shares[self.layer]:.0%} of draws; effect {self.effect:.3f} [{self.effect_low:.3f}, "
            f"{self.effect_high:.3f}] over {self.n} prompts)"
        )


def suggest_layer(
    average: AverageTrace,
    *,
    seed: Seed = 0,
    role: Role = "last subject token",
    confidence: Share = 0.95,
    resamples: Count = 2000,
) -> LayerSuggestion:
    """Suggest the layer to edit from an average trace of restored MLP outputs.

    Args:
        average: Average over prompts with `component="mlp_out"`, in windows as the paper's or single.
        seed: Of the bootstrap over prompts.
        role: Where to look for the peak.
        confidence: Of the intervals.
        resamples: Bootstrap draws.

    Raises:
        InputError: If the average is of another component, or has fewer than two prompts with the role.
    """
    if (average.component, average.direction) != ("mlp_out", "denoising"):
        raise InputError(
            f"the average is of {average.direction} {average.component!r}; the layer to edit is read from restoring "
            "'mlp_out' in corrupted runs"
        )
    index = role_index(role)
    n = average.counts[index]
    if n < 2:
        raise InputError(f"{n} prompts with a {role!r} say nothing about uncertainty; average at least two")
    having = average.present[:, index]
    curves, present = average.curves[having, :, index, None], having[having, None]
    generator = torch.Generator().manual_seed(seed)
    draws = resampled_means(curves, present, resamples=resamples, generator=generator)[..., 0]
    peaks = draws.argmax(dim=1)
    low, high = interval(peaks.double(), confidence)
    effect_low, effect_high = interval(draws, confidence)
    layer = int(average.effects[:, index].argmax())
    if effect_low[layer] <= 0:
        _log.warning("no effect of %s at the %s is clear of 0; the layer is a guess", average.component, role)
    return LayerSuggestion(
        layer=layer,
        low=int(low.floor()),
        high=int(high.ceil()),
        confidence=confidence,
        shares=peaks.bincount(minlength=draws.shape[1]).double() / resamples,
        effect=average.effects[layer, index].item(),
        effect_low=effect_low[layer].item(),
        effect_high=effect_high[layer].item(),
        role=role,
        n=n,
    )


@borrows
@torch.no_grad()
def find_layer(
    model: HookedModel,
    facts: Iterable[Fact] | None = None,
    *,
    prompts: Count = 24,
    config: TraceConfig | None = None,
    seed: Seed = 0,
    progress: bool = True,
) -> LayerSuggestion:
    """Trace MLP outputs at the subject's last token of some known facts, and suggest the layer to edit.

    Args:
        model: Left as found.
        facts: Facts with their objects, of which those that the model knows are traced; by default the package's own.
        prompts: Known facts to trace at most.
        config: How they are traced; by default windows of ten, and five draws of noise.
        seed: Of the choice among the facts, of the noise, and of the bootstrap.
        progress: Whether to show progress bars.

    Raises:
        InputError: If the model knows fewer than two of the facts.
    """
    generator = torch.Generator().manual_seed(seed)
    if facts is None:
        shipped = load_sample_facts()
        facts = [shipped[index] for index in torch.randperm(len(shipped), generator=generator).tolist()]
    known = collect_known_facts(model, facts, limit=prompts, progress=progress)
    if len(known) < 2:
        raise InputError(f"the model knows {len(known)} of the facts; give facts that it knows, or name a layer")
    config = config or TraceConfig(corruption=GaussianNoise(samples=5))
    config = replace(config, corruption=at_scale_of(model, config.corruption))  # measured once
    traces = []
    for found in tqdm(known, desc="trace facts", unit="fact", disable=not progress):
        last = encode_fact(model, found.fact).subject.last
        rngs = [torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=generator)))]
        options = {"generators": rngs, "positions": [last], "progress": False}
        traces += trace_together(model, [found.fact], "mlp_out", config, **options)
    return suggest_layer(average_traces(traces, seed=seed), seed=seed)
