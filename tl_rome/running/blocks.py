"""Running single blocks of a model, on some positions of any rows.

Changing a state at layer l and position t changes nothing below l and nothing before t. `BlockRunner` runs single
blocks on the positions from t on, with the keys and values of earlier positions taken from a recorded run. It stays
inside TransformerLens blocks, so hooks fire in them as always (they see only the positions and rows that are run).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import TLRomeError, UnsupportedModelError
from tl_rome.running.forward import KeysValues, device_of, left_mask, new_cache, run_cached
from tl_rome.running.interrupts import reliable
from tl_rome.running.memory import is_out_of_memory
from tl_rome.sites import HookedModel, is_hooked_transformer

_TOLERANCE = 0.05
"""Relative error that rounding alone may cause, in bfloat16 too; a wrong run is off by far more."""


Past = tuple[Float[Tensor, "fewer ..."], Float[Tensor, "fewer ..."]]
"""One layer's keys and values at earlier positions, for as many rows as are run, or fewer that are repeated."""


class _Known(Exception):
    """Ends a block's run as soon as its attention has joined past and new keys and values."""


class _Past:
    """Stands in for a cache inside one attention layer: constant keys and values before the new ones.

    It answers to the names that Hugging Face's caches (`update`) and TransformerLens's entries (`append`) have.
    """

    def __init__(self, past: Past, axis: int, *, stop: bool = False) -> None:
        self.past_keys, self.past_values = past
        self._axis, self._stop = axis, stop

    def append(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Past and new, joined along positions; past rows that are fewer stand for several groups of new ones each."""
        joined = self._join(self.past_keys, keys), self._join(self.past_values, values)
        if self._stop:
            raise _Known(joined)
        return joined

    def _join(self, past: Tensor, new: Tensor) -> Tensor:
        if len(past) == len(new):
            return torch.cat([past, new], self._axis)
        groups = len(new) // len(past)
        apart = [past.expand(groups, *past.shape), new.unflatten(0, (groups, -1))]
        return torch.cat(apart, 1 + self._axis).flatten(0, 1)

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> KeysValues:
        """As `append`."""
        return self.append(key, value)

    def get_seq_length(self, *_: Any) -> int:
        """Number of past positions."""
        return self.past_keys.shape[self._axis]


class BlockRunner:
    """Runs single blocks on positions `start` to the end, for any rows of the length of the given tokens.

    Rows are residual streams; each brings the attention keys and values of its positions before `start`. On a
    TransformerBridge the arguments of each block (positions, mask) are noted once and used again.

    Args:
        model: Left as found.
        tokens: One prompt, which stands for any rows of its length; or several, aligned by padding.
        start: First position that the rows carry.
        padding: Padding tokens on the left of each prompt, where prompts whose parts before `start` differ in length
            have been aligned.

    Raises:
        UnsupportedModelError: If the model does not run each block once, with a key-value cache.
    """

    def __init__(
        self,
        model: HookedModel,
        tokens: Int[Tensor, "prompts pos"],
        start: int,
        padding: Int[Tensor, " prompts"] | None = None,
    ) -> None:
        self.model = model
        self.start = start
        self._prompts = len(tokens)
        self._hooked = is_hooked_transformer(model)
        self._mask = left_mask(tokens, padding)
        self._noted = [] if self._hooked else _block_arguments(model, tokens, start, self._mask)

    def __call__(
        self,
        layer: int,
        resid: Float[Tensor, "rows pos d_model"],
        past: Past,
        prompts: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows pos d_model"]:
        """Run one block.

        Args:
            layer: Block index.
            resid: The block's input at positions from `start` on.
            past: This layer's keys and values at positions before `start`, for each row; fewer rows of them are
                repeated.
            prompts: Which of the prompts each row belongs to; None if there is one prompt, or one row for each.
        """
        return self._run(layer, resid, _Past(past, self._axis), prompts)

    def attended(
        self,
        layer: int,
        resid: Float[Tensor, "rows pos d_model"],
        past: Past,
        prompts: Int[Tensor, " rows"] | None = None,
    ) -> KeysValues:
        """The keys and values that the block attends to, at all positions, without the rest of its work."""
        try:
            self._run(layer, resid, _Past(past, self._axis, stop=True), prompts)
        except _Known as known:
            return known.args[0]
        raise UnsupportedModelError(f"block {layer} did not use its key-value cache")

    def _run(self, layer: int, resid: Tensor, past: _Past, prompts: Tensor | None) -> Tensor:
        block = self.model.blocks[layer]
        if self._prompts == 1:  # which stands for all rows
            prompts = torch.zeros(len(resid), dtype=torch.long, device=resid.device)
        elif prompts is None:
            prompts = torch.arange(len(resid), device=resid.device)

        def given(value: Any) -> Any:
            return past if value is _CACHE else self._of_rows(value, prompts)

        if self._hooked:
            return block(resid, past_kv_cache_entry=past, attention_mask=given(self._mask))
        args, kwargs = self._noted[layer]
        output = block(resid, *map(given, args), **{name: given(value) for name, value in kwargs.items()})
        return output[0] if isinstance(output, tuple) else output

    def _of_rows(self, value: Any, prompts: Int[Tensor, " rows"]) -> Any:
        """A block's argument for the rows: of tensors with one entry for each prompt, or each head of each, theirs.

        Where there is one prompt, entries that rows can share stay as they are. BLOOM's biases of attention by distance
        are [prompts x heads, 1, pos]: rows cannot share those.
        """
        if isinstance(value, tuple | list):
            return type(value)(self._of_rows(part, prompts) for part in value)
        if not isinstance(value, Tensor) or not value.ndim:
            return value
        if len(value) == self._prompts:
            return value if self._prompts == 1 else value[prompts.to(value.device)]
        if value.ndim == 3 and len(value) == self._prompts * self.model.cfg.n_heads:
            return value.unflatten(0, (self._prompts, -1))[prompts.to(value.device)].flatten(0, 1)
        return value

    def check(
        self,
        resid: Float[Tensor, "rows pos d_model"],
        cached: Sequence[KeysValues],
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
        check_blocks(resid, expected)

    def crop(
        self, cached: KeysValues, rows: Int[Tensor, " chosen"] | slice = slice(None)
    ) -> tuple[Float[Tensor, "chosen ..."], Float[Tensor, "chosen ..."]]:
        """The part of a recorded layer's keys and values before `start`, for the rows given."""
        keys, values = (part[rows].narrow(self._axis, 0, self.start) for part in cached)
        return keys, values

    def align(
        self, cached: Sequence[KeysValues], missing: Sequence[int]
    ) -> tuple[Float[Tensor, "all ..."], Float[Tensor, "all ..."]]:
        """Several recorded prompts' keys and values before `start`, one below the other.

        Args:
            cached: Of one layer, for each prompt, over its own positions.
            missing: Padding on the left that each prompt needs.
        """
        joined = []
        for parts in zip(*cached, strict=True):
            kept = [part.narrow(self._axis, 0, self.start - gap) for part, gap in zip(parts, missing, strict=True)]
            padded = [
                torch.nn.functional.pad(part, (0, 0) * (part.ndim - 1 - self._axis) + (gap, 0)) if gap else part
                for part, gap in zip(kept, missing, strict=True)
            ]
            joined.append(torch.cat(padded))
        return joined[0], joined[1]

    @property
    def _axis(self) -> int:
        """Axis of positions in keys and values."""
        return 1 if self._hooked else 2


_CACHE = object()
"""Marks, among a block's noted arguments, the place of its key-value cache."""


def check_blocks(found: Float[Tensor, "*rows d_model"], expected: Float[Tensor, "*rows d_model"]) -> None:
    """Make sure that running block by block, with nothing changed, gives what the model itself computed.

    Raises:
        UnsupportedModelError: If it does not: the model does more than pass one stream from block to block.
    """
    error = ((found - expected).float().norm(dim=-1) / expected.float().norm(dim=-1)).max().item()
    if error > _TOLERANCE:
        raise UnsupportedModelError(f"running block by block is off by {error:.1%} from the model itself")


def _block_arguments(
    model: HookedModel, tokens: Int[Tensor, "prompts pos"], start: int, mask: Tensor | None
) -> list[tuple[list[Any], dict[str, Any]]]:
    """What a bridge hands to each block beside the residual stream when it runs positions `start` to the end.

    The model makes them in a pass whose blocks do nothing, after a cache of the right length.
    """
    blocks = list(model.blocks)
    cache, noted, streams = new_cache(model, len(tokens)), [], []
    nothing = torch.zeros(len(tokens), 1, start, 1, device=device_of(model))
    for layer in range(len(blocks) if start else 0):
        cache.update(nothing, nothing, layer)

    def note(*args: Any, **kwargs: Any) -> Any:
        stream = args[0] if args else kwargs.pop("hidden_states")
        streams.append(stream)
        values = [*args[1:], *kwargs.values()]
        if not any(value is cache for value in values):
            raise UnsupportedModelError("the model's blocks take no key-value cache")
        values = [_CACHE if value is cache else value for value in values]
        positional = len(args[1:])
        noted.append((values[:positional], dict(zip(kwargs, values[positional:], strict=True))))
        if len(noted) == len(blocks):
            raise _Known
        # Some versions of transformers take a block's output whole, others its first part; the second block shows it.
        whole = all(each.ndim == streams[0].ndim for each in streams)
        return streams[0] if whole else (streams[0],)

    with suppress(_Known), _replaced(blocks, note):
        run_cached(model, tokens[:, start:], cache, mask)
    if len(noted) != model.cfg.n_layers:
        raise UnsupportedModelError(f"blocks ran {len(noted)} times, not {model.cfg.n_layers}")
    return noted


@reliable
def _replaced(blocks: Sequence[Any], forward: Callable[..., Any]) -> Iterator[None]:
    """Blocks that do something else when called. No hook can do that: what it hooks is run as well."""
    own = [block.__dict__.get("forward") for block in blocks]  # as accelerate gives to those that it moves
    try:
        for block in blocks:
            block.__dict__["forward"] = forward
        yield
    finally:
        for block, before in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if before is not None:
                block.__dict__["forward"] = before


@contextmanager
def first_run(failing: str = "the model's blocks cannot be run one by one") -> Iterator[None]:
    """Turn what the model's own code raises in a first, trial run into an error that says what cannot be done with it.

    Args:
        failing: What cannot be done.

    Raises:
        UnsupportedModelError: For any error of the model's own code but running out of memory.
    """
    try:
        yield
    except TLRomeError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        raise UnsupportedModelError(f"{failing} ({reason})") from error


@reliable
def frozen(model: HookedModel) -> Iterator[None]:
    """Parameters need no gradients inside, which makes those of activations cheap; each is as it was afterwards."""
    required = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in required:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in required:
            parameter.requires_grad_(True)
