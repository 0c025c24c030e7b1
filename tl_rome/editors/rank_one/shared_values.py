"""v* shared between editors that differ only in what they do with it.

`released`, `r_rome` and `p_rome` differ in their keys, mass editors in lower layers, spread and closed form. Finding v*
is nearly all of an edit's cost. Values of another site, or of a model edited in between, are never mixed up.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from tl_rome.arguments import Count
from tl_rome.editors.rank_one.value import OptimisedValue, ToWrite, optimise_values
from tl_rome.editors.rank_one.value_settings import HasValueSettings
from tl_rome.sites import HookedModel
from tl_rome.storage.ledger import model_settings


@runtime_checkable
class ValueFinder(Protocol):
    """Finds v* for many facts as `optimise_values` does, perhaps elsewhere or only once, but with the same values."""

    def __call__(
        self,
        model: HookedModel,
        layer: int,
        facts: Sequence[ToWrite],
        contexts: Sequence[str],
        config: HasValueSettings,
        *,
        max_batch_tokens: Count = 2048,
        progress: bool = False,
    ) -> list[OptimisedValue]:
        """See `optimise_values`."""
        ...


class SharedValues:
    """`optimise_values` that remembers what it found, for as long as it is held; give one to several editors.

    The seconds in a receipt are then those of the editor that came first.
    """

    def __init__(self) -> None:
        self._found: dict[tuple, OptimisedValue] = {}

    def __call__(
        self,
        model: HookedModel,
        layer: int,
        facts: Sequence[ToWrite],
        contexts: Sequence[str],
        config: HasValueSettings,
        *,
        max_batch_tokens: Count = 2048,
        progress: bool = False,
    ) -> list[OptimisedValue]:
        """See `optimise_values`."""
        start = (*model_settings(model).values(), layer, tuple(contexts), config.value_settings)
        missing = [fact for fact in dict.fromkeys(facts) if (*start, fact) not in self._found]
        bounds = {"max_batch_tokens": max_batch_tokens, "progress": progress}
        new = optimise_values(model, layer, missing, contexts, config, **bounds)
        self._found |= {(*start, fact): value for fact, value in zip(missing, new, strict=True)}
        return [self._found[*start, fact] for fact in facts]
