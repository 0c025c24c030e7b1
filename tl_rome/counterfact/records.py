"""One COUNTERFACT record: a requested rewrite with the prompts that test it (appendices D and H).

Field names are the data set's own. The paper's sample calls the subject `entity`, the released data `subject`; both
are read. A neighbour shares the *true* object o^c (appendix D); the draft's eq. 9 writes o* there, against its own
sample.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tl_rome.counterfact.groups import NamedGroups, PromptAnswer, read_groups, write_groups
from tl_rome.errors import InputError, RecordError
from tl_rome.fact_files import Target
from tl_rome.facts import EditRequest
from tl_rome.storage.text import brief, has_half_character
from tl_rome.tokens import joiner_after

_NOUNS = {int: "a whole number", str: "a text", list: "a list", Mapping: "an object"}

PromptGroup = Literal["rewrite", "paraphrase", "neighborhood", "neighborhood_plus", "attribute"]
"""Prompts that are scored alike; `neighborhood_plus` are those of CounterFact+."""


@dataclass(frozen=True)
class RequestedRewrite:
    """The tuple (s, r, o*) that should replace (s, r, o^c)."""

    prompt: str
    """Template with one `{}` in the subject's place."""
    relation_id: str
    """WikiData property such as P103."""
    target_new: Target
    """The object o* to write."""
    target_true: Target
    """The object o^c of the world."""
    subject: str
    """Name of the entity s."""


@dataclass(frozen=True)
class CounterFactRecord:
    """A rewrite and its tests; lists of prompts may be empty, and then measure nothing.

    Raises:
        RecordError: If case_id is no whole number, a target is empty or has white space around it, both targets are the
            same, the template does not have exactly one `{}`, a prompt is blank, a paraphrase or generation prompt does
            not name the subject, the joiner is not one of those below, a group has a blank name or no prompts, or a
            text holds half a character (a lone surrogate).
    """

    case_id: int
    """Number of the record, unique in its data set."""
    requested_rewrite: RequestedRewrite
    """What should change."""
    paraphrase_prompts: tuple[str, ...]
    """Other ways to ask for the same fact: generalisation (section 3.3)."""
    neighborhood_prompts: tuple[str, ...]
    """The same relation of other subjects, whose object is o^c and should stay: specificity (section 3.3)."""
    attribute_prompts: tuple[str, ...] = ()
    """The same relation of other subjects, whose object is o*."""
    generation_prompts: tuple[str, ...] = ()
    """Beginnings that make a model reason from the fact: consistency and fluency."""
    pararel_idx: int | None = None
    """Number of the fact in its source."""
    joiner: str | None = " "
    """What stands between a prompt and an object: a space, as in the released code; "" for languages without spaces;
    None to let each prompt's end decide. Files need it only where it is not a space."""
    groups: NamedGroups = field(default_factory=dict, hash=False)
    """More prompts, with answers of their own; files need it only where there are any."""

    def __post_init__(self) -> None:
        rewrite = self.requested_rewrite
        if not isinstance(self.case_id, int) or isinstance(self.case_id, bool):  # results are filed by it
            raise RecordError(f"record {brief(self.case_id)}: case_id is no whole number; give an int of Python's")
        for place, text in _texts(vars(self)):
            if has_half_character(text):
                self._refuse(place, f"{brief(text)} holds half a character (a lone surrogate); write the whole one")
        if self.joiner not in (None, "", " "):
            self._refuse("joiner", f"is {brief(self.joiner)}; use ' ', '', or null to let each prompt's end decide")
        try:
            _ = self.request
        except InputError as error:
            raise RecordError(f"record {self.case_id}: requested_rewrite: {error}") from error
        for name, target in (("target_new", rewrite.target_new), ("target_true", rewrite.target_true)):
            if target.str != target.str.strip():
                self._refuse(f"requested_rewrite.{name}", f"{brief(target.str)} has white space around it; cut it")
        if rewrite.target_new.str == rewrite.target_true.str:
            self._refuse("requested_rewrite.target_new", f"{brief(rewrite.target_new.str)} is target_true; change one")
        for name in ("paraphrase_prompts", "neighborhood_prompts", "attribute_prompts", "generation_prompts"):
            for index, prompt in enumerate(getattr(self, name)):
                if not prompt.strip():
                    self._refuse(f"{name}[{index}]", "is blank; write a prompt or leave it out")
                if name in ("paraphrase_prompts", "generation_prompts") and rewrite.subject not in prompt:
                    named = f"the subject {brief(rewrite.subject)} (matching is case-sensitive)"
                    self._refuse(f"{name}[{index}]", f"{brief(prompt)} does not contain {named}")
        if unfit := [name for name, group in self.groups.items() if not name.strip() or not group]:
            self._refuse("groups", f"{brief(unfit[0])} has a blank name or no prompts; leave it out")

    def _refuse(self, place: str, problem: str) -> None:
        raise RecordError(f"record {self.case_id}: {place}: {problem}")

    @property
    def request(self) -> EditRequest:
        """What an editor is asked to do."""
        rewrite = self.requested_rewrite
        return EditRequest(
            rewrite.prompt, rewrite.subject, rewrite.target_new.str, rewrite.target_true.str, self.joiner
        )

    def prompts(self, group: PromptGroup) -> tuple[str, ...]:
        """Prompts of one group, to be scored with both targets.

        Those of CounterFact+ (Hoelscher-Obermaier et al. 2023) state the rewrite in front of each neighbourhood prompt.
        """
        rewrite = self.request.fact.prompt
        if group == "rewrite":
            return (rewrite,)
        if group == "neighborhood_plus":
            joiner = joiner_after(rewrite) if self.joiner is None else self.joiner
            stated = f"{rewrite}{joiner}{self.requested_rewrite.target_new.str}. "
            return tuple(stated + prompt for prompt in self.neighborhood_prompts)
        return getattr(self, f"{group}_prompts")

    def to_dict(self) -> dict[str, Any]:
        """JSON form of the released data; identifiers that are not known are left out."""
        plain = {
            **asdict(self),
            **{name: list(value) for name, value in vars(self).items() if isinstance(value, tuple)},
        }
        for name in ("target_new", "target_true"):
            plain["requested_rewrite"][name] = _known(plain["requested_rewrite"][name])
        plain["groups"] = write_groups(self.groups) or None
        if self.joiner == " ":
            del plain["joiner"]  # as in the released data
            return _known(plain)
        return {**_known(plain), "joiner": self.joiner}

    @classmethod
    def from_dict(cls, data: object, where: str = "") -> "CounterFactRecord":
        """Read the JSON form, with `subject` or `entity`.

        Args:
            data: One record.
            where: What to call a record that has no case_id, such as "number 3 of facts.json".

        Raises:
            RecordError: If a field is missing or of the wrong type, or see `CounterFactRecord`.
        """
        if not isinstance(data, Mapping):
            problem = f"is a {type(data).__name__}, not an object; see appendix H of the paper"
            raise RecordError(f"{where or 'a record'} {problem}")
        reader = _Reader(f"record {brief(data.get('case_id', where), str)}")
        rewrite = reader.read(data, "requested_rewrite", Mapping)
        inside = "requested_rewrite."
        joiner = data.get("joiner", " ")
        try:
            groups = read_groups(data.get("groups"))
        except RecordError as error:
            raise RecordError(f"{reader.record}: {error}") from error
        named = "entity" if "entity" in rewrite and "subject" not in rewrite else "subject"
        return cls(
            case_id=reader.read(data, "case_id", int),
            requested_rewrite=RequestedRewrite(
                prompt=reader.read(rewrite, "prompt", str, inside),
                relation_id=reader.read(rewrite, "relation_id", str, inside),
                target_new=reader.target(rewrite, "target_new"),
                target_true=reader.target(rewrite, "target_true"),
                subject=reader.read(rewrite, named, str, inside),
            ),
            paraphrase_prompts=reader.prompts(data, "paraphrase_prompts"),
            neighborhood_prompts=reader.prompts(data, "neighborhood_prompts"),
            attribute_prompts=reader.prompts(data, "attribute_prompts", optional=True),
            generation_prompts=reader.prompts(data, "generation_prompts"),
            pararel_idx=reader.read(data, "pararel_idx", int) if data.get("pararel_idx") is not None else None,
            joiner=None if joiner is None else reader.read({"joiner": joiner}, "joiner", str),
            groups=groups,
        )


