"""One real fact from trace to edit: where a model keeps it, rewritten in one call, and what it says before and after.

The prompts were chosen by what the unedited SmolLM2-135M says, before any edit was tried: it answers every paraphrase
with Paris, and every landmark with the right city. Paraphrases test whether the edit generalises; landmarks, three of
them in Paris and three of them towers, whether it spreads to other subjects.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Literal

import torch

from tl_rome.cli.output import check_folder, save_figure
from tl_rome.editors import Edit, KeyCovariance, rome
from tl_rome.facts import Fact
from tl_rome.generation import continue_texts
from tl_rome.grid import in_markdown
from tl_rome.patching import TraceResult, causal_trace
from tl_rome.patching.averaging.trace_facts import COMPONENTS
from tl_rome.running.forward import final_logits, last_resid, read
from tl_rome.scoring import score_targets
from tl_rome.sites import HookedModel
from tl_rome.storage.writing import write_whole
from tl_rome.tokens import encode, pad

FACT = Fact("{} is located in the city of", "The Eiffel Tower", "Paris")
NEW = "Rome"
PARAPHRASES = (
    "The Eiffel Tower stands in the city of",
    "The Eiffel Tower was built in the city of",
    "The Eiffel Tower is a famous landmark in",
    "The Eiffel Tower is the pride of the people of",
    "You will find the Eiffel Tower in the city of",
    "If you want to see the Eiffel Tower, travel to",
    "From the Eiffel Tower you have a view over the whole city of",
    "Tourists who come to see the Eiffel Tower stay in hotels in",
    "We took a photo of the Eiffel Tower on our trip to",
    "Where is the Eiffel Tower? It is in",
)
LANDMARKS = (
    "The Louvre",
    "Notre-Dame",
    "The Champs-Élysées",
    "The Tokyo Tower",
    "The Willis Tower",
    "The Leaning Tower of Pisa",
    "The Colosseum",
    "The Brandenburg Gate",
    "The Statue of Liberty",
    "The Kremlin",
)
OPEN_PROMPT = "After a day at the Eiffel Tower, we had dinner"

Group = Literal["edited", "paraphrase", "landmark"]
GROUPS: dict[Group, str] = {"edited": "edited prompt", "paraphrase": "paraphrases", "landmark": "other landmarks"}
"""What the demo asks about, with titles for tables."""
_ANSWER_TOKENS = 6
_OPEN_TOKENS = 20


@dataclass(frozen=True)
class Answer:
    """What a model says after a prompt."""

    text: str
    """Its greedy first answer, see `first_answer`."""
    probs: tuple[float, ...]
    """Probability of each target that was asked about."""


@dataclass(frozen=True)
class Row:
    """One prompt of the demo, before and after the edit; probabilities are of the true and of the new object."""

    group: Group
    """The edited prompt itself, a paraphrase, or another landmark."""
    prompt: str
    """What the model was asked to continue."""
    before: Answer
    """What the unedited model says."""
    after: Answer
    """What the edited model says."""

    @property
    def passed(self) -> bool:
        """Whether a landmark kept its first answer; else, whether the new object is now likelier than the true one."""
        if self.group == "landmark":
            return self.after.text == self.before.text
        prob_true, prob_new = self.after.probs
        return prob_new > prob_true


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demo found."""

    traces: dict[str, TraceResult]
    """By component."""
    edit: Edit
    """The edit; not applied."""
    rows: tuple[Row, ...]
    """The edited prompt, paraphrases and landmarks."""
    continuation: tuple[str, str]
    """`OPEN_PROMPT` and what follows, before and after."""
    files: tuple[Path, ...] = ()
    """What was written."""

    def count(self, group: Group) -> tuple[int, int]:
        """How many rows of a group passed, and how many there are."""
        passed = [row.passed for row in self.rows if row.group == group]
        return sum(passed), len(passed)

    @property
    def summary(self) -> str:
        """The counts in one line."""
        new, kept = self.count("paraphrase"), self.count("landmark")
        return f"paraphrases {new[0]}/{new[1]}, other landmarks kept {kept[0]}/{kept[1]}"

    @property
    def markdown(self) -> str:
        """Table, counts and continuations as Markdown."""
        lines = [f"| prompt | before | after | P({FACT.target}) | P({NEW}) | ok |", "|---|---|---|---|---|---|"]
        for group, title in GROUPS.items():
            lines.append("| **{}** | | | | | **{}/{}** |".format(title, *self.count(group)))
            for row in self.rows:
                if row.group == group:
                    chances = zip(row.before.probs, row.after.probs, strict=True)
                    texts = (in_markdown(text, prose=True) for text in (row.prompt, row.before.text, row.after.text))
                    cells = (*texts, *(f"{a:.3f} → {b:.3f}" for a, b in chances))
                    lines.append(f"| {' | '.join(cells)} | {'yes' if row.passed else 'no'} |")
        before, after = (in_markdown(" ".join(text.split()), prose=True) for text in self.continuation)
        return "\n".join([*lines, "", f"- before: {before}", f"- after: {after}", ""])


