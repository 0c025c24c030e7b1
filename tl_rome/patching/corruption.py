"""Corrupting the subject's embeddings, so that the model can no longer identify the subject (section 2.1).

A corruption is a callable on the clean embeddings of the subject's tokens, before positions are added. It returns one
corrupted copy per noise sample; every cell of a trace shares these copies, so cells differ by what is restored alone.
Noise is one kind; the name of another subject (in the draft only, its figures 2 and 3 h, i) is the other, and any
callable will do.

The paper draws from N(0, nu^2), with nu three standard deviations of token embeddings (appendix B.1); the authors' code
measures them on the tokens of subjects, which is the default here and carries over to models of another embedding
scale. The draft has nu = 0.1.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib import resources
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_rome.arguments import Count, Positive, Whole
from tl_rome.errors import InputError
from tl_rome.facts import Fact
from tl_rome.running.borrowed import borrows
from tl_rome.running.forward import read
from tl_rome.sites import EMBED, HookedModel
from tl_rome.tokens import encode, encode_fact, pad

Corruption = Callable[[Float[Tensor, "span d_model"], torch.Generator], Float[Tensor, "samples span d_model"]]
"""Corrupted copies of the subject's embeddings. One that draws nothing can say so by `needs_generator = False`."""

Shape = tuple[Whole, Whole, Whole]
"""Samples, tokens of the subject, d_model."""
_NAMES = 128
"""Subjects whose embeddings are read at once."""


@dataclass(frozen=True)
class GaussianNoise:
    """Adds independent N(0, sigma^2) noise to every coordinate of the subject's embeddings.

    Args:
        sigma: Standard deviation, in units of the model's embeddings; None is the model's own `noise_scale`, which a
            trace measures.
        samples: Independent draws to average over.

    Raises:
        InputError: If sigma is not positive, or samples is below 1.
    """

    needs_generator: ClassVar[bool] = True
    sigma: Positive | None = None
    samples: Count = 10

    def __call__(
        self, embeddings: Float[Tensor, "span d_model"], generator: torch.Generator
    ) -> Float[Tensor, "samples span d_model"]:
        """Corrupted copies; drawn on the CPU in float64 so that devices and dtypes agree.

        Raises:
            InputError: If sigma has not been measured.
        """
        if self.sigma is None:
            raise InputError(f"{self} has no scale yet; give sigma=noise_scale(model), or hand it to a trace")
        draws = self.draw((self.samples, len(embeddings), embeddings.shape[1]), generator)
        return AddedNoise(self.sigma * draws)(embeddings, generator)

    def draw(self, shape: Shape, generator: torch.Generator) -> Float[Tensor, "samples span d_model"]:
        """Noise of scale 1."""
        return torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class UniformNoise(GaussianNoise):
    """Noise that is uniform on [-sigma, sigma], as in figure 13 d to f; its standard deviation is less."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Float[Tensor, "samples span d_model"]:
        """Uniform on [-1, 1]."""
        return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1


@dataclass(frozen=True)
class HeavyTailedNoise(GaussianNoise):
    """Noise of a multivariate Student t for each token, with scale sigma: now and then a token is thrown far away."""

    degrees: Count = 3
    """Degrees of freedom, a whole number of at least 1; the smaller, the heavier the tails."""

    def draw(self, shape: Shape, generator: torch.Generator) -> Float[Tensor, "samples span d_model"]:
        """Normal over the root of an independent chi-squared / degrees, one for each token."""
        normal = super().draw(shape, generator)
        chi_squared = super().draw((*shape[:-1], self.degrees), generator).square().sum(-1, keepdim=True)
        return normal / (chi_squared / self.degrees).sqrt()


@dataclass(frozen=True)
class ReleasedNoise(GaussianNoise):
    """Gaussian noise with exactly the draws of the authors' code, which seeds numpy again for every run."""

    needs_generator: ClassVar[bool] = False

    def draw(self, shape: Shape, generator: torch.Generator) -> Float[Tensor, "samples span d_model"]:
        """`RandomState(1).randn`; the generator is not used."""
        return torch.from_numpy(np.random.RandomState(1).randn(*shape))


@dataclass(frozen=True, eq=False)
class ReplacedSubject:
    """Puts another subject's embeddings in the subject's place; `replaced_subject` makes it from a name.

    Args:
        embeddings: What `hook_embed` shows of the other subject's tokens.
        name: The other subject.
    """

    needs_generator: ClassVar[bool] = False
    embeddings: Float[Tensor, "span d_model"]
    name: str

    def __call__(
        self, embeddings: Float[Tensor, "span d_model"], generator: torch.Generator
    ) -> Float[Tensor, "1 span d_model"]:
        """One corrupted copy; nothing is drawn.

        Raises:
            InputError: If the subjects differ in their numbers of tokens.
        """
        if self.embeddings.shape != embeddings.shape:
            raise InputError(
                f"{self.name!r} has {len(self.embeddings)} tokens, the subject {len(embeddings)}; choose another "
                "subject of as many tokens, or use noise"
            )
        return self.embeddings.to(embeddings)[None]

    def __repr__(self) -> str:
        return f"ReplacedSubject({self.name!r})"


