"""Running editors over records: score before, edit, score after, generate; nothing is ever written to the model.

The unedited model is measured once for all editors. Edits are made and measured in batches, each record in the model
with its own edit; where one record of a batch fails, each is tried alone. Each finished batch is stored immediately.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tl_rome.arguments import Count, Seed
from tl_rome.counterfact.evaluation.guard import WeightGuard
from tl_rome.counterfact.evaluation.measure import EvaluationConfig, compare, measure
from tl_rome.counterfact.evaluation.run import Batch, Identity, RecordResult, Run
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.counterfact.results import UNEDITED, CaseResult
from tl_rome.editors.edits.sequence import EditSequence
from tl_rome.editors.edits.virtual import AnyEdit, VirtualEdits
from tl_rome.editors.identity import describe_editor, editor_name
from tl_rome.editors.protocol import Editor
from tl_rome.errors import EditStateError, InputError, StorageError, TLRomeError
from tl_rome.running.borrowed import borrowed
from tl_rome.running.interrupts import reliable
from tl_rome.running.memory import Halving, bytes_of_cache, fitting, is_out_of_memory
from tl_rome.sites import HookedModel, is_hooked_transformer
from tl_rome.storage.ledger import model_settings
from tl_rome.storage.text import has_half_character, visible

USUAL = 8
"""Records in a batch on a CPU, and where the processes that measure have yet to load their models."""
_TEXTS = 10
"""Generation prompts of a record in the released data."""
_ANSWERS, _PROMPT = 3, 40
"""Rewrite and paraphrase prompts of a record there, and the tokens of a long one."""


def evaluate(
    model: HookedModel,
    records: Iterable[CounterFactRecord],
    editors: Editor | Mapping[str, Editor] | None = None,
    *,
    store: str | Path | None = None,
    batch_size: Count | None = None,
    config: EvaluationConfig | None = None,
    free: bool = False,
    seed: Seed = 0,
    shard: tuple[int, int] = (0, 1),
    retry_failed: bool = False,
    progress: bool = True,
) -> list[CaseResult]:
    """Measure what editors do to each record, each edit in a model of its own; or continue an earlier run.

    A record that cannot be measured or edited is logged, and has a result with `error`, which is kept like any other.

    Args:
        model: Unedited; left as found.
        records: Each case_id once.
        editors: One, such as `Rome.prepare(model)`, or several by name; None measures the unedited model alone.
        store: Folder of results, made if needed; by default nothing is kept on disk.
        batch_size: Records edited and measured together, and lost together if the run dies; bounds memory. By default
            what fits the device, 8 on a CPU. Where memory runs out, half.
        config: What is measured.
        free: As `config.free`: whether the model answers prompts by itself too.
        seed: Of the generated texts.
        shard: (i, n) measures every n-th record from the i-th on, counted from 0, for n processes with a store each;
            results of all shards together are those of the whole data set.
        retry_failed: Whether to try records again whose results in the store are such failures.
        progress: Whether to show a progress bar over records.

    Returns:
        One result per editor and record, in this order.

    Raises:
        InputError: If there are no records, two with one case_id, a batch_size below 1, or no such shard.
        UnsupportedModelError: See `borrowed`.
        ModelMismatchError: If the store or an editor belongs to another model, or to this one after an edit.
        StorageError: If the store was made with other records or settings, is damaged, in use, or cannot be written.
        EditStateError: If an editor left the model changed; its weights are put back before.
    """
    config = config or EvaluationConfig()
    evaluator = Evaluator(model, named_editors(editors), replace(config, free=free or config.free), seed)
    run = Run(
        records=tuple(records),
        config=evaluator.config,
        seed=seed,
        batch_size=batch_size or evaluator.batch_size,
        shard=shard,
        retry_failed=retry_failed,
        progress=progress,
    )
    with results_folder(store) as folder:
        return run.fill(folder, evaluator.identity, lambda batches: map(evaluator.run, batches))


def named_editors(editors: Editor | Mapping[str, Editor] | None) -> Mapping[str, Editor]:
    """Editors by name.

    Raises:
        InputError: If one has the name of the unedited model or one that cannot be written, or they are neither an
            editor nor editors by name.
    """
    if editors is None:
        return {}
    if not isinstance(editors, Mapping) and not callable(editors):
        raise InputError(
            f"editors are {editors!r}; give an editor, several by name as in {{'rome': editor}}, or what "
            "editors_by_name(model, ['rome']) returns"
        )
    named = editors if isinstance(editors, Mapping) else {editor_name(editors): editors}
    if UNEDITED in named:
        raise InputError(f"{UNEDITED!r} is the name of the model without edits; give the editor another name")
    if unwritable := [name for name in named if has_half_character(name)]:
        raise InputError(f"the name {unwritable[0]!r} holds half a character (a lone surrogate); give another one")
    return named


@reliable
def results_folder(store: str | Path | None) -> Iterator[Path]:
    """The folder that keeps results; without one, a temporary folder that is gone afterwards.

    Raises:
        StorageError: If no temporary folder can be made.
    """
    if store is not None:
        yield Path(store)
        return
    try:
        place = TemporaryDirectory(prefix="tl_rome-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(
            f"cannot make a temporary folder for the results: {error}; give a store, or set the environment variable "
            "TMPDIR to a folder that can be written"
        ) from error
    with place as folder:
        yield Path(folder)


@dataclass(frozen=True)
class Evaluator:
    """A model and editors that measure batches of records; no file is read or written."""

    model: HookedModel
    """Unedited; left as found."""
    editors: Mapping[str, Editor]
    """By name."""
    config: EvaluationConfig
    """What is measured."""
    seed: int
    """Of the generated texts."""

    @property
    def identity(self) -> Identity:
        """What the results depend on."""
        return Identity(
            model_settings(self.model), {name: describe_editor(editor) for name, editor in self.editors.items()}
        )

    @property
    def batch_size(self) -> int:
        """Records whose texts' keys and values, and perhaps dense edits, fit the device; the usual number on a CPU."""
        is_hooked_transformer(self.model)
        cfg, config = self.model.cfg, self.config
        texts = 0 if not config.generation_length else config.texts or _TEXTS
        edit = 4 * cfg.d_model * (cfg.d_mlp or 4 * cfg.d_model)
        tokens = texts * config.generation_length + config.free * _ANSWERS * (_PROMPT + config.free_tokens)
        each = tokens * bytes_of_cache(self.model) + edit
        return fitting(self.model, "records", usual=USUAL, each=each, most=64)

    def run(self, batch: Batch) -> list[RecordResult]:
        """Measure a batch; where that fails, each record alone, so that the one at fault has a result with `error`.

        Raises:
            UnsupportedModelError: See `borrowed`.
            StorageError: As an editor does, such as one that was prepared for another model.
            EditStateError: If an editor left the model changed, or made an edit of other weights.
            TypeError: See `make_edits`.
        """
        singles = list(batch.singles())
        with borrowed(self.model):
            return [found for _, part in self._halving(singles, self._run_together) for found in part]

    @cached_property
    def _halving(self) -> Halving:
        return Halving("records")

    def _run_together(self, singles: Sequence[Batch]) -> list[RecordResult]:
        return self._run(Batch.join(singles))

    def _run(self, batch: Batch) -> list[RecordResult]:
        try:
            return self._unedited(batch) if batch.editor is None else self._edited(batch, batch.editor)
        except (StorageError, EditStateError):
            raise
        except (TLRomeError, UnicodeError, RuntimeError) as error:
            full = is_out_of_memory(error)
            if (full and len(batch.records) > 1) or not (full or isinstance(error, TLRomeError | UnicodeError)):
                raise
            reason = visible(f"{type(error).__name__}: {error}")
        if len(batch.records) > 1:  # here, where what the error held is free again
            return [found for single in batch.singles() for found in self._run(single)]
        return [RecordResult(_result(record, error=reason)) for record in batch.records]

    @cached_property
    def _guard(self) -> WeightGuard:
        return WeightGuard(self.model, self.editors.values())

    def _unedited(self, batch: Batch) -> list[RecordResult]:
        measured = measure(self.model, batch.records, self.config, seed=self.seed)
        return [
            RecordResult(_result(record, before=each.measurement), each.states)
            for record, each in zip(batch.records, measured, strict=True)
        ]

    def _edited(self, batch: Batch, name: str) -> list[RecordResult]:
        guard, started = self._guard, time.perf_counter()
        edits = guard.make_edits([record.request for record in batch.records], self.editors[name], name)
        shared = (time.perf_counter() - started) / len(batch.records)
        edited = VirtualEdits(self.model, edits)
        measured = measure(self.model, batch.records, self.config, seed=self.seed, edits=edited)
        moves = compare(self.model, batch.before, [each.states for each in measured])
        results = []
        for record, moved, edit, each in zip(batch.records, moves, edits, measured, strict=True):
            seconds = shared if isinstance(edit, EditSequence) else edit.receipt.seconds
            figures = {"divergence": moved, "seconds": seconds, "verdict": _verdict(edit)}
            results.append(RecordResult(_result(record, after=each.measurement, **figures)))
        return results


def _verdict(edit: AnyEdit) -> str | None:
    """What the receipt of an edit says; edits without a receipt, such as sequences of several, say nothing."""
    return getattr(getattr(edit, "receipt", None), "verdict", None)


def _result(record: CounterFactRecord, **figures: Any) -> CaseResult:
    nameless = {"editor": "", "config": "", "model": "", "dataset": ""}
    return CaseResult(case_id=record.case_id, rewrite=record.requested_rewrite, **nameless, **figures)
