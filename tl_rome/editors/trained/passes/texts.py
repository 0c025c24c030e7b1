"""A prompt with the target that should follow it, as tokens."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from tl_rome.sites import HookedModel
from tl_rome.tokens import encode, encode_target


@dataclass(frozen=True, eq=False)
class TargetText:
    """Tokens of a prompt and of its target."""

    prompt: Int[Tensor, " prompt"]
    """At least one token."""
    target: Int[Tensor, " target"]
    """At least one token."""

    @classmethod
    def of(cls, model: HookedModel, prompt: str, target: str, joiner: str | None = None) -> "TargetText":
        """Tokenise both, see `encode_target`.

        Raises:
            InputError: If the target is empty, or both together exceed the context.
        """
        return cls(encode(model, prompt), encode_target(model, target, prompt, joiner))

    @property
    def whole(self) -> Int[Tensor, " pos"]:
        """Prompt and target."""
        return torch.cat([self.prompt, self.target])

    @property
    def read(self) -> Int[Tensor, " pos"]:
        """What the model is run on: all but the last token, after which nothing is predicted."""
        return self.whole[:-1]

    @property
    def places(self) -> Int[Tensor, " target"]:
        """Positions at which the target's tokens are predicted."""
        return torch.arange(len(self.prompt) - 1, len(self.prompt) + len(self.target) - 1)
