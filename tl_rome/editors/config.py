"""What ROME does in each of its sources, as plain values.

`RELEASED` follows the authors' public code, from which the numbers of later papers come.
"""

from dataclasses import dataclass

from tl_rome.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RomeConfig:
    """Settings of one ROME edit; none of them says anything about the model."""

    preset: str
    """Name of the source these values follow; written into every receipt."""
    learning_rate: float
    """Step size of Adam on v*."""
    max_evaluations: int
    """Evaluations of the loss; there is one update fewer."""
    stop_loss: float
    """Optimisation ends as soon as the total loss falls below this."""
    kl_factor: float
    """Weight of KL(edited || original) of the next token after `kl_template`, at the subject's last token."""
    kl_template: str
    """Prompt whose distribution should stay as it is, so that the subject keeps its essence."""
    norm_penalty: float
    """Weight of ||delta|| / ||v0||^2 (the released code does not square the norm of delta)."""
    clamp: float
    """Largest ||delta|| as a multiple of ||v0||, enforced after every update."""
    context_lengths: tuple[tuple[int, int], ...]
    """(length in tokens, how many) of the sampled texts that are put before the prompt as `"text. "`."""
    context_top_k: int
    """Contexts are sampled among this many most likely tokens."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.max_evaluations < 1 or self.clamp <= 0:
            raise InputError(f"learning rate, evaluations and clamp must be positive: {self}")


RELEASED = RomeConfig(
    preset="released",
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

_PUBLISHED_LAYERS = {(48, 1600): 17, (36, 1280): 12, (24, 1024): 8, (28, 4096): 5, (30, 576): 5}
"""By (n_layers, d_model): GPT-2 XL, L and M and GPT-J from the sources, SmolLM2-135M from a sweep on COUNTERFACT."""


def default_layer(n_layers: int, d_model: int) -> int:
    """Layer to edit: the published one where there is one, else a quarter of the way up (floor of n_layers / 4).

    Args:
        n_layers: Blocks of the model.
        d_model: Width of its residual stream.
    """
    return _PUBLISHED_LAYERS.get((n_layers, d_model), n_layers // 4)
