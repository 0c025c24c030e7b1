"""Arguments and options that several commands share, each written once, and the parsers of lists."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer


class Integers(tuple[int, ...]):
    """Integers separated by commas, sorted, without repeats."""


class Floats(tuple[float, ...]):
    """Numbers separated by commas, sorted, without repeats."""


Number = TypeVar("Number", int, float)
_LONGEST = 1000
"""Numbers in a range; more are a slip of the keyboard."""


def integers(text: str | Integers) -> Integers:
    """Parse integers and ranges of them, such as 1,3-7; a default is parsed already."""
    if not isinstance(text, str):
        return text
    spelled = re.sub(r"(\d+)-(\d+)", lambda found: ",".join(map(str, _range(*map(int, found.groups())))), text)
    return Integers(_numbers(spelled, int))


def floats(text: str | Floats) -> Floats:
    """Parse numbers; a default is parsed already."""
    return Floats(_numbers(text, float)) if isinstance(text, str) else text


def _range(first: int, last: int) -> range:
    """Both included."""
    if not 0 <= last - first < _LONGEST:
        raise typer.BadParameter(f"{first}-{last} is not a range such as 3-7")
    return range(first, last + 1)


def _numbers(text: str, read: Callable[[str], Number]) -> list[Number]:
    try:
        return sorted({read(number) for number in text.split(",")})
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,2,3") from None


def _seed(number: int) -> int:
    """Refuse what no generator takes."""
    if not -(2**63) <= number < 2**64:
        raise typer.BadParameter(f"{number} has more than 64 bits")
    return number


TEMPLATE_HELP = "Prompt with one {} for the subject, ending before the object."
SUBJECT_HELP = "The entity, as it appears in the prompt."
TemplateArgument = Annotated[str, typer.Argument(help=TEMPLATE_HELP)]
SubjectArgument = Annotated[str, typer.Argument(help=SUBJECT_HELP)]
RecordsOption = Annotated[
    str, typer.Option("--records", help="sample, a JSON or JSONL file, or the name of a `datasets` data set.")
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Take this many records from the start.")]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, help="Records or prompts at once; more take more memory.", show_default="what fits"
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", callback=_seed, help="Seed of all random draws.")]
RetryOption = Annotated[
    bool, typer.Option("--retry-failed", help="Try records again that failed in an earlier run, as without network.")
]
ResultsOption = Annotated[Path, typer.Option("--out", help="Folder of results; run again with it to go on.")]
"""The `--out` of a command that resumes."""
