"""Running part of a model: up to a hook point, from a layer, from a position, with a shared prefix.

Changing a state at layer l and position t changes nothing below l and nothing before t. `read` stops a run as soon as
the wanted activations are there; `BlockRunner` runs single blocks on the positions from t on, for any number of rows,
with the keys and values of earlier positions taken from a recorded run. Both stay inside TransformerLens blocks, so
hooks fire in them as ever (they see only the positions and rows that are run).
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import UnsupportedModelError
from tl_rome.sites import ActivationHook, HookedModel, Site, check_hook, is_hooked_transformer

Hooks = Sequence[tuple[str, ActivationHook]]
Attended = tuple[Float[Tensor, "rows ..."], Float[Tensor, "rows ..."]]
"""One layer's cached attention keys and values, in the model class's own layout; rows come first."""


_TOLERANCE = 0.05
"""Relative error that rounding alone may cause, in bfloat16 too; a wrong run is off by far more."""


class _Stop(Exception):
    """Raised inside a hook to end a forward pass whose remaining work nobody needs."""


def device_of(model: HookedModel) -> torch.device:
    """Device of the model's first block, where its tokens are sent."""
    return next(model.blocks[0].parameters()).device


def read(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], names: Iterable[str], *, hooks: Hooks = ()
) -> dict[str, Float[Tensor, "batch pos ..."]]:
    """Activations at hook points; the forward pass ends once the last of them has been read.

    Args:
        model: Left as found.
        tokens: Right-padded token ids; padding needs no mask, since later positions cannot reach earlier ones.
        names: Hook points to read.
        hooks: Further hooks to run with; they act before an activation is read.

    Raises:
        InputError: If a hook point does not exist.
    """
    found: dict[str, Tensor] = {}
    wanted = {check_hook(model, name) for name in names}

    def reader(name: str) -> ActivationHook:
        def keep(value: Tensor, hook: object) -> None:
            found[name] = value
            if len(found) == len(wanted):
                raise _Stop

        return keep

    with model.hooks(fwd_hooks=[*hooks, *((name, reader(name)) for name in wanted)]):
        try:
            model(tokens.to(device_of(model)))
        except _Stop:
            pass
    missing = wanted - found.keys()
    if missing:
        raise UnsupportedModelError(f"hook points {sorted(missing)} exist but did not fire in a forward pass")
    return found


def final_logits(model: HookedModel, resid: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_vocab"]:
    """Logits from the last block's output: final norm, unembedding and soft cap, at just the rows given."""
    flat = resid.reshape(1, -1, resid.shape[-1])
    logits = model.unembed(model.ln_final(flat))  # type: ignore[attr-defined]
    cap = getattr(model.cfg, "output_logits_soft_cap", None)
    if cap is not None and cap > 0:
        logits = cap * torch.tanh(logits / cap)
    return logits.reshape(*resid.shape[:-1], -1)


def new_cache(model: HookedModel, rows: int) -> Any:
    """An empty key-value cache of the kind that this model's class takes."""
    if is_hooked_transformer(model):
        from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

        return TransformerLensKeyValueCache.init_cache(model.cfg, device_of(model), rows)
    from transformers import DynamicCache

    return DynamicCache()


def run_cached(
    model: HookedModel, tokens: Int[Tensor, "rows pos"], cache: Any, mask: Int[Tensor, "rows all_pos"] | None = None
) -> Float[Tensor, "rows pos d_vocab"]:
    """Logits of the next positions after those in the cache, which grows by them.

    Args:
        model: Left as found.
        tokens: The next tokens.
        cache: As `new_cache` or an earlier call left it.
        mask: 1 for real tokens and 0 for padding on the left, over cached and new positions; None if there is none.
    """
    new = tokens.shape[1]
    if is_hooked_transformer(model):
        return model(tokens, past_kv_cache=cache, attention_mask=None if mask is None else mask[:, -new:])
    if mask is None:
        return model(tokens, past_key_values=cache, use_cache=True)
    positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]
    return model(tokens, past_key_values=cache, use_cache=True, attention_mask=mask, position_ids=positions)


def attended(model: HookedModel, cache: Any) -> list[Attended]:
    """What a cache holds, per layer."""
    if is_hooked_transformer(model):
        return [(entry.past_keys, entry.past_values) for entry in cache]
    return [(layer.keys, layer.values) for layer in cache.layers]


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
        self._mask = _mask(tokens, padding)
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


def _mask(tokens: Int[Tensor, "rows pos"], padding: Int[Tensor, " rows"] | None) -> Int[Tensor, "rows pos"] | None:
    """Attention mask of rows that are padded on the left, None where no row is."""
    if padding is None or not bool(padding.any()):
        return None
    return (torch.arange(tokens.shape[1], device=tokens.device) >= padding[:, None]).long()


def record(
    model: HookedModel,
    tokens: Int[Tensor, "batch pos"],
    names: Iterable[str],
    *,
    hooks: Hooks = (),
    padding: Int[Tensor, " batch"] | None = None,
) -> tuple[dict[str, Float[Tensor, "batch pos ..."]], list[Attended]]:
    """Activations at hook points and every layer's attention keys and values, from one full run.

    Args:
        model: Left as found.
        tokens: Token ids.
        names: Hook points to read.
        hooks: Further hooks to run with.
        padding: Padding tokens on the left of each row; what is recorded there has no meaning.

    Raises:
        InputError: If a hook point does not exist.
    """
    names = [check_hook(model, name) for name in names]
    found: dict[str, Tensor] = {}

    def reader(name: str) -> ActivationHook:
        def keep(value: Tensor, hook: object) -> None:
            found[name] = value

        return keep

    cache = new_cache(model, tokens.shape[0])
    with model.hooks(fwd_hooks=[*hooks, *((name, reader(name)) for name in names)]):
        run_cached(model, tokens.to(device_of(model)), cache, _mask(tokens, padding))
    return found, attended(model, cache)


def last_resid(model: HookedModel) -> str:
    """Hook point of the last block's output."""
    return Site("resid_post", model.cfg.n_layers - 1).hook
