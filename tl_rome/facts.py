"""What a person states about the world: a fact, and a request to change one.

A fact is the tuple t = (s, r, o) of section 2: subject, relation, object. The relation is written as a template
with one `{}` where the subject goes, so that the subject's place in the prompt is known and never searched for. Other
braces are ordinary text.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tl_rome.arguments import guarded
from tl_rome.errors import InputError, SubjectError
from tl_rome.storage.text import has_half_character

_SLOT = "{}"


def _check_template(template: str) -> None:
    _check_whole("template", template)
    count = template.count(_SLOT)
    if count != 1:
        raise InputError(
            f"template {template!r} contains '{{}}' {count} times; write it exactly once, where the subject goes, "
            "as in '{} is located in the city of'"
        )


def _check_text(name: str, text: str) -> None:
    if not text.strip():
        error = SubjectError if name == "subject" else InputError
        raise error(f"{name} is empty ({text!r}); give at least one visible character")
    _check_whole(name, text)


def _check_whole(name: str, text: str) -> None:
    if has_half_character(text):
        raise InputError(f"{name} {text!r} holds half a character (a lone surrogate); write the whole one")


@guarded
@dataclass(frozen=True)
class Fact:
    """A statement the model may know.

    Args:
        template: Prompt with one `{}` in the subject's place, ending just before the object.
        subject: Name of the entity, as it should appear in the prompt.
        target: The object o, without a leading space; None where only the model's own answer matters.
        joiner: What stands between prompt and object, `" "` or `""`; by default the prompt's end decides, see
            `tl_rome.tokens.joiner_after`.

    Raises:
        SubjectError: If the subject is empty.
        InputError: If the template does not have exactly one `{}`, the target is empty, the joiner is neither, or a
            text holds half a character (a lone surrogate).
    """

    template: str
    subject: str
    target: str | None = None
    joiner: str | None = None

    def __post_init__(self) -> None:
        if self.joiner not in (None, "", " "):
            raise InputError(f"joiner is {self.joiner!r}; use ' ', '', or None to let the prompt's end decide")
        _check_template(self.template)
        _check_text("subject", self.subject)
        if self.target is not None:
            _check_text("target", self.target)

    @classmethod
    def from_prompt(cls, prompt: str, subject: str, target: str | None = None) -> "Fact":
        """Make a fact from a whole prompt; where the subject occurs several times, the first one is meant.

        The first occurrence counts even inside another word; write the template yourself to mean another one.

        Raises:
            SubjectError: If the subject is empty or not in the prompt (matching is case-sensitive).
            InputError: If the prompt has a `{}` of its own, or the target is empty.
        """
        _check_text("subject", subject)
        if subject not in prompt:
            raise SubjectError(f"subject {subject!r} does not occur in {prompt!r} (matching is case-sensitive)")
        return cls(prompt.replace(subject, _SLOT, 1), subject, target)

    def rewrite(self, target_new: str) -> "EditRequest":
        """The request to make the model say another object here; the fact's own is what it says now, for reports.

        Args:
            target_new: What the model should say, without a leading space.

        Raises:
            InputError: If it is empty.
        """
        return EditRequest(self.template, self.subject, target_new, self.target, self.joiner)

    @property
    def prompt(self) -> str:
        """The template with the subject filled in."""
        return self.template.replace(_SLOT, self.subject)

    @property
    def subject_chars(self) -> tuple[int, int]:
        """Half-open range of the subject's characters in `prompt`."""
        start = self.template.index(_SLOT)
        return start, start + len(self.subject)


def check_fact(fact: object) -> Fact:
    """Return what is a fact.

    Raises:
        InputError: If it is something else, such as a prompt.
    """
    if isinstance(fact, Fact):
        return fact
    raise InputError(
        f"{fact!r} is a {type(fact).__name__}, not a Fact; make one with "
        "tl_rome.Fact.from_prompt(prompt, subject, target)"
    )


def check_requests(requests: Iterable[object]) -> None:
    """Refuse what is not a request, such as a fact.

    Raises:
        InputError: If one is something else.
    """
    for request in requests:
        if not isinstance(request, EditRequest):
            remedy = "make one with fact.rewrite(target_new)" if isinstance(request, Fact) else "give EditRequests"
            raise InputError(f"{request!r} is a {type(request).__name__}, not an EditRequest; {remedy}")


@guarded
@dataclass(frozen=True)
class EditRequest:
    """A requested rewrite t* = (s, r, o*) (section 3).

    Args:
        template: Prompt with one `{}` in the subject's place.
        subject: The entity to rewrite.
        target_new: The object o* that the model should say, without a leading space.
        target_true: The object o^c it says now; for reports, and for `KnowledgeNeurons`, which are those of it.
        joiner: What stands between prompt and object, see `Fact`.

    Raises:
        SubjectError: If the subject is empty.
        InputError: If the template does not have exactly one `{}`, a target is empty, the joiner is neither, or a
            text holds half a character (a lone surrogate).
    """

    template: str
    subject: str
    target_new: str
    target_true: str | None = None
    joiner: str | None = None

    def __post_init__(self) -> None:
        Fact(self.template, self.subject, joiner=self.joiner)
        _check_text("target_new", self.target_new)
        if self.target_true is not None:
            _check_text("target_true", self.target_true)

    @property
    def fact(self) -> Fact:
        """The statement that should become true: the same prompt and subject, with the new object."""
        return Fact(self.template, self.subject, self.target_new, self.joiner)
