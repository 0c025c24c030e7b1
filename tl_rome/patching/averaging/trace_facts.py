"""Tracing many prompts, with every result saved as soon as it is computed (appendix B.1).

What a store has is not computed again, so a run that was interrupted, for whatever reason, resumes where it was and
loses at most the prompts being traced. The noise of a prompt depends on the seed and on the prompt alone, not on which
prompts are traced, in which order, or by how many processes; all components of a prompt share it.
"""

import logging
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import torch
from tqdm.auto import tqdm

from tl_rome.arguments import Count, Seed
from tl_rome.errors import InputError, StorageError, TLRomeError
from tl_rome.facts import Fact, check_fact
from tl_rome.patching.averaging.trace_store import RESERVED, TraceStore
from tl_rome.patching.config import MetricName, Metrics, TraceConfig, as_asked, named_metrics
from tl_rome.patching.corruption import GaussianNoise, at_scale_of
from tl_rome.patching.metrics import Metric
from tl_rome.patching.patch import Patch
from tl_rome.patching.result import TraceResult
from tl_rome.patching.trace import trace_by_metrics
from tl_rome.running.borrowed import borrows
from tl_rome.running.memory import bytes_of_cache, fitting
from tl_rome.sites import HookedModel, component_name
from tl_rome.storage.files import digest
from tl_rome.storage.ledger import model_settings

COMPONENTS = ("resid_post", "mlp_out", "attn_out")
"""What the paper restores (figure 2)."""
Traces = dict[str, list[TraceResult]]
"""Traces by component."""
_PROMPT_TOKENS = 32
"""More than most prompts have."""
_log = logging.getLogger(__name__)


@overload
def trace_facts(  # pyright: ignore[reportOverlappingOverload]
    model: HookedModel,
    facts: Iterable[Fact],
    components: Sequence[str] = COMPONENTS,
    *,
    store: str | Path,
    seed: Seed = 0,
    config: TraceConfig | None = None,
    metric: MetricName | Metric | None = None,
    batch_size: Count | None = None,
    progress: bool = True,
) -> Traces: ...
@overload
def trace_facts(
    model: HookedModel,
    facts: Iterable[Fact],
    components: Sequence[str] = COMPONENTS,
    *,
    store: str | Path,
    seed: Seed = 0,
    config: TraceConfig | None = None,
    metric: Mapping[str, MetricName | Metric],
    batch_size: Count | None = None,
    progress: bool = True,
) -> dict[str, Traces]: ...
@overload
def trace_facts(
    model: HookedModel,
    facts: Iterable[Fact],
    components: Sequence[str] = COMPONENTS,
    *,
    store: str | Path,
    seed: Seed = 0,
    config: TraceConfig | None = None,
    metric: Sequence[MetricName | Metric],
    batch_size: Count | None = None,
    progress: bool = True,
) -> list[Traces]: ...
@borrows
def trace_facts(
    model: HookedModel,
    facts: Iterable[Fact],
    components: Sequence[str] = COMPONENTS,
    *,
    store: str | Path,
    seed: Seed = 0,
    config: TraceConfig | None = None,
    metric: Metrics | None = None,
    batch_size: Count | None = None,
    progress: bool = True,
) -> Traces | dict[str, Traces] | list[Traces]:
    """Trace many facts, or go on with an earlier run; several processes may call this on one store.

    A fact that cannot be traced is logged, recorded in the store and left out; it is tried again the next time.

    Args:
        model: Left as found.
        facts: Prompts and subjects, and what is scored; one that occurs twice is traced once.
        components: What is patched, as in `causal_trace`; more can be added to a store later.
        store: Folder of results, made if needed. Of several metrics each has a store of its own in it, a folder with
            the metric's name or its place in the list, as it would have alone.
        seed: Of the noise.
        config: How each is traced; the defaults of `causal_trace`, with a noise scale that is measured rounded to six
            digits.
        metric: Instead of the settings' own; several, by name or in a list, are scored in one sweep, see
            `causal_trace`. More can be added to a store later. A fact that fails by one of them is left out by all.
        batch_size: Prompts traced in one go, which keeps a large device busy, and lost together if the run is killed.
            By default what fits the device, 1 on a CPU.
        progress: Whether to show a progress bar over facts.

    Returns:
        Traces by component, in the spelling of `component_name`, in the order of the facts; of several metrics such
        traces for each, by its name or in the order given.

    Raises:
        InputError: If something is not a `Fact`, there is no component or one that the model lacks, or a window or
            bound is impossible, or there is no metric, or one whose name cannot be a folder's, or one that no store can
            tell from others, see `TraceConfig.describe`.
        ModelMismatchError: If the store belongs to another model, or to this one before or after an edit.
        StorageError: If the store was made with other settings, is damaged, or cannot be written.
    """
    if not components:
        raise InputError("there are no components to trace; give at least one, such as 'mlp_out'")
    config = config or TraceConfig()
    components = tuple(dict.fromkeys(map(component_name, components)))
    for component in components:
        Patch.make(model, component, config.width(component), config.clipping, config.sever)
    config = with_measured_noise(model, config)
    asked = config.metric if metric is None else metric
    metrics = named_metrics(asked)
    if odd := [name for name in metrics if name in RESERVED or not re.fullmatch(r"(\w[\w .+-]*)?", name)]:
        raise InputError(f"{odd[0]!r} cannot be a folder's name, where traces by that metric go; give a plain name")
    configs = {name: replace(config, metric=each) for name, each in metrics.items()}
    about = {**model_settings(model), "seed": seed}
    settings = {name: {**about, **each.describe()} for name, each in configs.items()}
    kept = [(TraceStore.begin(Path(store) / name, settings[name]), each) for name, each in configs.items()]
    work = _Work(model, kept, components, seed)
    unique = list(dict.fromkeys(map(check_fact, facts)))
    with tqdm(total=len(unique), desc="trace facts", unit="fact", disable=not progress) as bar:
        bar.update(sum(not work.missing(fact) for fact in unique))
        work.do(unique, batch_size or _prompts_at_once(model, config), wait=False, tick=bar.update)
        work.do(work.busy, 1, wait=True, tick=bar.update)  # should another process die, its work is left to us
    found = [{name: [r for fact in unique if (r := each.get(fact, name))] for name in components} for each, _ in kept]
    return as_asked(asked, found)


