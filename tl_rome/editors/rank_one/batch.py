"""The prompts of one or many rewrites as one batch, aligned at the subject's last token.

Each request has a row for its prompt in every context, and one for the essence prompt ("{} is a") unless a context row
begins with the same tokens: what the model says at the subject's last token does not depend on what follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_rome.errors import InputError
from tl_rome.facts import Fact
from tl_rome.running.forward import device_of
from tl_rome.sites import HookedModel
from tl_rome.tokens import Prompt, encode_fact, encode_target, pad


@dataclass(frozen=True, eq=False)
class Rewrite:
    """The tokens of one request, or of several that ask for one value."""

    prompts: tuple[Prompt, ...]
    """One for each fact and context, fact by fact."""
    targets: tuple[Int[Tensor, " target"], ...]
    """What each of them is to be continued with."""
    essence: Int[Tensor, " pos"]
    """The essence prompt up to the subject's last token."""

    @classmethod
    def make(
        cls, model: HookedModel, facts: Fact | tuple[Fact, ...], contexts: Sequence[str], essence_template: str
    ) -> "Rewrite":
        """Tokenise a fact with a target, or several of one subject.

        Raises:
            SubjectError: If the subject does not lie on whole tokens in some context.
            InputError: If a prompt is longer than the context, there are no contexts, or a fact has no target.
        """
        facts = (facts,) if isinstance(facts, Fact) else facts
        if not contexts:
            raise InputError("no contexts; give prefixes, '' first, which is the prompt without one")
        prompts: list[Prompt] = []
        targets: list[Tensor] = []
        for fact in facts:
            if fact.target is None:
                raise InputError(f"{fact.prompt!r} has no target; give a fact with the one to write")
            prompts += [encode_fact(model, fact, prefix) for prefix in contexts]
            target = encode_target(model, fact.target, prompts[-len(contexts)].text, fact.joiner)
            targets += [target] * len(contexts)
        essence = encode_fact(model, Fact(essence_template, facts[0].subject))
        return cls(tuple(prompts), tuple(targets), essence.tokens[: essence.subject.end])

    @cached_property
    def rows(self) -> list[tuple[Int[Tensor, " pos"], int]]:
        """Each row's tokens and the position of the subject's last one; the essence row, if there is one, is last."""
        pairs = zip(self.prompts, self.targets, strict=True)
        rows = [(torch.cat([prompt.tokens, target[:-1]]), prompt.subject.last) for prompt, target in pairs]
        return rows if self.essence_row < len(rows) else [*rows, (self.essence, len(self.essence) - 1)]

    @cached_property
    def essence_row(self) -> int:
        """The row to read the essence from."""
        same = [torch.equal(prompt.tokens[: prompt.subject.end], self.essence) for prompt in self.prompts]
        return same.index(True) if any(same) else len(same)

    @property
    def positions(self) -> int:
        """Positions from the subject's last token on that the longest row has."""
        return max(len(tokens) - last for tokens, last in self.rows)


@dataclass(frozen=True, eq=False)
class Layout:
    """Which request each row belongs to, and which positions are scored, counted from the subject's last token."""

    owner: Int[Tensor, " rows"]
    """Request of each row."""
    first: Int[Tensor, " requests"]
    """Row of each request's prompt without a prefix."""
    prompt: Int[Tensor, " prompts"]
    """Rows that are prompts with a target."""
    essence: Int[Tensor, " requests"]
    """Row of each request whose first position shows the essence."""
    row: Int[Tensor, " scored"]
    position: Int[Tensor, " scored"]
    token: Int[Tensor, " scored"]
    """A target token is predicted at `position` of `row`."""
    share: Float[Tensor, " scored"]
    """One over the number of the target's tokens."""

    def keep(self, requests: Int[Tensor, " kept"]) -> tuple["Layout", Int[Tensor, " kept_rows"]]:
        """The layout of some of the requests alone, in ascending order, and the rows that remain."""
        new_request = torch.full_like(self.first, -1)
        new_request[requests] = torch.arange(len(requests), device=requests.device)
        rows = (new_request[self.owner] >= 0).nonzero()[:, 0]
        new_row = torch.full_like(self.owner, -1)
        new_row[rows] = torch.arange(len(rows), device=rows.device)
        prompts, scored = new_row[self.prompt], new_row[self.row] >= 0
        return replace(
            self,
            owner=new_request[self.owner[rows]],
            first=new_row[self.first[requests]],
            prompt=prompts[prompts >= 0],
            essence=new_row[self.essence[requests]],
            row=new_row[self.row[scored]],
            position=self.position[scored],
            token=self.token[scored],
            share=self.share[scored],
        ), rows


@dataclass(frozen=True, eq=False)
class RewriteBatch:
    """Rewrites ready to be run together."""

    tokens: Int[Tensor, "rows pos"]
    """Padded on both sides, with every subject's last token at position `start`."""
    padding: Int[Tensor, " rows"]
    """Padding tokens on the left."""
    lengths: Int[Tensor, " rows"]
    """Of the rows with that padding, but without the padding on the right."""
    start: int
    layout: Layout

    @classmethod
    def make(cls, model: HookedModel, rewrites: Sequence[Rewrite]) -> "RewriteBatch":
        """Lay out the rows of some rewrites, request by request."""
        rows = [row for rewrite in rewrites for row in rewrite.rows]
        last = torch.tensor([position for _, position in rows])
        start = int(last.max())
        missing = start - last
        aligned = [torch.nn.functional.pad(text, (int(n), 0)) for (text, _), n in zip(rows, missing, strict=True)]
        counts = torch.tensor([len(rewrite.rows) for rewrite in rewrites])
        first = counts.cumsum(0) - counts
        scored = [
            (int(offset) + i, len(prompt.tokens) - 1 - prompt.subject.last + place, int(token), 1 / len(target))
            for offset, rewrite in zip(first, rewrites, strict=True)
            for i, (prompt, target) in enumerate(zip(rewrite.prompts, rewrite.targets, strict=True))
            for place, token in enumerate(target)
        ]
        row, position, token, share = (torch.tensor(column) for column in zip(*scored, strict=True))
        layout = Layout(
            owner=torch.arange(len(rewrites)).repeat_interleave(counts),
            first=first,
            prompt=row.unique(),
            essence=first + torch.tensor([rewrite.essence_row for rewrite in rewrites]),
            row=row,
            position=position,
            token=token,
            share=share,
        )
        device = device_of(model)
        moved = {name: value.to(device) for name, value in vars(layout).items()}
        batch = pad(aligned)
        return cls(batch.tokens.to(device), missing.to(device), batch.lengths.to(device), start, Layout(**moved))
