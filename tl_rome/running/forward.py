"""Running a model, all of it or a part: up to a hook point, or with the attention keys and values of a run kept.

`read` stops a run as soon as the wanted activations are there; `record` keeps what `blocks` needs to run single blocks
later. Every token is a real one unless a mask says otherwise: TransformerLens would take tokens that equal
the tokenizer's pad token for padding, and in GPT-2, GPT-J and GPT-NeoX that is the token which begins a text.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import NumericsError, UnsupportedModelError
from tl_rome.running.hooks import Hooks, hooked
from tl_rome.sites import ActivationHook, HookedModel, Site, check_hooks, is_hooked_transformer

KeysValues = tuple[Float[Tensor, "rows ..."], Float[Tensor, "rows ..."]]
"""One layer's cached attention keys and values, in the model class's own layout; rows come first."""


_LOGIT_TOLERANCE = 0.02
"""Relative error that rounding alone may leave in logits, in bfloat16 too; a forgotten multiplier makes far more."""


class _Stop(Exception):
    """Raised inside a hook to end a forward pass whose remaining work is not needed."""


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
            run(model, tokens.to(device_of(model)))
        except _Stop:
            pass
    _check_fired(wanted, found)
    return found


def run(model: HookedModel, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_vocab"]:
    """The model's own logits at every position; no token is taken for padding."""
    if is_hooked_transformer(model):
        return model(tokens, attention_mask=torch.ones_like(tokens))
    return model(tokens)


def _check_fired(names: Iterable[str], found: dict[str, Tensor]) -> None:
    missing = sorted(set(names) - found.keys())
    if missing:
        shown = ", ".join(missing[:3]) + " ..." * (len(missing) > 3)
        remedy = "TransformerLens fires some only when asked to, as by model.set_use_attn_result(True)"
        raise UnsupportedModelError(f"hook points {shown} exist but did not fire in a forward pass; {remedy}")


def final_logits(model: HookedModel, resid: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_vocab"]:
    """Logits from the last block's output, at just the rows given: the only place that makes them.

    Final norm, unembedding, and what the architecture does to logits after that: soft caps (Gemma 2), multipliers
    (Granite, Falcon-H1, Cohere). `check_final_logits` compares the result with the model's own.
    """
    if not hasattr(model, "ln_final"):
        raise UnsupportedModelError(f"{model.cfg.model_name!r} has no final norm, which this library makes logits with")
    flat = resid.reshape(1, -1, resid.shape[-1])
    logits = model.unembed(model.ln_final(flat))  # type: ignore[attr-defined]
    if is_hooked_transformer(model):
        cap = getattr(model.cfg, "output_logits_soft_cap", None)
        logits = cap * torch.tanh(logits / cap) if cap is not None and cap > 0 else logits
    else:
        logits = model.adapter.apply_output_logits_transform(logits)  # type: ignore[attr-defined]
    return logits.reshape(*resid.shape[:-1], logits.shape[-1])


@torch.no_grad()
def check_final_logits(model: HookedModel) -> None:
    """Make sure that `final_logits` gives the logits of the model itself, on two tokens.

    Raises:
        UnsupportedModelError: If it does not: scores, traces and edits would be of another distribution.
        NumericsError: If the model's logits are not finite.
    """
    tokens = torch.tensor([[0, min(1, model.cfg.d_vocab - 1)]], device=device_of(model))
    name, found = last_resid(model), {}
    with hooked(model, [(name, lambda resid, hook: found.update({name: resid}))]):
        expected = run(model, tokens).float()
    _check_fired([name], found)
    if not bool(expected.isfinite().all()):
        raise NumericsError(f"the logits of {model.cfg.model_name!r} are not finite; look for NaN or inf weights")
    error = float((final_logits(model, found[name]).float() - expected).norm() / expected.norm())
    if not error <= _LOGIT_TOLERANCE:
        raise UnsupportedModelError(
            f"the logits of {model.cfg.model_name!r} are not its unembedded last residual stream (off by {error:.1%}): "
            "it does something to them that this library does not know, so that probabilities would be wrong"
        )


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

    Raises:
        UnsupportedModelError: If the cache did not grow: the model ignores it, and would forget what came before.
    """
    new, before = tokens.shape[1], _cached_length(model, cache)
    if is_hooked_transformer(model):
        seen = torch.ones_like(tokens) if mask is None else mask[:, -new:]
        logits = model(tokens, past_kv_cache=cache, attention_mask=seen)
    elif mask is None:
        logits = model(tokens, past_key_values=cache, use_cache=True)
    else:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new:]
        logits = model(tokens, past_key_values=cache, use_cache=True, attention_mask=mask, position_ids=positions)
    if _cached_length(model, cache) != before + new:
        raise UnsupportedModelError(f"{model.cfg.model_name!r} ignores its key-value cache")
    return logits


def _cached_length(model: HookedModel, cache: Any) -> int:
    """Positions that a cache holds."""
    return cache[0].past_keys.shape[1] if is_hooked_transformer(model) else cache.get_seq_length()


def attended(model: HookedModel, cache: Any) -> list[KeysValues]:
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
) -> tuple[dict[str, Float[Tensor, "batch ..."]], list[KeysValues]]:
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
