"""From text to the tokens a model is given, and the place of the subject among them.

Conventions, for the whole library:
    BOS: prepended exactly when `model.cfg.default_prepend_bos` says so, by ourselves, whatever the tokenizer is set to;
        a text that begins with it already, such as a chat template's, gets no second one. The authors' GPT-2 code uses
        none.
    Subject: found by character offsets, never by comparing token strings. A space before the subject may be merged into
        its first token; any other text from outside in one of its tokens is refused.
    Target: scored as the continuation in `prompt + joiner + target`, where the prompt's end decides on the joiner, see
        `joiner_after`, unless the caller does. The released code always joins by a space, and trusts the prompt's
        tokens to stay what they are in there; here they are checked.
    Padding: on the right only, which causal attention never sees. Left-padded tokens are wrong in TransformerLens.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from tl_rome.errors import InputError, SubjectError, UnsupportedModelError
from tl_rome.facts import Fact, check_fact

_OPENING = ("Ps", "Pi", "Sc", "Pc")
"""Unicode categories after which a word follows without a space: opening brackets, quotes, currencies, underscores."""
_SPACELESS = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts that write no spaces between words, beside those of Chinese and Japanese, whose characters are wide."""


@runtime_checkable
class TokenizedModel(Protocol):
    """What this file needs of a model: its tokenizer, and `cfg` with `default_prepend_bos` and `n_ctx`."""

    tokenizer: Any
    cfg: Any


@dataclass(frozen=True)
class SubjectSpan:
    """Half-open range of the token positions that hold the subject, counting the BOS token when there is one."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise InputError(f"span [{self.start}, {self.end}) is not a range of positions; need 0 <= start < end")

    def __len__(self) -> int:
        return self.end - self.start

    @property
    def last(self) -> int:
        """Position of the subject's last token, where ROME reads k* and v*."""
        return self.end - 1

    @property
    def slice(self) -> slice:
        """Index of the subject's tokens, as in `tokens[span.slice]`."""
        return slice(self.start, self.end)

    def shifted(self, offset: int) -> "SubjectSpan":
        """The same span after `offset` tokens were put in front of the prompt (negative: taken away)."""
        return SubjectSpan(self.start + offset, self.end + offset)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A fact's prompt as the model sees it."""

    text: str
    """The prompt, without BOS."""
    tokens: Int[Tensor, " pos"]
    """Token ids, BOS included when `prepend_bos`; int64, on the CPU."""
    labels: tuple[str, ...]
    """One readable string per token, see `token_labels`."""
    subject: SubjectSpan
    """Positions of the subject in `tokens`."""
    prepend_bos: bool
    """Whether `tokens` begins with a BOS token."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Token sequences of different lengths, padded on the right."""

    tokens: Int[Tensor, "batch pos"]
    """Token ids; what stands at positions >= length has no meaning."""
    lengths: Int[Tensor, " batch"]
    """Number of real tokens in each row, at least 1."""

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Position of each row's last real token."""
        return self.lengths - 1


def encode(model: TokenizedModel, text: str, *, truncate: bool = False) -> Int[Tensor, " pos"]:
    """Tokenise a text under the model's BOS policy; the ids are int64, on the CPU.

    Args:
        model: A model with a tokenizer.
        text: Any text; empty only if the policy prepends BOS.
        truncate: Cut a text that is longer than the context, where otherwise an error is raised.

    Raises:
        InputError: If there would be no token, or more than the model's context holds.
        UnsupportedModelError: If the model has no tokenizer, or the policy asks for a BOS token that it lacks.
    """
    ids = list(_tokenize(model, text)["input_ids"])
    return _as_tokens(model, (_bos(model, ids) + ids)[: model.cfg.n_ctx if truncate else None], text)


