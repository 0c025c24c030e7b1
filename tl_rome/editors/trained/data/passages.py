"""Passages of text that the model itself continues: what the rows MEND and KE of the paper were trained on.

Mitchell et al. take passages of WikiText-103 and continuations that were sampled once, into a file that is not public.
The continuation is the target. The outer prompt is the same text without some tokens at its beginning, uniformly from
none to floor((len - n) / 2), n the tokens of the target.

Tokens matter here, not words: what would be read as other tokens than those that were drawn is left out and counted.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.arguments import Count
from tl_rome.editors.trained.data.windows import Window, decoded, draw_windows, written
from tl_rome.editors.trained.examples import TrainingExample
from tl_rome.errors import InputError
from tl_rome.generation import sample_tokens
from tl_rome.running.borrowed import borrows
from tl_rome.sites import HookedModel
from tl_rome.tokens import encode_target

_FEWEST_DRAWN = 16
"""Passages that are drawn at once, so that some are continued by what can be written."""
_MOST_LEFT_OUT = 100
"""Passages left out for every one that is not, from which on the work is given up."""


@dataclass(frozen=True)
class Passages:
    """Examples made of passages."""

    examples: tuple[TrainingExample, ...]
    """Without subjects; `record` is "text 17" for one of `texts[17]`."""
    left_out: Mapping[str, int]
    """How many windows gave none, by reason."""


@borrows
def passage_examples(
    model: HookedModel,
    texts: Iterable[str],
    count: Count,
    *,
    generator: torch.Generator,
    sizes: tuple[int, int] = (20, 30),
    target_tokens: Count = 10,
    top_k: Count = 5,
    batch_size: Count = 32,
    progress: bool = False,
) -> Passages:
    """Examples of windows of texts, each text used once before any is used again.

    Args:
        model: Left as found; it samples the targets.
        texts: Such as lines of WikiText.
        count: How many examples.
        generator: Source of all draws.
        sizes: Fewest and most tokens of a passage, BOS not counted.
        target_tokens: Tokens of each target.
        top_k: Targets are sampled among the k most likely tokens at each step.
        batch_size: Passages continued at once.
        progress: Whether to show progress.

    Raises:
        InputError: If the texts do not give so many examples.
    """
    lines, left_out, found = list(texts), Counter[str](), list[TrainingExample]()
    windows = draw_windows(model, lines, sizes, generator=generator)
    bar = tqdm(total=count, desc="passages", disable=not progress)
    while len(found) < count:
        drawn = list(islice(windows, max(_FEWEST_DRAWN, count - len(found))))
        usable = [window for window in drawn if window is not None]
        left_out["the window is not text of its own"] += len(drawn) - len(usable)
        for window, target in _continued(model, usable, target_tokens, top_k, batch_size, generator):
            example = _example(model, window, target, generator)
            if example is None:
                left_out["the continuation is not text of its own"] += 1
            elif len(found) < count:
                found.append(example)
                bar.update()
        if not drawn or left_out.total() > _MOST_LEFT_OUT * (1 + len(found)):
            raise InputError(
                f"{len(lines)} texts gave {len(found)} passages of {sizes[0]} to {sizes[1]} tokens and a continuation, "
                f"{count} are asked for (left out: {dict(left_out)}); give more text"
            )
    bar.close()
    return Passages(tuple(found), {reason: times for reason, times in left_out.items() if times})


def _continued(
    model: HookedModel,
    windows: Sequence[Window],
    new_tokens: int,
    top_k: int,
    batch_size: int,
    generator: torch.Generator,
) -> list[tuple[Window, Int[Tensor, " target"]]]:
    """Windows with the tokens that the model goes on with, in order; those of one length are run together."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, window in enumerate(windows):
        by_length[len(window.tokens)].append(index)
    targets: dict[int, Tensor] = {}
    for length, places in sorted(by_length.items()):
        for start in range(0, len(places), batch_size):
            chunk = places[start : start + batch_size]
            batch = torch.stack([windows[place].tokens for place in chunk])
            longer = sample_tokens(model, batch, new_tokens, generator=generator, top_k=top_k)
            targets |= dict(zip(chunk, longer[:, length:], strict=True))
    return [(window, targets[index]) for index, window in enumerate(windows)]


def _example(
    model: HookedModel, window: Window, target: Int[Tensor, " target"], generator: torch.Generator
) -> TrainingExample | None:
    """The example of a continued passage, None if its target cannot be written."""
    text = decoded(model, target)
    joiner = " " if text[:1].isspace() else ""
    lead = int(bool(model.cfg.default_prepend_bos))
    shorter = [
        torch.cat([window.tokens[:lead], window.tokens[lead + dropped :]])
        for dropped in range(1 + (len(window.tokens) - lead) // 2)
    ]
    outer = [beginning for tokens in shorter if (beginning := written(model, tokens)) is not None]
    outer = [prompt for prompt in outer if _follows(model, prompt, text, joiner, target)]
    if outer[:1] != [window.text]:
        return None
    chosen = int(torch.randint(len(outer), (), generator=generator))
    return TrainingExample(window.text, text.strip(), outer[chosen], joiner=joiner, record=f"text {window.source}")


def _follows(model: HookedModel, prompt: str, text: str, joiner: str, target: Int[Tensor, " target"]) -> bool:
    """Whether a target after a prompt is read as the tokens that were sampled."""
    try:
        return torch.equal(encode_target(model, text, prompt, joiner), target)
    except InputError:  # nothing but white space, or the prompt ends in a space that is part of the target's token
        return False
