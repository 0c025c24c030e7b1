"""What ROME does in each of its sources, as plain values of one implementation.

The sources are an earlier draft of the paper, the published text (Meng et al., NeurIPS 2022; section 3.1 and appendix
E.5), the authors' public code ("released"), from which the numbers of later papers come, and r-ROME (Gupta et al. 2024,
arXiv 2403.07175), which found that the code divides by another key than the one it solves for. Where a text says
nothing, the release is followed.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from tl_rome.arguments import Count, Finite, NotNegative, Positive, Whole
from tl_rome.editors.departures import departures_from
from tl_rome.editors.model_defaults import find_defaults
from tl_rome.editors.rank_one.value_settings import ValueSettings
from tl_rome.errors import InputError
from tl_rome.sites import HookedModel

KeyChoice = Literal["subject", "contexts", "prompt"]
"""A key k*: of the bare subject text, averaged over contexts, or of the prompt without a prefix."""


@dataclass(frozen=True, kw_only=True)
class RomeConfig:
    """Settings of one ROME edit; none of them says anything about the model.

    Raises:
        InputError: If a number is out of its range or a choice is unknown.
    """

    preset: str
    """Name of the source these values follow; written into every receipt."""
    direction_key: KeyChoice = "contexts"
    """The key that u = C^-1 k* is solved for."""
    divisor_key: KeyChoice = "prompt"
    """The key that W' maps to v*: its output W k is subtracted, and k . u is the divisor."""
    value_base: Literal["prompt", "key"] = "prompt"
    """What delta is added to for v*: the output at the prompt, or at the key that v* is stored under."""
    optimiser: Literal["adam", "gradient_descent"] = "adam"
    """How v* is found."""
    learning_rate: Positive
    """Step size on v*."""
    weight_decay: NotNegative = 0.0
    """Adam's own L2 term: this times delta is added to the gradient."""
    max_evaluations: Count
    """Evaluations of the loss; there is one update fewer."""
    extra_evaluations: Whole = 0
    """Further ones for a target that is then still less likely than not: its mean NLL over contexts is above log 2."""
    stop_loss: Finite
    """Optimisation ends as soon as the total loss falls below this."""
    sum_token_nll: bool = False
    """Whether a target's NLL is the sum over its tokens, as in the draft (its eqs. 5, 13), not their mean."""
    kl_factor: NotNegative
    """Weight of KL(edited || original) of the next token after `kl_template`, at the subject's last token."""
    kl_template: str
    """Prompt whose distribution should stay as it is, so that the subject keeps its essence."""
    norm_penalty: NotNegative
    """Weight of ||delta|| / ||v0||^2 (the released code does not square the norm of delta)."""
    clamp: Positive | None
    """Largest ||delta|| as a multiple of ||v0||, enforced after every update; None means no limit."""
    context_lengths: tuple[tuple[Count, Whole], ...]
    """(length in tokens, how many) of the sampled texts that are put before the prompt as `"text. "`."""
    context_top_k: Count
    """Contexts are sampled among this many most likely tokens."""
    context_openings: tuple[str, ...] = ()
    """Words that sampled texts begin with, in turn; without any they are sampled from the start token alone."""

    def identity(self) -> dict[str, Any]:
        """The settings that decide an edit once its contexts are given: all but the name and the recipe of contexts."""
        other = {"preset", "context_lengths", "context_top_k", "context_openings"}
        return {name: value for name, value in asdict(self).items() if name not in other}

    @property
    def value_settings(self) -> ValueSettings:
        """What v* depends on, once contexts are given."""
        own = {field.name for field in fields(self)}
        return ValueSettings(**{x.name: getattr(self, x.name) for x in fields(ValueSettings) if x.name in own})

    @property
    def departures(self) -> str:
        """Settings in which this is not the preset it names, such as "clamp=3.0"; for the receipt."""
        return departures_from(self, PRESETS.get(self.preset, self))

    @property
    def contexts_choice(self) -> str:
        """How contexts are sampled, in words, for the receipt."""
        if not self.context_lengths:
            return "the prompt alone"
        start = f"openings {', '.join(self.context_openings)}" if self.context_openings else "the start token"
        return f"sampled from {start}, top-k {self.context_top_k}"

    def __post_init__(self) -> None:
        if self.optimiser == "gradient_descent" and self.weight_decay:
            raise InputError("weight_decay is Adam's; use norm_penalty with gradient descent")


