"""What a mass editor is made of."""

from collections.abc import Mapping
from dataclasses import dataclass

from tl_rome.arguments import Seed
from tl_rome.editors.covariance.key_covariance import KeyCovariance
from tl_rome.editors.mass.config import MEMIT, MassConfig
from tl_rome.errors import InputError


@dataclass(frozen=True, eq=False, repr=False)
class MassParts:
    """Everything that decides a batch's edit but the optimisation of z.

    Raises:
        InputError: If there are no statistics, they are filed under another layer than theirs, or the first context is
            not the empty one.
    """

    covariances: Mapping[int, KeyCovariance]
    """Key statistics of the layers to edit, by layer."""
    contexts: tuple[str, ...]
    """Prefixes, the empty one first."""
    config: MassConfig = MEMIT
    """Preset."""
    layer_choice: str = "given"
    """Why these layers, for the receipt."""
    seed: Seed | None = None
    """Seed that contexts and own samples were drawn with, if they were."""
    contexts_choice: str = "given"
    """How the contexts were chosen, for the receipt."""

    def __post_init__(self) -> None:
        if not self.contexts or self.contexts[0]:
            raise InputError(f"the first context must be '', the prompt without a prefix; got {self.contexts[:1]}")
        if not self.covariances:
            raise InputError("no key statistics; give those of each layer to edit")
        for layer, covariance in self.covariances.items():
            if covariance.layer != layer:
                raise InputError(f"the statistics filed under layer {layer} are of layer {covariance.layer}")

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers that are edited, lowest first; z lives at the last."""
        return tuple(sorted(self.covariances))
