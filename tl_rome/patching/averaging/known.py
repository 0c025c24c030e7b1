"""Which facts a model knows, found by greedy generation (appendix B.1).

The model continues a prompt greedily; a fact is known if the text that it writes names the correct object before any
other capitalised word. What is traced is the prompt with what was written up to, but not including, the object: there
the object's first token is the model's first choice.

Where the text leaves room, the rules are these. The object is matched with its case and as whole words ("Parisian" does
not name Paris; "Paris-based" does), and must be followed by something, since a word at the very end of the written text
may be half of a longer one; a special token, such as the end of the text, ends it whole. A word is capitalised if its
first character is; words of the object itself do not count, words of the prompt neither. The object has to begin at a
token of its own: the prompt that is traced, tokenised again, must give the tokens that the model read, and the object
those that it wrote.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from tl_rome.arguments import Count
from tl_rome.errors import InputError
from tl_rome.facts import Fact, check_fact
from tl_rome.generation import sample_tokens
from tl_rome.running.borrowed import borrows
from tl_rome.running.forward import final_logits, last_resid, read
from tl_rome.sites import HookedModel
from tl_rome.storage.ledger import model_settings, open_ledger
from tl_rome.storage.parts import read_as, reading
from tl_rome.tokens import encode_fact, encode_target

_CHUNK = 256
"""Facts looked at together, to find prompts of equal length among them."""
_FIELDS = {"template": str, "subject": str, "target": str, "joiner": str | None, "known": bool}
"""What every line of a store has; one of a known fact has more."""


@dataclass(frozen=True)
class KnownFact:
    """A fact whose object the model names."""

    fact: Fact
    """What to trace: the template reaches up to the object."""
    asked: Fact
    """What the model was asked."""
    written: str
    """What it wrote, the object included."""
    prob: float
    """Probability of the object's first token after the traced prompt, in [0, 1]."""


@borrows
def collect_known_facts(
    model: HookedModel,
    facts: Iterable[Fact],
    *,
    store: str | Path | None = None,
    limit: Count | None = None,
    max_new_tokens: Count = 10,
    batch_size: Count = 64,
    progress: bool = True,
) -> list[KnownFact]:
    """Find the facts that a model knows.

    Args:
        model: Left as found.
        facts: Facts with their objects; read no further than needed.
        store: Append-only JSONL file of every fact looked at, known or not; those in it are not looked at again.
        limit: Stop once this many known facts have been found.
        max_new_tokens: Tokens that the model may write.
        batch_size: Bound on the prompts run together.
        progress: Whether to show a progress bar over facts.

    Returns:
        The known facts in the order of `facts`; of several that lead to the same traced prompt, the first.

    Raises:
        InputError: If something is not a `Fact`, a fact has no target, or a bound is below 1.
        ModelMismatchError: If the store belongs to another model.
        StorageError: If the store was made with other settings, is damaged, in use, or cannot be written.
    """
    settings = {**model_settings(model), "max_new_tokens": max_new_tokens}
    known: dict[Fact, KnownFact] = {}
    total = len(facts) if isinstance(facts, Sized) else None
    opened = nullcontext() if store is None else open_ledger(store, "known facts", settings, _FIELDS)
    with opened as ledger, tqdm(total=total, desc="known facts", unit="fact", disable=not progress) as bar:
        done = {_key(r): r for r in (ledger.records if ledger is not None else ())}
        for chunk in _chunks(facts):
            pending = [fact for fact in chunk if _key(vars(fact)) not in done]
            for record in _ask(model, pending, max_new_tokens, batch_size):
                done[_key(record)] = record
                if ledger is not None:
                    ledger.append(record)
            for fact in chunk:
                if (record := done[_key(vars(fact))])["known"]:
                    with reading(store or "the answer", "a known fact"):
                        found = _known(fact, record)
                    known.setdefault(found.fact, found)
            bar.update(len(chunk))
            bar.set_postfix(known=len(known))
            if limit is not None and len(known) >= limit:
                break
    return list(known.values())[:limit]


