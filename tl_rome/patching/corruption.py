"""Corrupting the subject's embeddings, so that the model no longer knows of whom the prompt speaks (section 3, step 1).

A corruption is a callable on the clean embeddings of the subject's tokens, before positions are added. It returns one
corrupted copy per noise sample; every cell of a trace shares these copies, so cells differ by what is restored alone.
The paper draws from N(0, nu^2) with nu = 0.1; the published text and the authors' code use three times the standard
deviation of subject-token embeddings, which carries over to models of another embedding scale and is the default here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources

import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.errors import InputError
from tl_rome.forward import read
from tl_rome.sites import EMBED, HookedModel
from tl_rome.tokens import encode

Corruption = Callable[[Float[Tensor, "span d_model"], torch.Generator], Float[Tensor, "samples span d_model"]]


@dataclass(frozen=True)
class GaussianNoise:
    """Adds independent N(0, sigma^2) noise to every coordinate of the subject's embeddings.

    Args:
        sigma: Standard deviation, in units of the model's embeddings; `noise_scale` measures a good one.
        samples: Independent draws to average over.
    """

    sigma: float
    samples: int = 10

    def __post_init__(self) -> None:
        if not self.sigma > 0 or self.samples < 1:
            raise InputError(f"noise needs sigma > 0 and at least 1 sample, got {self.sigma} and {self.samples}")

    def __call__(
        self, embeddings: Float[Tensor, "span d_model"], generator: torch.Generator
    ) -> Float[Tensor, "samples span d_model"]:
        """Corrupted copies; drawn on the CPU in float64 so that devices and dtypes agree."""
        draws = torch.randn(self.samples, *embeddings.shape, generator=generator, dtype=torch.float64)
        return AddedNoise(self.sigma * draws)(embeddings, generator)


@dataclass(frozen=True)
class AddedNoise:
    """Adds the very noise it is given, such as another implementation's draws.

    Args:
        noise: One draw per sample.
    """

    noise: Float[Tensor, "samples span d_model"]

    def __call__(
        self, embeddings: Float[Tensor, "span d_model"], generator: torch.Generator
    ) -> Float[Tensor, "samples span d_model"]:
        """Corrupted copies; the generator is not used.

        Raises:
            InputError: If the noise was drawn for another number of tokens or another width.
        """
        if self.noise.shape[1:] != embeddings.shape:
            raise InputError(
                f"noise is for {tuple(self.noise.shape[1:])} (tokens, d_model), "
                f"the subject has {tuple(embeddings.shape)}"
            )
        return (embeddings.double() + self.noise.to(embeddings.device, torch.float64)).to(embeddings.dtype)


def example_subjects() -> tuple[str, ...]:
    """Names of people, places, works and organisations that ship with the package, to measure embeddings on."""
    return tuple(resources.files("tl_rome.data").joinpath("subjects.txt").read_text("utf-8").splitlines())


def noise_scale(model: HookedModel, subjects: Iterable[str] | None = None, *, multiple: float = 3.0) -> float:
    """A multiple of the standard deviation of subject-token embeddings, as in the authors' code.

    Args:
        model: Left as found.
        subjects: Names to measure on, the package's own examples by default; the value depends a little on them
            (the authors pool the subjects of all prompts they trace).
        multiple: How many standard deviations.

    Returns:
        Noise sigma in units of the embeddings that `hook_embed` shows.
    """
    bos = int(model.cfg.default_prepend_bos)
    with torch.no_grad():
        names = example_subjects() if subjects is None else subjects
        rows = [read(model, encode(model, name)[None], [EMBED])[EMBED][0, bos:] for name in names]
    if not rows:
        raise InputError("no subjects to measure embeddings on")
    return multiple * torch.cat(rows).double().std().item()
