"""The trace of each fact at the subject's last token alone, where ROME edits; kept as soon as it is computed."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.errors import InputError, StorageError, TLRomeError
from tl_rome.facts import Fact
from tl_rome.patching.averaging.trace_facts import prompt_seed
from tl_rome.patching.config import TraceConfig
from tl_rome.patching.trace import trace_together
from tl_rome.running.borrowed import borrowed
from tl_rome.sites import HookedModel
from tl_rome.storage.ledger import model_settings, open_ledger
from tl_rome.storage.parts import read_as, reading
from tl_rome.tokens import encode_fact

Effects = dict[Fact, Float[Tensor, "component layer"]]
"""Indirect effects of restoring each component at each layer of the model, by fact."""
_FIELDS = {"fact": dict, "effects": list}
"""What a line of the store has."""
_log = logging.getLogger(__name__)


def trace_subjects(
    model: HookedModel,
    facts: Sequence[Fact],
    components: Sequence[str],
    config: TraceConfig,
    *,
    store: Path,
    seed: int,
    progress: bool,
) -> tuple[Effects, dict[Fact, str]]:
    """Trace facts at the subject's last token; the noise of a fact is that of `trace_facts` with the same seed.

    Args:
        model: Left as found.
        facts: With the objects that are scored; what occurs twice is traced once.
        components: Spelt as by `component_name`, all of them with a hook point in every block.
        config: Settings without units, and with noise of a given scale, see `with_measured_noise`.
        store: File of what was traced, made if needed; those in it are not traced again.
        seed: Of the noise.
        progress: Whether to show a progress bar over facts.

    Returns:
        The effects, and the reason for each fact that could not be traced; these are tried again the next time.

    Raises:
        InputError: If a component is not traced at every layer.
        ModelMismatchError: If the store belongs to another model.
        StorageError: If the store was made with other settings, is damaged, in use, or cannot be written.
    """
    settings = {**model_settings(model), "seed": seed, **config.describe(), "components": list(components)}
    found, failed = Effects(), dict[Fact, str]()
    with borrowed(model), open_ledger(store, "trace effects", settings, _FIELDS) as ledger:
        for line in ledger.records:
            with reading(store, "traced effects"):
                fact = read_as(Fact, line["fact"])
                rows = read_as(tuple[tuple[float, ...], ...], line["effects"])
                found[fact] = torch.tensor(rows, dtype=torch.float64)
                if found[fact].shape != (len(components), model.cfg.n_layers):
                    raise ValueError(f"{len(rows)} rows of effects for {len(components)} components")
        missing = [fact for fact in dict.fromkeys(facts) if fact not in found]
        for fact in tqdm(missing, desc="trace facts", unit="fact", disable=not progress):
            try:
                found[fact] = _trace(model, fact, components, config, seed)
            except StorageError:
                raise
            except TLRomeError as error:
                _log.warning("left out %r: %s", fact.prompt, error)
                failed[fact] = f"{type(error).__name__}: {error}"
                continue
            if len(found[fact][0]) != model.cfg.n_layers:
                raise InputError(f"{', '.join(components)} are not traced at every layer; name others")
            ledger.append({"fact": asdict(fact), "effects": found[fact].tolist()})
    return found, failed


def _trace(
    model: HookedModel, fact: Fact, components: Sequence[str], config: TraceConfig, seed: int
) -> Float[Tensor, "component layer"]:
    last, rows = encode_fact(model, fact).subject.last, []
    for component in components:
        options: dict[str, Any] = {"positions": [last], "progress": False}
        options["generators"] = [torch.Generator().manual_seed(prompt_seed(seed, fact))]
        [result] = trace_together(model, [fact], component, config, **options)
        rows.append(result.effects[:, last])
    return torch.stack(rows)
