"""The clean and the corrupted run that every cell of a trace is compared with (section 2.1, figure 1 a, b).

One forward pass holds both: row 0 is clean, the other rows are corrupted, one for each draw. The *base* run is the one
that is patched, the *source* run the one that patches come from. Denoising, the paper's way, restores clean states in a
corrupted base; noising puts corrupted states into a clean base.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from einops import repeat
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import NumericsError
from tl_rome.patching.corruption import Corruption, corrupt
from tl_rome.patching.metrics import Metric
from tl_rome.running.blocks import first_run
from tl_rome.running.forward import KeysValues, device_of, final_logits, last_resid, read, record
from tl_rome.running.hooks import Hooks
from tl_rome.sites import EMBED, HookedModel
from tl_rome.tokens import Prompt

_LOGIT_ROWS = 256
"""Rows unembedded at once; with a vocabulary of 50,000 that is 50 MB of float32 logits."""


@dataclass(frozen=True, eq=False)
class Runs:
    """A prompt and its corruption.

    Args:
        model: The model, left as found.
        prompt: Tokens and subject span.
        corruption: What is done to the subject's embeddings.
        generator: Source of the corruption's draws; None if it draws nothing.
        target: Tokens of the answer, each scored at its own position; None if the clean model's first choice is scored.
        noising: Whether the clean run is the base, and corrupted states are put into it.

    Raises:
        InputError: As `corrupt`.
    """

    model: HookedModel
    prompt: Prompt
    corruption: Corruption
    generator: torch.Generator | None = None
    target: Int[Tensor, " scored"] | None = None
    noising: bool = False
    corrupted_embeddings: Float[Tensor, "samples span d_model"] = field(init=False)

    def __post_init__(self) -> None:
        embeddings = read(self.model, self.tokens[None], [EMBED])[EMBED][0, self.span]
        object.__setattr__(self, "corrupted_embeddings", corrupt(embeddings, self.corruption, self.generator))

    @property
    def tokens(self) -> Int[Tensor, " pos"]:
        """The prompt and all tokens of the target but its last, on the model's device."""
        parts = [self.prompt.tokens] if self.target is None else [self.prompt.tokens, self.target[:-1]]
        return torch.cat(parts).to(device_of(self.model))

    @property
    def span(self) -> slice:
        """Positions of the subject."""
        return self.prompt.subject.slice

    @property
    def samples(self) -> int:
        """Corrupted runs that scores are averaged over."""
        return len(self.corrupted_embeddings)

    @property
    def scored(self) -> int:
        """Positions at the end whose logits are scored."""
        return 1 if self.target is None else len(self.target)

    def corrupting(self, embeddings: Float[Tensor, "rows span d_model"]) -> Hooks:
        """Hooks that give the last rows of a batch these embeddings for the subject."""

        def hook_function(activation: Tensor, hook: object) -> Tensor:
            activation = activation.clone()
            activation[-len(embeddings) :, self.span] = embeddings
            return activation

        return [(EMBED, hook_function)]

    def base_batch(self, cells: int) -> tuple[Int[Tensor, "rows pos"], Hooks]:
        """Tokens of base runs for some cells, samples innermost, and the hooks that make them base runs."""
        tokens = repeat(self.tokens, "pos -> rows pos", rows=cells * self.samples)
        if self.noising:
            return tokens, []
        each = repeat(self.corrupted_embeddings, "sample span d -> (cell sample) span d", cell=cells)
        return tokens, self.corrupting(each)

    def record(self, names: Iterable[str], *, attended: bool) -> "Recorded":
        """Run both, keeping activations.

        Args:
            names: Hook points to keep.
            attended: Whether to keep attention keys and values too, which needs a model with a key-value cache.

        Raises:
            NumericsError: If the clean run's logits are not finite.
            UnsupportedModelError: If keys and values are wanted and cannot be recorded.
        """
        last = last_resid(self.model)
        tokens = repeat(self.tokens, "pos -> rows pos", rows=1 + self.samples)
        hooks = self.corrupting(self.corrupted_embeddings)
        names = list(dict.fromkeys([*names, last]))
        if attended:
            with first_run():
                found, cached = record(self.model, tokens, names, hooks=hooks)
        else:
            found, cached = read(self.model, tokens, names, hooks=hooks), []
        logits = final_logits(self.model, found[last][:, -self.scored :])
        if not bool(logits[0].isfinite().all()):
            raise NumericsError("the model's logits on the clean prompt are not finite; look for NaN or inf weights")
        return Recorded(found, cached, logits[:1], logits[1:], self.noising)


@dataclass(frozen=True, eq=False)
class Recorded:
    """What the two runs held."""

    found: dict[str, Tensor]
    """By hook name; row 0 is clean."""
    cached: list[KeysValues]
    """Each layer's attention keys and values, or nothing."""
    clean_logits: Float[Tensor, "1 scored d_vocab"]
    corrupted_logits: Float[Tensor, "samples scored d_vocab"]
    noising: bool

    def base(self, name: str) -> Float[Tensor, "samples ..."]:
        """An activation of the patched run, for each sample."""
        return self._rows(self.found[name], clean=self.noising)

    def source(self, name: str) -> Float[Tensor, "samples ..."]:
        """An activation of the run that patches come from, for each sample."""
        return self._rows(self.found[name], clean=not self.noising)

    def attended(self, layer: int) -> KeysValues:
        """The base run's keys and values."""
        keys, values = self.cached[layer]
        return self._rows(keys, clean=self.noising), self._rows(values, clean=self.noising)

    @staticmethod
    def _rows(value: Tensor, *, clean: bool) -> Tensor:
        return value[:1].expand(len(value) - 1, *value.shape[1:]) if clean else value[1:]


def row_scores(
    model: HookedModel, metrics: Sequence[Metric], resid: Float[Tensor, "rows scored d_model"]
) -> Float[Tensor, "metrics rows"]:
    """Scores of each row from its last residual streams, by each metric, on the model's device."""
    parts = resid.split(max(1, _LOGIT_ROWS // resid.shape[1]))
    return torch.cat([metric_scores(metrics, final_logits(model, part)) for part in parts], dim=1)


def metric_scores(
    metrics: Sequence[Metric], logits: Float[Tensor, "rows scored d_vocab"]
) -> Float[Tensor, "metrics rows"]:
    """Scores of each row by each metric."""
    return torch.stack([metric(logits) for metric in metrics])