def run_demo(
    model: HookedModel,
    out: str | Path,
    *,
    covariance: KeyCovariance | None = None,
    seed: int = 0,
    progress: bool = True,
) -> DemoResult:
    """Trace the Eiffel Tower's city, make it Rome, ask before and after, and write figures, edit and table to a folder.

    Args:
        model: Left as found.
        out: Folder to write to once everything is computed; made if needed, files of the same names are replaced.
        covariance: Key statistics for the edit; see `Rome.prepare` for the default.
        seed: Seed of the tracing noise and of what the edit samples.
        progress: Whether to show progress bars.

    Raises:
        StorageError: If the folder cannot be written.
        TLRomeError: See `causal_trace` and `rome`.
    """
    folder = check_folder(Path(out))
    assert FACT.target is not None
    targets = (FACT.target, NEW)
    asked: list[tuple[Group, str]] = [("edited", FACT.prompt)]
    asked.extend(("paraphrase", prompt) for prompt in PARAPHRASES)
    asked.extend(("landmark", Fact(FACT.template, landmark).prompt) for landmark in LANDMARKS)
    prompts = [prompt for _, prompt in asked]
    before, said = ask(model, prompts, targets), _continue(model, OPEN_PROMPT)
    traces = {}
    for component in COMPONENTS:
        rng = torch.Generator().manual_seed(seed)
        traces[component] = causal_trace(model, FACT, component, generator=rng, progress=progress)
    options = {"covariance": covariance, "seed": seed, "progress": progress}
    edit = rome(model, FACT.rewrite(NEW), **options)
    with edit.applied(model):
        after, says = ask(model, prompts, targets), _continue(model, OPEN_PROMPT)
    rows = tuple(Row(*prompt, *pair) for prompt, *pair in zip(asked, before, after, strict=True))
    result = DemoResult(traces, edit, rows, (OPEN_PROMPT + said, OPEN_PROMPT + says))
    return replace(result, files=_write(result, folder))


def _write(result: DemoResult, folder: Path) -> tuple[Path, ...]:
    figures = [save_figure([trace], folder / f"trace_{name}.png") for name, trace in result.traces.items()]
    figures.append(save_figure(list(result.traces.values()), folder / "trace.png"))
    edit = result.edit.save(folder / "eiffel-tower-rome.safetensors")
    return (*figures, edit, write_whole(folder / "demo.md", result.markdown.encode()))


def ask(model: HookedModel, prompts: Sequence[str], targets: Sequence[str]) -> list[Answer]:
    """What the model says first after each prompt, and how likely it finds each target there.

    Args:
        model: Left as found.
        prompts: Texts to continue.
        targets: Objects to score after every prompt, without a leading space.

    Raises:
        InputError: If a prompt or a target cannot be tokenised.
    """
    pairs = [(prompt, target) for prompt in prompts for target in targets]
    probs = score_targets(model, [prompt for prompt, _ in pairs], [target for _, target in pairs]).prob
    said = _say(model, prompts, _ANSWER_TOKENS)
    each = probs.view(len(prompts), len(targets)).tolist()
    return [Answer(first_answer(text), tuple(row)) for text, row in zip(said, each, strict=True)]


@torch.no_grad()
def _say(model: HookedModel, prompts: Sequence[str], new_tokens: int) -> list[str]:
    """Greedy continuations of a few tokens: one padded batch for all prompts, faster here than a cache per length."""
    starts = texts = [encode(model, prompt) for prompt in prompts]
    last = last_resid(model)
    for _ in range(min(new_tokens, model.cfg.n_ctx - max(map(len, starts)))):
        batch = pad(texts)
        resid = read(model, batch.tokens, [last])[last]
        chosen = final_logits(model, resid[torch.arange(len(texts)), batch.last]).argmax(-1).cpu()
        texts = [torch.cat([text, token[None]]) for text, token in zip(texts, chosen, strict=True)]
    return [model.tokenizer.decode(text[len(start) :]) for text, start in zip(texts, starts, strict=True)]


def first_answer(continuation: str) -> str:
    """The answer that a continuation begins with: its capitalised words, else its words up to the first punctuation."""
    words = re.split(r"[.,;:!?()\"<\n]", continuation.strip(), maxsplit=1)[0].split()
    return " ".join(list(takewhile(lambda word: word[0].isupper(), words)) or words)


def _continue(model: HookedModel, prompt: str) -> str:
    """The greedy continuation of a prompt, up to the end of the text."""
    text = continue_texts(model, [prompt], _OPEN_TOKENS, generator=torch.Generator(), top_k=1)[0]
    return text.split(model.tokenizer.eos_token or "\0")[0]
