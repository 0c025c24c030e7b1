"""Running a model again and again with something added to one layer's W_out output, at the cost of its upper part.

Nothing below the layer and nothing before the first changed position depends on what is added. So one run is recorded,
and each further one begins with the edited block, on the positions at which its output changes, and goes up from there.
Where a model's blocks cannot be run one by one, `WholeRunner` runs all of it each time: slower, and the same numbers.
Which of the two it is the first run shows, in which nothing is added as yet: it must give what was recorded.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import UnsupportedModelError
from tl_rome.running.blocks import BlockRunner, check_blocks, first_run
from tl_rome.running.forward import last_resid, read, record
from tl_rome.running.hooks import Hook, hooked
from tl_rome.running.matrices import value_hook
from tl_rome.sites import HookedModel, Site

_log = logging.getLogger(__name__)


class SuffixRunner:
    """Runs of a batch from one layer's W_out up, differentiable in what is added there."""

    def __init__(
        self,
        model: HookedModel,
        tokens: Int[Tensor, "rows pos"],
        layer: int,
        lengths: Int[Tensor, " rows"],
        start: int,
        span: int | None,
        padding: Int[Tensor, " rows"] | None,
        names: Iterable[str],
    ) -> None:
        end = tokens.shape[1] if span is None else start + span
        pre, post, top, outputs = Site("resid_pre", layer).hook, Site("resid_post", layer).hook, last_resid(model), []
        with torch.no_grad(), hooked(model, [value_hook(model, layer, outputs.append)]):
            found, attended = record(model, tokens, {pre, post, top, *names}, padding=padding)
        self.found = {name: found[name] for name in names}
        self.outputs: Float[Tensor, "rows span d_model"] = outputs[0][:, start:end]
        self._layers = range(layer, model.cfg.n_layers)
        self._above = BlockRunner(model, tokens, start, padding)
        whole = end == tokens.shape[1]
        self._edited = self._above if whole else BlockRunner(model, tokens[:, :end], start, padding)
        self._rows: Tensor | None = None
        self._pre, self._after = found[pre][:, start:end], found[post][:, end:]
        self._past = [self._above.crop(attended[layer]) for layer in self._layers]
        places = torch.arange(start, tokens.shape[1], device=lengths.device)
        self._real, self._unedited = places < lengths[:, None], found[top][:, start:]
        self._added = torch.zeros_like(self.outputs), torch.zeros_like(self.outputs)

    def __call__(
        self, added: Float[Tensor, "left span d_model"], attention: Float[Tensor, "left span d_model"]
    ) -> Float[Tensor, "left from_start d_model"]:
        """See `Runner`."""
        self._added = added, attention
        edited, *above = self._layers
        changed = self._edited(edited, self._pre, self._past[0], self._rows)
        resid = torch.cat([changed, self._after], dim=1)
        for layer, past in zip(above, self._past[1:], strict=True):
            resid = self._above(layer, resid, past, self._rows)
        return resid

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """See `Runner`."""
        self._rows = rows if self._rows is None else self._rows[rows]
        self._pre, self._after = self._pre[rows], self._after[rows]
        self._past = [(keys[rows], values[rows]) for keys, values in self._past]

    def add(self, output: Float[Tensor, "left pos d_model"], place: int) -> Float[Tensor, "left pos d_model"]:
        """What is hooked on W_out's output, place 0, and on that of attention, place 1."""
        return (output + self._added[place]).to(output.dtype)

    @torch.no_grad()
    def check(self, found: Float[Tensor, "rows from_start d_model"]) -> None:
        """Make sure that a run of all rows, with nothing added, has given what was recorded.

        Raises:
            UnsupportedModelError: If it has not: the model does more than pass one stream from block to block.
        """
        check_blocks(found[self._real], self._unedited[self._real])