@borrows
def replaced_subject(model: HookedModel, fact: Fact, other: str) -> ReplacedSubject:
    """Corruption of a fact's prompt by another subject's name (the draft's figures 2 and 3 h, i).

    Args:
        model: Left as found.
        fact: The fact that will be traced.
        other: A subject that has as many tokens as the fact's, in the same place.

    Raises:
        InputError: If the prompts differ in length or the subjects in their numbers of tokens, with both shown.
    """
    ours, theirs = encode_fact(model, fact), encode_fact(model, Fact(fact.template, other))
    if ours.subject != theirs.subject or len(ours.tokens) != len(theirs.tokens):
        named = [list(prompt.labels[prompt.subject.slice]) for prompt in (ours, theirs)]
        raise InputError(
            f"{fact.subject!r} is {named[0]} and {other!r} is {named[1]} ({len(ours.subject)} and "
            f"{len(theirs.subject)} tokens); choose another subject of {len(ours.subject)} tokens, or use noise"
        )
    with torch.no_grad():
        embeddings = read(model, theirs.tokens[None], [EMBED])[EMBED][0, theirs.subject.slice]
    return ReplacedSubject(embeddings.clone(), other)


@dataclass(frozen=True)
class AddedNoise:
    """Adds exactly the noise that it is given, such as another implementation's draws.

    Args:
        noise: One draw per sample.
    """

    needs_generator: ClassVar[bool] = False
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
        return (embeddings.cpu().double() + self.noise.cpu().double()).to(embeddings)


def example_subjects() -> tuple[str, ...]:
    """Names of people, places, works and organisations that ship with the package, to measure embeddings on."""
    return tuple(resources.files("tl_rome.data").joinpath("subjects.txt").read_text("utf-8").splitlines())


@borrows
def noise_scale(model: HookedModel, subjects: Iterable[str] | None = None, *, multiple: Positive = 3.0) -> float:
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
    encoded = [encode(model, name) for name in (example_subjects() if subjects is None else subjects)]
    if not encoded:
        raise InputError("no subjects to measure embeddings on")
    rows = []
    with torch.no_grad():
        for batch in (encoded[first : first + _NAMES] for first in range(0, len(encoded), _NAMES)):
            embeddings = read(model, pad(batch).tokens, [EMBED])[EMBED].cpu()
            rows += [row[bos : len(tokens)] for row, tokens in zip(embeddings, batch, strict=True)]
    return multiple * torch.cat(rows).double().std().item()


def at_scale_of(model: HookedModel, corruption: Corruption | None) -> Corruption:
    """The corruption with its noise, where that has no sigma, at the model's own scale; None is `GaussianNoise()`."""
    corruption = GaussianNoise() if corruption is None else corruption
    if isinstance(corruption, GaussianNoise) and corruption.sigma is None:
        return replace(corruption, sigma=noise_scale(model))
    return corruption


def corrupt(
    embeddings: Float[Tensor, "span d_model"], corruption: Corruption, generator: torch.Generator | None
) -> Float[Tensor, "samples span d_model"]:
    """Corrupted copies in the embeddings' dtype and on their device.

    Args:
        embeddings: Clean embeddings of the subject's tokens.
        corruption: What is done to them.
        generator: Source of its draws; not needed by a corruption that says it draws nothing.

    Raises:
        InputError: If the corruption needs a generator and there is none, or returns another shape.
    """
    if generator is None:
        if getattr(corruption, "needs_generator", True):
            name = getattr(corruption, "__qualname__", type(corruption).__name__)
            raise InputError(f"{name} draws at random; give generator=torch.Generator().manual_seed(0)")
        generator = torch.Generator()
    corrupted = corruption(embeddings, generator)
    if not isinstance(corrupted, Tensor):
        raise InputError(f"corruption returned {type(corrupted).__name__}; return a tensor (samples, tokens, d_model)")
    if corrupted.ndim != 3 or corrupted.shape[1:] != embeddings.shape or not len(corrupted):
        raise InputError(
            f"corruption returned shape {tuple(corrupted.shape)}; it must be (samples, {embeddings.shape[0]}, "
            f"{embeddings.shape[1]}), like the subject's embeddings with a leading samples axis"
        )
    return corrupted.to(embeddings)