RELEASED = RomeConfig(
    preset="released",
    direction_key="contexts",
    divisor_key="prompt",
    optimiser="adam",
    learning_rate=0.5,
    max_evaluations=20,
    stop_loss=5e-2,
    kl_factor=0.0625,
    kl_template="{} is a",
    norm_penalty=0.5,
    clamp=4.0,
    context_lengths=((5, 10), (10, 10)),
    context_top_k=5,
)
"""The authors' GPT-2 XL and GPT-J settings; for GPT-2 medium they clamp at 3."""

R_ROME = replace(RELEASED, preset="r_rome", divisor_key="contexts", value_base="key")
"""The release with the averaged key in both places; the output at the mean key moves by delta.

The public code has two states. This is that of its `r_rome/r_rome_main.py`, which adds delta to what the mean key
gives; `R_ROME_2024` is the other."""

R_ROME_2024 = replace(R_ROME, preset="r_rome_2024", value_base="prompt")
"""`R_ROME` as in `rome/compute_v.py` of the public code of April 2024, its newest (`enable_random_prefix_keys`): the
mean key is given v* itself, the output at the *prompt* plus delta, so that more than delta is added to what it gave."""

P_ROME = replace(RELEASED, preset="p_rome", direction_key="prompt")
"""The release with the unprefixed prompt's key in both places."""

NEURIPS = replace(
    RELEASED,
    preset="neurips",
    divisor_key="contexts",
    weight_decay=1.5e-3,
    kl_factor=1e2,
    norm_penalty=0.0,
    clamp=None,
    context_lengths=((2, 6), (3, 6), (4, 6), (5, 6), (6, 6), (7, 5), (8, 5), (9, 5), (10, 5)),
)
"""The published text (section 3.1), as printed: KL weight 1e2, 50 prefixes of 2 to 10 tokens, one key in both places.
Appendix E.5 has ten prefixes of 5 tokens and ten of 10, as the release does."""

DRAFT = RomeConfig(
    preset="draft",
    direction_key="subject",
    divisor_key="subject",
    optimiser="gradient_descent",
    learning_rate=10.0,
    max_evaluations=100,
    stop_loss=5e-2,
    sum_token_nll=True,
    kl_factor=0.0,
    kl_template="{} is a",
    norm_penalty=0.0,
    clamp=None,
    context_lengths=(),
    context_top_k=5,
)
"""The draft's sections 4.2 and 4.3: key of the bare subject (its eq. 12), NLL of one prompt (its eq. 13) by gradient
descent."""

OPENINGS = ("The", "Therefore", "Because", "I", "You")
"""What contexts begin with where the model's own beginnings of text are junk; those of MEMIT's code."""

PRESETS = {config.preset: config for config in (DRAFT, NEURIPS, RELEASED, R_ROME, R_ROME_2024, P_ROME)}
"""The presets by name."""


def preset_named(name: str) -> RomeConfig:
    """The preset of this name.

    Raises:
        InputError: If there is none.
    """
    if name not in PRESETS:
        raise InputError(f"there is no preset {name!r}; use one of {', '.join(PRESETS)}, or a RomeConfig")
    return PRESETS[name]


def with_model_defaults(model: HookedModel, config: RomeConfig) -> RomeConfig:
    """The released preset or one of r-ROME's with what suits the model; any other configuration as it is.

    Args:
        model: Only its name and its shape are looked at.
        config: Preset, or a configuration of one's own, which is kept.
    """
    found = find_defaults(model)
    if found is None or config not in (RELEASED, R_ROME, R_ROME_2024, P_ROME):
        return config
    changes: dict[str, Any] = {"clamp": found.row.clamp, "extra_evaluations": found.row.extra_evaluations}
    return replace(config, **{name: value for name, value in changes.items() if value is not None})


def departures_on(model: HookedModel, config: RomeConfig) -> str:
    """`config.departures`, marked where they are those of another model of the same shape; for the receipt.

    Args:
        model: Only its name and its shape are looked at.
        config: As `with_model_defaults` gives it, or any other.
    """
    found, departures = find_defaults(model), config.departures
    if found is None or not departures or config != with_model_defaults(model, PRESETS[config.preset]):
        return departures
    return f"{departures} ({found.guess})" if found.guess else departures
