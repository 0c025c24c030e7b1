"""The clean and the corrupted run that every cell of a trace is compared with (figure 3 a, b)."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.errors import InputError, NumericsError
from tl_rome.forward import Attended, Hooks, device_of, final_logits, last_resid, read, record
from tl_rome.patching.corruption import Corruption
from tl_rome.sites import EMBED, HookedModel, Site
from tl_rome.tokens import Prompt

Metric = Callable[[Float[Tensor, "rows d_vocab"]], Float[Tensor, " rows"]]
"""A score from logits at the last position, one per row."""


@dataclass(frozen=True)
class TargetProbability:
    """Probability of one token, in [0, 1]; the paper's score."""

    token: int

    def __call__(self, logits: Float[Tensor, "rows d_vocab"]) -> Float[Tensor, " rows"]:
        """Softmax probability of the token in each row."""
        return logits.softmax(dim=-1)[:, self.token]


@dataclass(frozen=True)
class Runs:
    """One clean and several corrupted runs of a prompt.

    Args:
        model: The model, left as found.
        prompt: Tokens and subject span.
        corruption: What is done to the subject's embeddings.
        generator: Source of the corruption's draws.
    """

    model: HookedModel
    prompt: Prompt
    corruption: Corruption
    generator: torch.Generator
    clean_logits: Float[Tensor, "1 d_vocab"] = field(init=False)
    corrupted_embeddings: Float[Tensor, "samples span d_model"] = field(init=False)

    def __post_init__(self) -> None:
        span = self.span
        tokens = self.prompt.tokens[None]
        last = last_resid(self.model)
        clean = read(self.model, tokens, [EMBED, last])
        embeddings = clean[EMBED][0, span]
        corrupted = self.corruption(embeddings, self.generator)
        if corrupted.ndim != 3 or corrupted.shape[1:] != embeddings.shape or not len(corrupted):
            raise InputError(
                f"corruption returned shape {tuple(corrupted.shape)}; it must be (samples, {embeddings.shape[0]}, "
                f"{embeddings.shape[1]}), like the subject's embeddings with a leading samples axis"
            )
        logits = final_logits(self.model, clean[last][:, -1])
        if not bool(logits.isfinite().all()):
            raise NumericsError("the model's logits on the clean prompt are not finite; look for NaN or inf weights")
        object.__setattr__(self, "clean_logits", logits)
        object.__setattr__(self, "corrupted_embeddings", corrupted.to(embeddings))

    @property
    def span(self) -> slice:
        """Positions of the subject."""
        return self.prompt.subject.slice

    @property
    def samples(self) -> int:
        """Number of corrupted runs."""
        return len(self.corrupted_embeddings)

    def corrupt_hooks(self, repeats: int = 1) -> Hooks:
        """The hook that corrupts the subject in `repeats` groups of `samples` rows."""

        def corrupt(embeddings: Tensor, hook: object) -> Tensor:
            embeddings = embeddings.clone()
            embeddings[:, self.span] = self.corrupted_embeddings.repeat(repeats, 1, 1)
            return embeddings

        return [(EMBED, corrupt)]

    def clean(self, component: str) -> dict[int, Float[Tensor, "pos ..."]]:
        """The component's clean values by layer."""
        sites = [Site(component, layer) for layer in range(self.model.cfg.n_layers)]
        found = read(self.model, self.prompt.tokens[None], [site.hook for site in sites])
        return {site.layer: found[site.hook][0] for site in sites}

    def corrupted(
        self, components: list[str]
    ) -> tuple[dict[str, Float[Tensor, "samples pos d_model"]], list[Attended]]:
        """Corrupted values by hook name, and each layer's corrupted attention keys and values."""
        layers = range(self.model.cfg.n_layers)
        names = [Site(component, layer).hook for component in components for layer in layers]
        tokens = self.prompt.tokens.repeat(self.samples, 1)
        return record(self.model, tokens.to(device_of(self.model)), names, hooks=self.corrupt_hooks())

    def corrupted_logits(self) -> Float[Tensor, "samples d_vocab"]:
        """Logits at the last position of the corrupted runs, nothing restored."""
        last = last_resid(self.model)
        tokens = self.prompt.tokens.repeat(self.samples, 1)
        return final_logits(self.model, read(self.model, tokens, [last], hooks=self.corrupt_hooks())[last][:, -1])
