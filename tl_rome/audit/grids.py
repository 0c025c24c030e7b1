"""What was found, as tables for people."""

from collections.abc import Mapping, Sequence

from tl_rome.audit.answers import Answers, Said
from tl_rome.audit.change import WeightChange
from tl_rome.audit.finding import Finding
from tl_rome.grid import Grid


def change_grid(changes: Sequence[WeightChange], caption: str) -> Grid:
    """Weights that differ."""
    rows = [
        (change.name, f"{change.relative_size:.2g}", change.kind, f"{change.energy:.1%}" if change.rank > 0 else "-")
        for change in changes
    ]
    return Grid(f"{caption} Size: ||D|| / ||W||.", ("weight", "size", "D is of", "first direction"), tuple(rows))


def finding_grid(findings: Sequence[Finding], objects: Mapping[str, Sequence[str]] | None = None) -> Grid:
    """What changes of W_outs write, and for whom."""
    rows = []
    for finding in findings:
        first = finding.directions[0]
        about = finding.subjects or tuple(f"{subject}?" for subject, _ in finding.shifts[:1])
        said = [f"{subject}: {_tokens(objects[subject])}" for subject in about if objects and subject in objects]
        score = "-" if finding.score is None else f"{finding.score:.2f}"
        lens = f"{_tokens(first.raised)} / {_tokens(first.lowered)}"
        rows.append((str(finding.place), str(finding.rank), score, ", ".join(about), "; ".join(said) or "-", lens))
    caption = (
        "Subjects that a change moves most, with ? where none stands out; tokens that it raises after them; both ends "
        "of its first direction by the logit lens."
    )
    header = ("matrix", "rank", "score", "subjects", "likely objects", "logit lens")
    return Grid(caption, header, tuple(rows), prose=True)


def answer_grid(answers: Sequence[Answers], titles: tuple[str, str]) -> Grid:
    """Prompts in two models."""
    rows = [
        (prompt, title, *_said(said))
        for answer in answers
        for prompt, title, said in zip((answer.prompt, ""), titles, (answer.before, answer.after), strict=True)
    ]
    header = ("prompt", "model", "next token", "continuation")
    return Grid("Likeliest next tokens with probabilities, and greedy text.", header, tuple(rows), prose=True)


def _said(said: Said) -> tuple[str, str]:
    return ", ".join(f"{token!r} {prob:.2f}" for token, prob in said.tokens[:3]), " ".join(said.text.split())


def _tokens(tokens: Sequence[str]) -> str:
    return " ".join(repr(token) for token in tokens[:3])
