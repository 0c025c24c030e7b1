"""Running part of a model: up to a hook point, and with the attention keys and values of a run kept.

`read` stops a run as soon as the wanted activations are there; `record` keeps what `blocks` needs to run single blocks
later.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import UnsupportedModelError
from tl_rome.sites import ActivationHook, HookedModel, Site, check_hooks, is_hooked_transformer

Hooks = Sequence[tuple[str, ActivationHook]]
Attended = tuple[Float[Tensor, "rows ..."], Float[Tensor, "rows ..."]]
"""One layer's cached attention keys and values, in the model class's own layout; rows come first."""


class _Stop(Exception):
    """Raised inside a hook to end a forward pass whose remaining work nobody needs."""


@contextmanager
def hooked(model: HookedModel, hooks: Hooks) -> Iterator[None]:
    """Have hooks on a model, and take them away again.

    Raises:
        UnsupportedModelError: If a hook point exists, but TransformerLens does not let it be used.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(model.hooks(fwd_hooks=list(hooks)))
        except ValueError as error:
            raise UnsupportedModelError(str(error)) from error
        yield


def device_of(model: HookedModel) -> torch.device:
    """Device of the model's first block, where its tokens are sent."""
    return next(model.blocks[0].parameters()).device


def read(
    model: HookedModel, tokens: Int[Tensor, "batch pos"], names: Iterable[str], *, hooks: Hooks = ()
) -> dict[str, Float[Tensor, "batch ..."]]:
    """Activations at hook points; the forward pass ends once the last of them has been read.

    Args:
        model: Left as found.
        tokens: Right-padded token ids; padding needs no mask, since later positions cannot reach earlier ones.
        names: Hook points to read.
        hooks: Further hooks to run with; they act before an activation is read.

    Raises:
        InputError: If a hook point does not exist.
        UnsupportedModelError: If one does not fire.
    """
    found: dict[str, Tensor] = {}
    wanted = set(check_hooks(model, names))

    def reader(name: str) -> ActivationHook:
        def keep(value: Tensor, hook: object) -> None:
            found[name] = value
            if len(found) == len(wanted):
                raise _Stop

        return keep

    with hooked(model, [*hooks, *((name, reader(name)) for name in wanted)]):
        try:
            model(tokens.to(device_of(model)))
        except _Stop:
            pass
    _check_fired(wanted, found)
    return found


def _check_fired(names: Iterable[str], found: dict[str, Tensor]) -> None:
    missing = sorted(set(names) - found.keys())
    if missing:
        shown = ", ".join(missing[:3]) + " ..." * (len(missing) > 3)
        remedy = "TransformerLens fires some only when asked to, as by model.set_use_attn_result(True)"
        raise UnsupportedModelError(f"hook points {shown} exist but did not fire in a forward pass; {remedy}")


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


def left_mask(tokens: Int[Tensor, "rows pos"], padding: Int[Tensor, " rows"] | None) -> Int[Tensor, "rows pos"] | None:
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
) -> tuple[dict[str, Float[Tensor, "batch ..."]], list[Attended]]:
    """Activations at hook points and every layer's attention keys and values, from one run.

    The run ends after the last block if that block's output is the last thing to be read.

    Args:
        model: Left as found.
        tokens: Token ids.
        names: Hook points to read.
        hooks: Further hooks to run with.
        padding: Padding tokens on the left of each row; what is recorded there has no meaning.

    Raises:
        InputError: If a hook point does not exist.
        UnsupportedModelError: If one does not fire.
    """
    wanted = set(check_hooks(model, names))
    found: dict[str, Tensor] = {}

    def reader(name: str) -> ActivationHook:
        def keep(value: Tensor, hook: object) -> None:
            found[name] = value
            if name == last_resid(model) and len(found) == len(wanted):
                raise _Stop

        return keep

    cache = new_cache(model, tokens.shape[0])
    with hooked(model, [*hooks, *((name, reader(name)) for name in wanted)]):
        try:
            run_cached(model, tokens.to(device_of(model)), cache, left_mask(tokens, padding))
        except _Stop:
            pass
    _check_fired(wanted, found)
    return found, attended(model, cache)


def last_resid(model: HookedModel) -> str:
    """Hook point of the last block's output."""
    return Site("resid_post", model.cfg.n_layers - 1).hook