def encode_fact(model: TokenizedModel, fact: Fact, prefix: str = "") -> Prompt:
    """Tokenise a fact's prompt and locate its subject by the template's own character offsets.

    Args:
        model: A model with a fast tokenizer.
        fact: The statement; a subject that occurs several times is taken where the template has its `{}`.
        prefix: Text put in front of the prompt, such as `"Once upon a time. "`; may contain anything, the subject too.

    Raises:
        SubjectError: If a token holds text from both inside and outside the subject; the message shows the tokens.
        InputError: If it is not a `Fact`, or the prompt is longer than the model's context.
        UnsupportedModelError: If the tokenizer gives no usable character offsets, or see `encode`.
    """
    check_fact(fact)
    text, start = prefix + fact.prompt, len(prefix) + fact.subject_chars[0]
    encoded = _tokenize(model, text, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])
    bos = _bos(model, ids)
    tokens = _as_tokens(model, bos + ids, text)
    labels = token_labels(model, tokens)
    span = _locate(text, fact.subject, start, encoded["offset_mapping"], labels[len(bos) :])
    return Prompt(text, tokens, labels, span.shifted(len(bos)), bool(model.cfg.default_prepend_bos))


def joiner_after(prompt: str) -> str:
    """What goes between a prompt and its target: a space, or nothing where the prompt's end leaves no room for one.

    Nothing follows white space, an opening bracket or quotation mark, a currency or other prefix sign (`$`, `#`, `@`,
    `/`, `_`), a hyphen that is joined to a word, and characters of a script that writes no spaces between words:
    Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan. A straight quotation mark opens where white space, a bracket
    or nothing precedes it.
    """
    if not prompt:
        return " "
    last, before = prompt[-1], prompt[-2:-1]
    category, name = unicodedata.category(last), unicodedata.name(last, "")
    if last in "\"'`":
        room = bool(before) and not before.isspace() and unicodedata.category(before) not in _OPENING
    elif category == "Pd":
        room = before.isspace()
    else:
        wide = unicodedata.east_asian_width(last) in "WF" and category != "So" and not name.startswith("HANGUL")
        room = not (wide or name.startswith(_SPACELESS) or last.isspace() or last in "#@/\\" or category in _OPENING)
    return " " if room else ""


def encode_target(
    model: TokenizedModel, target: str, prompt: str | None = None, joiner: str | None = None
) -> Int[Tensor, " target"]:
    """Tokenise a target so that `torch.cat([encode(model, prompt), target_tokens])` is the sequence to score.

    With a prompt these are the tokens that `prompt + joiner + target` has after the prompt's own. Without one, or where
    the tokenizer would merge across that boundary, they are the tokens of `joiner + target` in mid-sentence. A prompt
    that itself ends in white space, such as a newline, gets no space in any case.

    Args:
        model: A model with a tokenizer.
        target: The object; space around it is not part of it.
        prompt: The text to continue, as given to `encode`.
        joiner: What stands between the two, `" "` or `""`; by default `joiner_after` of the prompt decides.

    Raises:
        InputError: If the target is empty, prompt and target exceed the context, or the prompt ends in a space that
            belongs to the target's first token.
    """
    text = target.strip()
    if not text:
        raise InputError(f"target is empty ({target!r}); give at least one visible character")
    before, ids = [], None
    joiner = joiner if joiner is not None else joiner_after(prompt or "")
    if prompt is not None:
        before = encode(model, prompt).tolist()
        ids = _continuation(model, prompt, "" if prompt[-1:].isspace() else joiner, text)
        if ids is None and prompt[-1:].isspace():
            raise InputError(f"prompt {prompt!r} ends in a space that belongs to the token of {text!r}; leave it out")
    # Metaspace tokenizers put a space of their own before " Paris"; after a colon there is just the one that is meant.
    ids = ids or _continuation(model, ":", joiner, text) or list(_tokenize(model, joiner + text)["input_ids"])
    return _as_tokens(model, before + ids, f"{prompt or ''}{joiner}{text}")[len(before) :]


def pad(sequences: Sequence[Int[Tensor, " _"]], pad_token: int = 0) -> TokenBatch:
    """Stack token sequences into one batch, padded on the right with `pad_token`, which may be any valid id.

    Raises:
        InputError: If there are no sequences, or one is empty.
    """
    lengths = [len(sequence) for sequence in sequences]
    if not lengths or min(lengths) == 0:
        raise InputError(f"cannot pad sequences of lengths {lengths}; give at least one, and none of them empty")
    tokens = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=pad_token)
    return TokenBatch(tokens, torch.tensor(lengths, device=tokens.device))


