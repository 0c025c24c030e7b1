"""The harness's class for transformers with a TransformerLens model in the place of the one of transformers.

What decides a score beside the model is inherited: which tokens are context and which are scored, BOS, where long texts
are cut, windows of rolling perplexity, stop sequences. Here are the two places where the model is run.
"""

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.editors.edits.batch_edit import BatchEdit
from tl_rome.editors.edits.edit import Edit
from tl_rome.editors.edits.sequence import EditSequence
from tl_rome.editors.edits.virtual import AnyEdit, VirtualEdits
from tl_rome.errors import InputError, UnsupportedModelError, require
from tl_rome.running.borrowed import borrowed
from tl_rome.running.forward import device_of, new_cache, run, run_cached
from tl_rome.running.interrupts import reliable
from tl_rome.sites import HookedModel
from tl_rome.storage.files import fingerprint

with warnings.catch_warnings(), patch.dict(os.environ):  # it sets filters and a variable of its own
    require("lm_eval", extra="harness")
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils_hf import stop_sequences_criteria

_HFLM: Any = HFLM  # what registers it hides its type
_OF_SAMPLES = {"temperature", "top_k", "top_p", "do_sample"}
"""Settings of generation that mean nothing to a greedy one."""


class TransformerLensLM(_HFLM):
    """A TransformerLens model for the harness; `harness_model` makes it and says what is raised.

    Texts end at the tokenizer's EOS token. (`HFLM` also ends them at tokens that a `generation_config.json` names.)
    """

    def __init__(
        self,
        model: HookedModel,
        edit: AnyEdit | None,
        batch_size: int,
        max_length: int | None,
        same_weights: bool,
        progress: bool,
    ) -> None:
        n_ctx = model.cfg.n_ctx
        if max_length is not None and max_length > n_ctx:
            raise InputError(f"max_length is {max_length}, but the model's context {n_ctx}; give at most that")
        self._lens, self._edit, self._same_weights, self._quiet = model, edit, same_weights, not progress
        tokenizer, adds_bos = _tokenizer(model)
        with self._running():
            pass  # an edit of another model is refused at once
        stand_in: Any = SimpleNamespace(
            device=device_of(model), config=SimpleNamespace(model_type=""), name_or_path=model.cfg.model_name
        )
        super().__init__(
            stand_in,
            backend="causal",
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length or n_ctx,
            add_bos_token=adds_bos,
        )

    @reliable
    def _running(self) -> Iterator[None]:
        """The model is borrowed, and the edit fits it as it is now."""
        with borrowed(self._lens), torch.no_grad():
            self._virtual = None
            if self._edit is not None:
                self._virtual = VirtualEdits(self._lens, [self._edit], same_weights=self._same_weights)
            yield

    @reliable
    def _edited(self, rows: int) -> Iterator[HookedModel]:
        """The model with the edit in every row of a batch."""
        if self._virtual is None:
            yield self._lens
            return
        with self._virtual.on([0] * rows) as model:
            yield model

    def loglikelihood(self, requests: list, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation, in nats, and whether it is the greedy one."""
        with self._running():
            return super().loglikelihood(requests, disable_tqdm or self._quiet)

    def loglikelihood_rolling(self, requests: list, disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each text, in nats."""
        with self._running():
            return super().loglikelihood_rolling(requests, disable_tqdm or self._quiet)

    def _loglikelihood_tokens(
        self, requests: Sequence, disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list:
        return super()._loglikelihood_tokens(requests, disable_tqdm or self._quiet, override_bs)

    def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
        """Greedy continuation of each text.

        Raises:
            InputError: If a request is for anything else.
        """
        with self._running():
            return super().generate_until(requests, disable_tqdm or self._quiet)

    def _model_call(self, inps: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
        with self._edited(len(inps)) as model:
            return run(model, inps)

    def _model_generate(
        self,
        context: Int[Tensor, "batch pos"],
        max_length: int,
        stop: list[str],
        *,
        attention_mask: Int[Tensor, "batch pos"],
        **settings: Any,
    ) -> Int[Tensor, "batch longer"]:
        """As greedy `generate` of transformers: rows that ended are padded, and all end when the last one has."""
        if settings.get("do_sample") or settings.keys() - _OF_SAMPLES:
            raise InputError(f"a task asks for generation with {settings}; only greedy texts can be made here")
        ended = torch.zeros(len(context), dtype=torch.bool, device=context.device)
        stopped = stop_sequences_criteria(self.tokenizer, stop, context.shape[1], len(context))
        tokens, mask = context, attention_mask
        with self._edited(len(context)) as model:
            cache, following = new_cache(model, len(context)), context
            while tokens.shape[1] < max_length and not bool(ended.all()):
                chosen = run_cached(model, following, cache, mask)[:, -1].argmax(dim=-1)
                following = torch.where(ended, self.tokenizer.pad_token_id, chosen)[:, None]
                tokens = torch.cat([tokens, following], dim=1)
                mask = torch.cat([mask, torch.ones_like(following)], dim=1)
                ended |= (chosen == self.eot_token_id) | stopped(tokens, None)  # type: ignore[arg-type]
        return tokens

    def _edits(self) -> Sequence[Edit | BatchEdit]:
        return self._edit.edits if isinstance(self._edit, EditSequence) else [self._edit] if self._edit else []

    def get_model_info(self) -> dict[str, Any]:
        """What was evaluated, for the results' "config"."""
        model = self._lens
        return {
            "model": model.cfg.model_name,
            "model_class": type(model).__name__,
            "model_num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "model_dtype": str(model.cfg.dtype),
            "model_fingerprint": fingerprint(model),
            "edit": [each.label for each in self._edits()],
        }


def _tokenizer(model: HookedModel) -> tuple[Any, bool | None]:
    """A copy of the model's tokenizer, which the harness changes, and whether it adds BOS; None is its own way.

    Raises:
        UnsupportedModelError: If there is none of transformers.
        InputError: If prompts are to begin with BOS, and the tokenizer does not do that.
    """
    from transformers import PreTrainedTokenizerBase

    if not isinstance(model.tokenizer, PreTrainedTokenizerBase):
        found = type(model.tokenizer).__name__
        raise UnsupportedModelError(f"the harness needs a tokenizer of transformers, and the model has {found}")
    tokenizer = copy.deepcopy(model.tokenizer)
    policy, own = bool(model.cfg.default_prepend_bos), _begins(tokenizer)
    if policy and not own:
        tokenizer.add_bos_token = True
        if not _begins(tokenizer):
            raise InputError(
                "the model's policy is to begin texts with BOS, which its tokenizer does not do; set "
                "model.cfg.default_prepend_bos = False, or load the model with a tokenizer that does"
            )
    return tokenizer, False if own and not policy else None


def _begins(tokenizer: Any) -> bool:
    """Whether a tokenizer begins texts with BOS by itself."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
