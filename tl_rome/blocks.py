"""Running single blocks of a model, on some positions of any rows.

Changing a state at layer l and position t changes nothing below l and nothing before t. `BlockRunner` runs single
blocks on the positions from t on, with the keys and values of earlier positions taken from a recorded run. It stays
inside TransformerLens blocks, so hooks fire in them as ever (they see only the positions and rows that are run).
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import UnsupportedModelError
from tl_rome.forward import Attended, left_mask, new_cache, run_cached
from tl_rome.sites import HookedModel, is_hooked_transformer

_TOLERANCE = 0.05
"""Relative error that rounding alone may cause, in bfloat16 too; a wrong run is off by far more."""


class _Prefix:
    """Stands in for a Hugging Face cache inside one attention layer: constant keys and values before the new ones."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._past = keys, values

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Return past and new, joined along positions."""
        past_keys, past_values = self._past
        return torch.cat([past_keys, key], dim=-2), torch.cat([past_values, value], dim=-2)

    def get_seq_length(self, *_: Any) -> int:
        """Number of past positions."""
        return self._past[0].shape[-2]


class BlockRunner:
    """Runs single blocks on positions `start` to the end, for any rows of the length of the given tokens.

    Rows are residual streams; each brings the attention keys and values of its positions before `start`. On a
    TransformerBridge the arguments of each block (positions, mask) are noted from one real pass and used again.

    Args:
        model: Left as found.
        tokens: One prompt, which stands for any rows of its length; or, with padding, one prompt for each row.
        start: First position that the rows carry.
        padding: Padding tokens on the left of each row, where prompts whose parts before `start` differ in length have
            been aligned.

    Raises:
        UnsupportedModelError: If the model does not run each block once, with a key-value cache.
    """

    def __init__(
        self,
        model: HookedModel,
        tokens: Int[Tensor, "rows pos"],
        start: int,
        padding: Int[Tensor, " rows"] | None = None,
    ) -> None:
        self.model = model
        self.start = start
        self._mask = left_mask(tokens, padding)
        self._hooked = is_hooked_transformer(model)
        self._block_args: list[tuple[tuple, dict[str, Any]]] = []
        if self._hooked:
            return
        self._noted_cache = cache = new_cache(model, len(tokens))
        if start > 0:
            run_cached(model, tokens[:, :start], cache, None if self._mask is None else self._mask[:, :start])
        handles = [block.register_forward_pre_hook(self._note, with_kwargs=True) for block in model.blocks]
        try:
            run_cached(model, tokens[:, start:], cache, self._mask)
        finally:
            for handle in handles:
                handle.remove()
        if len(self._block_args) != model.cfg.n_layers:
            raise UnsupportedModelError(f"blocks ran {len(self._block_args)} times, not {model.cfg.n_layers}")

    def _note(self, _block: object, args: tuple, kwargs: dict[str, Any]) -> None:
        others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        if not any(value is self._noted_cache for value in (*args, *others.values())):
            raise UnsupportedModelError("the model's blocks take no key-value cache")
        self._block_args.append((args[1:], others))

    def __call__(
        self, layer: int, resid: Float[Tensor, "rows pos d_model"], past: Attended
    ) -> Float[Tensor, "rows pos d_model"]:
        """Run one block.

        Args:
            layer: Block index.
            resid: The block's input at positions from `start` on.
            past: This layer's keys and values at positions before `start`, one row for each row.
        """
        block = self.model.blocks[layer]
        if self._hooked:
            from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry

            entry = TransformerLensKeyValueCacheEntry(*past, frozen=True)
            return block(resid, past_kv_cache_entry=entry, attention_mask=self._mask)
        args, kwargs = self._block_args[layer]
        prefix = _Prefix(*past)
        args = [prefix if value is self._noted_cache else value for value in args]
        kwargs = {name: prefix if value is self._noted_cache else value for name, value in kwargs.items()}
        output = block(resid, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def check(
        self,
        resid: Float[Tensor, "rows pos d_model"],
        cached: Sequence[Attended],
        expected: Float[Tensor, "rows pos d_model"],
    ) -> None:
        """Make sure that running block by block gives what the model itself computed.

        Args:
            resid: The first block's input in a recorded run, at positions from `start` on.
            cached: Every layer's keys and values in that run, at all positions.
            expected: The last block's output in that run, at positions from `start` on.

        Raises:
            UnsupportedModelError: If it does not: the model does more than pass one stream from block to block.
        """
        for layer, past in enumerate(cached):
            resid = self(layer, resid, self.crop(past))
        error = ((resid - expected).float().norm(dim=-1) / expected.float().norm(dim=-1)).max().item()
        if error > _TOLERANCE:
            raise UnsupportedModelError(f"running block by block is off by {error:.1%} from the model itself")

    def crop(
        self, cached: Attended, rows: Int[Tensor, " chosen"] | slice = slice(None)
    ) -> tuple[Float[Tensor, "chosen ..."], Float[Tensor, "chosen ..."]]:
        """The part of a recorded layer's keys and values before `start`, for the rows given."""
        axis = 1 if self._hooked else 2
        keys, values = (part[rows].narrow(axis, 0, self.start) for part in cached)
        return keys, values