class WholeRunner:
    """The same by the definition: every run is one of the whole model, without a cache and without padding on the left.

    Rows are moved to the left end for that, and what is found is moved back.
    """

    def __init__(
        self,
        model: HookedModel,
        tokens: Int[Tensor, "rows pos"],
        layer: int,
        start: int,
        span: int | None,
        padding: Int[Tensor, " rows"] | None,
        names: Iterable[str],
    ) -> None:
        self._model, self._top, outputs = model, last_resid(model), []
        shift = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device) if padding is None else padding
        places = torch.arange(tokens.shape[1], device=tokens.device)
        self._tokens = tokens.gather(1, (places + shift[:, None]) % tokens.shape[1])
        self._places = (places[start:] - shift[:, None]).clamp(min=0)  # of the carried positions in the moved rows
        self._rows = torch.arange(len(tokens), device=tokens.device)
        self._span = tokens.shape[1] - start if span is None else span
        with torch.no_grad(), hooked(model, [value_hook(model, layer, outputs.append)]):
            found = read(model, self._tokens, [*names, self._top])
        back = (places - shift[:, None]).clamp(min=0)
        self.found = {name: found[name][self._rows[:, None], back] for name in names}
        self.outputs: Float[Tensor, "rows span d_model"] = outputs[0][self._rows[:, None], self._changed]
        self._added = torch.zeros_like(self.outputs), torch.zeros_like(self.outputs)

    @property
    def _changed(self) -> Int[Tensor, "left span"]:
        """Positions at which W_out's output changes, in the moved rows."""
        return self._places[:, : self._span]

    def __call__(
        self, added: Float[Tensor, "left span d_model"], attention: Float[Tensor, "left span d_model"]
    ) -> Float[Tensor, "left from_start d_model"]:
        """See `Runner`."""
        self._added = added, attention
        resid = read(self._model, self._tokens, [self._top])[self._top]
        return resid[torch.arange(len(resid), device=resid.device)[:, None], self._places]

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """See `Runner`."""
        self._tokens, self._places = self._tokens[rows], self._places[rows]

    def add(self, output: Float[Tensor, "left pos d_model"], place: int) -> Float[Tensor, "left pos d_model"]:
        """See `SuffixRunner.add`."""
        rows = torch.arange(len(output), device=output.device)[:, None]
        return output.index_put((rows, self._changed), self._added[place].to(output.dtype), accumulate=True)


class Runner:
    """Runs of a batch with something added to W_out's output, in the shorter way if that is right.

    Args:
        suffix: Makes the shorter way.
        whole: Makes the other one.
    """

    def __init__(self, suffix: Callable[[], SuffixRunner], whole: Callable[[], WholeRunner]) -> None:
        self._whole, self._tried = whole, False
        try:
            with first_run():
                self._use(suffix())
        except UnsupportedModelError as error:
            self._give_up(error)
        self.found = self._running.found
        """What was recorded at `names`."""
        self.outputs: Float[Tensor, "rows span d_model"] = self._running.outputs
        """W_out's output at the positions that may change, bias included, before anything is added."""

    def __call__(
        self, added: Float[Tensor, "left span d_model"], attention: Float[Tensor, "left span d_model"] | None = None
    ) -> Float[Tensor, "left from_start d_model"]:
        """The last block's output at positions from `start` on.

        Args:
            added: To W_out's output, for each row that is left; nothing in the first run, or one more is needed.
            attention: To that of the layer's attention, where the runner was made for that.
        """
        given, attention = attention is not None, torch.zeros_like(added) if attention is None else attention
        if self._tried or not isinstance(self._running, SuffixRunner):
            return self._running(added, attention)
        self._tried, something = True, bool(added.any()) or (given and bool(attention.any()))
        try:
            with first_run():
                nothing = torch.zeros_like(added)
                found = self._running(*((nothing, nothing) if something else (added, attention)))
                self._running.check(found)
        except UnsupportedModelError as error:
            self._give_up(error)
            return self._running(added, attention)
        return self._running(added, attention) if something else found

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        """Go on with some of the rows that are left, given by their places among those; not before the first run."""
        self._running.keep(rows)

    def _use(self, running: SuffixRunner | WholeRunner) -> None:
        self._running, self.add = running, running.add

    def _give_up(self, error: UnsupportedModelError) -> None:
        _log.warning("%s; running the whole model at each step instead", error)
        self.add = _unchanged  # what is recorded has nothing added
        self._use(self._whole())


def _unchanged(output: Float[Tensor, "left pos d_model"], place: int) -> Float[Tensor, "left pos d_model"]:
    return output


@contextmanager
def suffix_runner(
    model: HookedModel,
    tokens: Int[Tensor, "rows pos"],
    layer: int,
    *,
    lengths: Int[Tensor, " rows"],
    start: int = 0,
    span: int | None = None,
    padding: Int[Tensor, " rows"] | None = None,
    names: Iterable[str] = (),
    attention: bool = False,
) -> Iterator[Runner]:
    """Record a run of a batch and continue it again and again; the runner is valid inside the `with` block.

    Args:
        model: Left as found. A hook is on it inside: putting it there takes a bridge tens of milliseconds, so it is
            done once for all runs.
        tokens: On the model's device.
        layer: Layer whose W_out's output is changed.
        lengths: Of each row without its padding on the right; what is found there has no meaning.
        start: First position at which it changes.
        span: Number of positions at which it changes; None is all of them.
        padding: Padding tokens on the left of each row.
        names: Further hook points to record, see `Runner.found`.
        attention: Whether something is added to the output of the layer's attention too.

    Raises:
        InputError: If a hook point does not exist.
    """
    names = list(names)
    runner = Runner(
        lambda: SuffixRunner(model, tokens, layer, lengths, start, span, padding, names),
        lambda: WholeRunner(model, tokens, layer, start, span, padding, names),
    )
    hooks: list[Hook] = [value_hook(model, layer, lambda output: runner.add(output, 0))]
    if attention:
        hooks.append((Site("attn_out", layer).hook, lambda output, hook: runner.add(output, 1)))
    with hooked(model, hooks):
        yield runner