def token_labels(model: TokenizedModel, tokens: Int[Tensor, " pos"]) -> tuple[str, ...]:
    r"""One printable string per token, for plots, tables and messages.

    Leading spaces are kept, other white space and control characters escaped (`\n`). A token that is only a part of a
    character reads `\ufffd` or, with byte fallback, `<0xE6>`.
    """
    return tuple(_label(model.tokenizer, token) for token in tokens.tolist())


def _label(tokenizer: Any, token: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(token)
    if piece is None:  # ids beyond the vocabulary exist: models round their embedding up
        return f"<{token}>"
    if "▁" in piece or piece.startswith("<0x"):  # Metaspace; decoded alone it would lose its leading space
        text = piece.replace("▁", " ")
    else:
        text = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _tokenize(model: TokenizedModel, text: str, **options: Any) -> Any:
    if model.tokenizer is None:
        raise UnsupportedModelError("the model has no tokenizer; give it one when loading it, or set model.tokenizer")
    if options and not model.tokenizer.is_fast:
        name = type(model.tokenizer).__name__
        raise UnsupportedModelError(f"{name} gives no character offsets to find the subject by; use a fast tokenizer")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        place = f"{text[max(0, error.start - 10) : error.end + 10]!r}"
        raise InputError(f"the text has half a character at {place} (a lone surrogate); give whole ones") from None
    return model.tokenizer(text, add_special_tokens=False, verbose=False, **options)


def _bos(model: TokenizedModel, ids: list[int]) -> list[int]:
    """What to put before a text: the BOS token if the policy says so and the text does not begin with it."""
    if not model.cfg.default_prepend_bos:
        return []
    bos = model.tokenizer.bos_token_id
    if bos is None:
        raise UnsupportedModelError("the tokenizer has no BOS token; set one, or model.cfg.default_prepend_bos = False")
    return [] if ids[:1] == [bos] else [bos]


def _as_tokens(model: TokenizedModel, ids: list[int], text: str) -> Int[Tensor, " pos"]:
    shown = repr(text if len(text) <= 60 else f"{text[:57]}...")
    if not ids:
        raise InputError(f"{shown} has no tokens and the model's policy is to prepend no BOS token; write some text")
    if len(ids) > model.cfg.n_ctx:
        raise InputError(f"{shown} has {len(ids)} tokens, the model's context only {model.cfg.n_ctx}; shorten the text")
    return torch.tensor(ids, dtype=torch.long)


def _continuation(model: TokenizedModel, prompt: str, joiner: str, target: str) -> list[int] | None:
    """Tokens of the target after the prompt, or None where joining the two changes the prompt's own tokens."""
    ids = _tokenize(model, prompt)["input_ids"]
    joined = _tokenize(model, prompt + joiner + target)["input_ids"]
    return joined[len(ids) :] if joined[: len(ids)] == ids and len(joined) > len(ids) else None


def _locate(text: str, subject: str, start: int, offsets: Sequence[Any], labels: Sequence[str]) -> SubjectSpan:
    """Find the tokens of the subject, which begins at character `start`; positions do not count BOS."""
    subject = subject.strip()  # space at its ends may belong to a neighbour's token
    start = text.index(subject, start)
    end = start + len(subject)
    ordered = all(a <= c and b <= d for (a, b), (c, d) in pairwise(offsets))
    if not ordered or any(a >= b and label.strip() for (a, b), label in zip(offsets, labels, strict=True)):
        raise UnsupportedModelError(
            f"the tokenizer's offsets {list(offsets)} do not describe its tokens {list(labels)}; use another tokenizer"
        )
    # The bare space marker that Metaspace puts in front of a text claims the first character, but holds none of it.
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start and labels[i].strip()]
    if not inside:
        raise SubjectError(f"subject {subject!r} has no token of its own in {list(labels)}; choose another subject")
    first, last = inside[0], inside[-1]
    # What a normaliser dropped (an accent, after NFC) belongs to the token before it.
    following = offsets[last + 1][0] if last + 1 < len(offsets) else len(text)
    before, after = text[offsets[first][0] : start], text[end : max(offsets[last][1], following)]
    for verb, index, outside in (("starts", first, before), ("ends", last, after)):
        if outside.strip():
            raise SubjectError(
                f"subject {subject!r} {verb} inside the token {labels[index]!r} of {list(labels)}; "
                "choose a subject and template that meet at a token boundary"
            )
    return SubjectSpan(first, last + 1)