def lead_before_object(written: str, target: str, *, ended: bool = False) -> str | None:
    """What a text says before it names the target, or None if it does not, or names something else first.

    Args:
        written: A model's continuation of a prompt.
        target: The object, without space around it.
        ended: Whether the text is over, so that its last word is whole.
    """
    match = re.search(rf"(?<!\w){re.escape(target)}(?!\w)", written)
    # A character cut in half reads U+FFFD: it may be a letter.
    if match is None or (not ended and match.end() == len(written.rstrip("\ufffd"))):
        return None
    lead = written[: match.start()]
    return None if any(word[0].isupper() for word in re.findall(r"\w+", lead)) else lead


def _ask(model: HookedModel, facts: Sequence[Fact], new_tokens: int, batch_size: int) -> Iterator[dict[str, Any]]:
    """Records of facts, made in groups of equal prompt length."""
    by_length: dict[int, list[tuple[Fact, Tensor]]] = defaultdict(list)
    for fact in facts:
        try:
            tokens = encode_fact(model, fact).tokens
            if len(tokens) + new_tokens > model.cfg.n_ctx:
                raise InputError(f"{len(tokens)} + {new_tokens} tokens exceed the context of {model.cfg.n_ctx}")
            by_length[len(tokens)].append((fact, tokens))
        except InputError as error:
            yield {**vars(fact), "known": False, "why": str(error)}
    for same in by_length.values():
        for first in range(0, len(same), batch_size):
            asked = same[first : first + batch_size]
            batch = torch.stack([tokens for _, tokens in asked])
            read_and_written = sample_tokens(model, batch, new_tokens, generator=torch.Generator(), top_k=1)
            for (fact, tokens), row in zip(asked, read_and_written, strict=True):
                yield _judge(model, fact, len(tokens), row)


def _judge(model: HookedModel, fact: Fact, asked: int, tokens: Int[Tensor, " pos"]) -> dict[str, Any]:
    """The record of one fact, from the tokens that the model read and, after the first `asked`, wrote."""
    assert fact.target is not None
    target, ids = fact.target.strip(), tokens[asked:].tolist()
    special = set(model.tokenizer.all_special_ids)
    end = next((place for place, token in enumerate(ids) if token in special), None)
    written = model.tokenizer.decode(ids[:end])
    record: dict[str, Any] = {**vars(fact), "written": written, "known": False}
    lead = lead_before_object(written, target, ended=end is not None)
    if lead is None:
        return record
    try:
        traced = Fact(fact.template + lead.removesuffix(" "), fact.subject, target, fact.joiner)
        prompt = encode_fact(model, traced)
        continuation = torch.cat([prompt.tokens, encode_target(model, target, prompt.text, fact.joiner)])
    except InputError as error:
        return {**record, "why": str(error)}
    if not torch.equal(continuation, tokens[: len(continuation)]):
        return {**record, "why": "the object is not a continuation of the prompt's own tokens"}
    prob, first_choice = _first_token(model, prompt.tokens, int(continuation[len(prompt.tokens)]))
    if not first_choice:
        return {**record, "why": "without a cache, another token is the first choice"}
    return {**record, "known": True, "traced": traced.template, "prob": prob}


@torch.no_grad()
def _first_token(model: HookedModel, tokens: Int[Tensor, " pos"], answer: int) -> tuple[float, bool]:
    """Probability of a token after others, and whether none is more likely."""
    last = last_resid(model)
    logits = final_logits(model, read(model, tokens[None], [last])[last][0, -1:]).cpu().double()[0]
    return logits.softmax(-1)[answer].item(), bool(logits[answer] == logits.max())


def _known(fact: Fact, record: dict[str, Any]) -> KnownFact:
    traced = Fact(record["traced"], fact.subject, record["target"].strip(), fact.joiner)
    return read_as(KnownFact, {"fact": traced, "asked": fact, "written": record["written"], "prob": record["prob"]})


def _key(row: dict[str, Any]) -> tuple[str, str, str, str | None]:
    return row["template"], row["subject"], row["target"], row["joiner"]


def _chunks(facts: Iterable[Fact]) -> Iterator[list[Fact]]:
    """Facts in pieces, each fact only once."""
    seen: set[Fact] = set()

    def new() -> Iterator[Fact]:
        for fact in facts:
            if check_fact(fact).target is None:
                raise InputError(f"{fact.prompt!r} has no target; say which object is correct")
            if fact not in seen:
                seen.add(fact)
                yield fact

    source = new()
    while chunk := list(islice(source, _CHUNK)):
        yield chunk
