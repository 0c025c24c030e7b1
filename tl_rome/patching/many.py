"""Tracing many prompts, with every result kept as soon as it is there (appendix A.1).

What a store has is not done again, so a run that ended, however it ended, goes on where it was and loses at most the
prompt in hand. The noise of a prompt depends on the seed and on the prompt alone, not on which prompts are traced, in
which order, or by how many processes; all components of a prompt share it.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from tl_rome.errors import InputError, StorageError, TLRomeError
from tl_rome.facts import Fact
from tl_rome.ledger import model_settings
from tl_rome.patching.corruption import Corruption, GaussianNoise, noise_scale
from tl_rome.patching.result import TraceResult
from tl_rome.patching.trace import causal_trace
from tl_rome.patching.trace_store import TraceStore, digest
from tl_rome.patching.windows import Clipping
from tl_rome.sites import HookedModel, Site

COMPONENTS = ("resid_post", "mlp_out", "attn_out")
"""What the paper restores."""
_log = logging.getLogger(__name__)


def trace_facts(
    model: HookedModel,
    facts: Iterable[Fact],
    components: Sequence[str] = COMPONENTS,
    *,
    store: str | Path,
    seed: int = 0,
    window: int | Mapping[str, int] | None = None,
    clipping: Clipping = "released",
    corruption: Corruption | None = None,
    max_rows: int = 512,
    progress: bool = True,
) -> dict[str, list[TraceResult]]:
    """Trace many facts, or go on with an earlier run; several processes may call this on one store.

    A fact that cannot be traced is logged, recorded in the store and left out; it is tried again the next time.

    Args:
        model: Left as found.
        facts: Prompts and subjects, and what is scored; one that occurs twice is traced once.
        components: What is restored, as in `causal_trace`; more can be added to a store later.
        store: Folder of results, made if needed.
        seed: Of the noise.
        window: Layers restored together, for every component or by component; `causal_trace`'s own by default.
        clipping: Which layers a window covers.
        corruption: What is done to the subject's embeddings; by default ten draws of `GaussianNoise` at `noise_scale`,
            to six digits. A dataclass is known to the store by its fields, another callable by its name.
        max_rows: Bound on the rows run at once, as in `causal_trace`.
        progress: Whether to show a progress bar over facts.

    Returns:
        Traces by component, in the order of the facts.

    Raises:
        InputError: If there is no component, or one that the model lacks.
        ModelMismatchError: If the store belongs to another model, or to this one before or after an edit.
        StorageError: If the store was made with other settings, is damaged, or cannot be written.
    """
    if not components:
        raise InputError("there is no component to restore; give at least one, such as 'mlp_out'")
    for component in components:
        Site(component, 0).check(model)
    work = _Work(seed, window, clipping, corruption or _default_noise(model), max_rows)
    kept = TraceStore.begin(store, model_settings(model) | work.settings)
    unique = list(dict.fromkeys(facts))
    with tqdm(total=len(unique), desc="trace facts", unit="fact", disable=not progress) as bar:
        busy = []
        for fact in unique:
            if _do(model, fact, components, work, kept, wait=False):
                bar.update()
            else:
                busy.append(fact)
        for fact in busy:  # another process had them; if it dies, its work is left to us
            bar.update(_do(model, fact, components, work, kept, wait=True))
    return {component: [r for fact in unique if (r := kept.get(fact, component))] for component in components}


def prompt_seed(seed: int, fact: Fact) -> int:
    """Seed of a prompt's noise, from the run's seed and the prompt."""
    return int(digest([seed, fact.template, fact.subject]), 16) >> 1


@dataclass(frozen=True)
class _Work:
    """How each fact is traced."""

    seed: int
    window: int | Mapping[str, int] | None
    clipping: Clipping
    corruption: Corruption
    max_rows: int

    @property
    def settings(self) -> dict[str, Any]:
        """What the numbers depend on."""
        return {
            "seed": self.seed,
            "window": dict(self.window) if isinstance(self.window, Mapping) else self.window,
            "clipping": self.clipping,
            "corruption": _describe(self.corruption),
        }

    def run(self, model: HookedModel, fact: Fact, component: str) -> TraceResult:
        return causal_trace(
            model,
            fact,
            component,
            generator=torch.Generator().manual_seed(prompt_seed(self.seed, fact)),
            window=self.window.get(component) if isinstance(self.window, Mapping) else self.window,
            clipping=self.clipping,
            corruption=self.corruption,
            max_rows=self.max_rows,
            progress=False,
        )


def _do(
    model: HookedModel, fact: Fact, components: Sequence[str], work: _Work, kept: TraceStore, *, wait: bool
) -> bool:
    """Trace what is missing of a fact; False if another process is at it and we are not to wait."""
    if not kept.missing(fact, components):
        return True
    with kept.claim(fact, wait=wait) as ours:
        if not ours:
            return False
        try:
            for component in kept.missing(fact, components):
                kept.put(fact, work.run(model, fact, component))
        except StorageError:
            raise
        except TLRomeError as error:
            _log.warning("left out %r: %s", fact.prompt, error)
            kept.put_failure(fact, error)
    return True


def _default_noise(model: HookedModel) -> GaussianNoise:
    # Six digits: machines and thread counts may differ in the last ones, and should share a store.
    return GaussianNoise(float(f"{noise_scale(model):.6g}"))


def _describe(corruption: Corruption) -> str:
    if hasattr(corruption, "__dataclass_fields__"):
        return repr(corruption)
    return getattr(corruption, "__qualname__", type(corruption).__qualname__)
