"""What a trained editor learns from: a fact to be written, and another way to ask for it."""

from dataclasses import dataclass

from tl_rome.errors import InputError


@dataclass(frozen=True)
class TrainingExample:
    """One edit to be learnt: the editor sees prompt and target, and is judged by the target after the outer prompt.

    Raises:
        InputError: If a text is empty.
    """

    prompt: str
    """The inner prompt, whose continuation by `target` gives the gradient."""
    target: str
    """What the edited model should say, without a leading space."""
    outer_prompt: str
    """After which it should say that: the same prompt, a paraphrase of it, or its end."""
    subject: str = ""
    """What the example is about; empty for a passage of text. Training and test sets must not share any."""
    joiner: str | None = None
    """What stands between prompt and target, see `tl_rome.facts.Fact`."""
    record: str = ""
    """Name of the record that it was made from, kept with the trained editor."""

    def __post_init__(self) -> None:
        for name in ("prompt", "target", "outer_prompt"):
            if not getattr(self, name).strip():
                raise InputError(f"{name} of a training example is empty; give at least one visible character")
