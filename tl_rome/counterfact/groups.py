"""Named groups of prompts that have answers of their own, beside COUNTERFACT's, which are all scored with o* and o^c.

What else should be so once a fact was written: the reversed fact, aliases of the subject, what follows in another hop,
other facts of the same subject.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tl_rome.errors import RecordError
from tl_rome.storage.parts import read_as
from tl_rome.storage.text import brief


@dataclass(frozen=True)
class PromptAnswer:
    """A prompt and what may follow it.

    Raises:
        RecordError: If the prompt is blank, there is no answer, or one is empty or has white space around it.
    """

    prompt: str
    """Text to continue, such as "Rome is home to the"."""
    answers: tuple[str, ...]
    """Names that are right, each without a leading space: the usual one, then its aliases."""

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise RecordError(f"the prompt of an answer is {brief(self.prompt)}; write a prompt or leave it out")
        if not self.answers:
            raise RecordError(f"the prompt {brief(self.prompt)} has no answer; give at least one")
        if wrong := [answer for answer in self.answers if not answer or answer != answer.strip()]:
            raise RecordError(
                f"{brief(wrong[0])}, an answer to {brief(self.prompt)}, is empty or has white space around it; cut it"
            )


NamedGroups = Mapping[str, tuple[PromptAnswer, ...]]
"""Prompts by the name of their group, which names its columns."""


def read_groups(data: object) -> NamedGroups:
    """Groups of a JSON object; null gives none.

    Raises:
        RecordError: If it is of another form.
    """
    try:
        return {} if data is None else read_as(dict[str, tuple[PromptAnswer, ...]], data, "groups")
    except ValueError as error:
        raise RecordError(f"{error}; each group is a list of objects with prompt and answers") from error


def write_groups(groups: NamedGroups) -> dict[str, Any]:
    """The form that `read_groups` reads."""
    return {
        name: [{"prompt": each.prompt, "answers": list(each.answers)} for each in group]
        for name, group in groups.items()
    }