def prompt_seed(seed: int, fact: Fact) -> int:
    """Seed of a prompt's noise, from the run's seed and the prompt."""
    return int(digest([seed, fact.template, fact.subject]), 16) >> 1


@dataclass(frozen=True)
class _Work:
    """What is to be done to each fact, and where the results go."""

    model: HookedModel
    kept: Sequence[tuple[TraceStore, TraceConfig]]
    """A store for each metric, and its settings, which differ in the metric alone."""
    components: tuple[str, ...]
    seed: int
    busy: list[Fact] = field(default_factory=list)
    """Facts that another process was tracing."""

    def missing(self, fact: Fact) -> list[TraceStore]:
        """The stores that lack a trace of a fact."""
        return [store for store, _ in self.kept if store.missing(fact, self.components)]

    def do(self, facts: Sequence[Fact], batch_size: int, *, wait: bool, tick: Callable[[int], object]) -> None:
        """Trace what is missing of some facts; those that other processes are tracing are left out or waited for."""
        with closing(self._claimed(facts, batch_size, wait)) as groups:
            for group in groups:
                self._attempt(group)
                tick(len(group))

    def _claimed(self, facts: Sequence[Fact], batch_size: int, wait: bool) -> Generator[list[Fact], None, None]:
        """Groups of facts that are not done; a group's locks are held until the next is asked for."""
        pending = deque(fact for fact in facts if self.missing(fact))
        # In one order, so that no two processes wait for each other.
        stores = sorted((store for store, _ in self.kept), key=lambda store: store.folder)
        while pending:
            with ExitStack() as locks:
                group: list[Fact] = []
                while pending and len(group) < batch_size:
                    fact = pending.popleft()
                    if not all(locks.enter_context(store.claim(fact, wait=wait)) for store in stores):
                        self.busy.append(fact)
                    elif self.missing(fact):  # not done by another process meanwhile
                        group.append(fact)
                if group:
                    yield group

    def _trace(self, group: Sequence[Fact]) -> None:
        for component in self.components:
            needed = [each for each in self.kept if any(each[0].missing(fact, [component]) for fact in group)]
            facts = [fact for fact in group if any(store.missing(fact, [component]) for store, _ in needed)]
            if not facts:
                continue
            draws = [torch.Generator().manual_seed(prompt_seed(self.seed, fact)) for fact in facts]
            options: dict[str, Any] = {"generators": draws, "progress": False}
            found = trace_by_metrics(self.model, facts, component, [config for _, config in needed], **options)
            for fact, results in zip(facts, found, strict=True):
                for (store, _), result in zip(needed, results, strict=True):
                    if store.missing(fact, [component]):
                        store.put(fact, result)

    def _attempt(self, group: Sequence[Fact]) -> None:
        """Trace a group; where that fails, each alone, to leave out the one at fault."""
        try:
            self._trace(group)
        except StorageError:
            raise
        except TLRomeError as error:
            if len(group) > 1:
                for fact in group:
                    self._attempt([fact])
                return
            _log.warning("left out %r: %s", group[0].prompt, error)
            for store in self.missing(group[0]):
                store.put_failure(group[0], error)


def _prompts_at_once(model: HookedModel, config: TraceConfig) -> int:
    """Prompts whose recorded runs, and copies of their keys and values, fit the device."""
    cfg, runs = model.cfg, 2 * (1 + getattr(config.corruption, "samples", 1))
    states = 4 * cfg.n_layers * (3 * cfg.d_model)  # the stream, what is patched and what that is added to, in float32
    each = _PROMPT_TOKENS * runs * (states + bytes_of_cache(model))
    return fitting(model, "prompts to trace", usual=1, each=each, most=8)


def with_measured_noise(model: HookedModel, config: TraceConfig) -> TraceConfig:
    """The settings with noise at the model's own scale, where it has none."""
    corruption = at_scale_of(model, config.corruption)
    if corruption is not config.corruption and isinstance(corruption, GaussianNoise):
        # Six digits: machines, thread counts and classes may differ in the last ones, and should share a store.
        corruption = replace(corruption, sigma=float(f"{corruption.sigma:.6g}"))
    return replace(config, corruption=corruption)