@dataclass(frozen=True)
class _Reader:
    """Takes typed fields out of a JSON object, and names record and field where that fails."""

    record: str
    """What to call the record."""

    def read(self, data: Mapping[str, Any], name: str, expected: type, inside: str = "") -> Any:
        if data.get(name) is None:
            raise RecordError(f"{self.record}: {inside}{name} is missing")
        if not isinstance(data[name], expected) or isinstance(data[name], bool):
            raise RecordError(f"{self.record}: {inside}{name} is {brief(data[name])}; {_NOUNS[expected]} is needed")
        return data[name]

    def target(self, rewrite: Mapping[str, Any], name: str) -> Target:
        target = self.read(rewrite, name, Mapping, "requested_rewrite.")
        inside = f"requested_rewrite.{name}."
        known = self.read(target, "id", str, inside) if target.get("id") is not None else None
        return Target(self.read(target, "str", str, inside), known)

    def prompts(self, data: Mapping[str, Any], name: str, *, optional: bool = False) -> tuple[str, ...]:
        if optional and data.get(name) is None:
            return ()
        texts: Sequence[Any] = self.read(data, name, list)
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise RecordError(f"{self.record}: {name}[{index}] is {brief(text)}; a text is needed")
        return tuple(texts)


def _known(data: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if value is not None}


def _texts(data: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a record, with the field that holds it."""
    if isinstance(data, str):
        yield where, data
    elif isinstance(data, Mapping):
        for name, part in data.items():
            yield from _texts(part, f"{where}.{name}".lstrip("."))
    elif isinstance(data, list | tuple):
        for index, part in enumerate(data):
            yield from _texts(part, f"{where}[{index}]")
    elif isinstance(data, RequestedRewrite | Target | PromptAnswer):
        yield from _texts(vars(data), where)
