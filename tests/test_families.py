"""Each family of models in each class does what docs/families.md says; the truth is computed by plain transformers.

The table there is written by these tests: `make families` runs them on both legs with TL_ROME_WRITE_FAMILIES=1.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support import plain
from support.edits import CONTEXTS, LAYER, REQUEST, covariance
from support.families import FAMILIES, KINDS, transformer_lens_major
from support.more_families import MORE_CONFIGS

from tl_rome import Fact, Rome, causal_trace, export_model, score_targets
from tl_rome.errors import UnsupportedModelError
from tl_rome.patching import AddedNoise, TraceConfig
from tl_rome.patching.trace import trace_together
from tl_rome.running.forward import read, run
from tl_rome.running.hooks import hooked
from tl_rome.running.matrices import b_out, key_hook, value_hook, w_out
from tl_rome.sites import EMBED, Site
from tl_rome.tokens import encode_fact, encode_target

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
GENERATION = "3.9" if transformer_lens_major() < 4 else "4"
COLUMNS = {"hooked": f"HookedTransformer {GENERATION}", "bridge": f"TransformerBridge {GENERATION}"}
WRITING = bool(os.environ.get("TL_ROME_WRITE_FAMILIES"))
FACT = Fact("{} is located in the city of", "The Eiffel Tower", "Paris")
OTHER = Fact("In {} is", "Rome", "Italy")
NOISE = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(3))


class Wrong(AssertionError):
    """A number that differs from the truth."""


def close(found, expected, tolerance=1e-4):
    error = float((torch.as_tensor(found).double() - torch.as_tensor(expected).double()).abs().max())
    scale = float(torch.as_tensor(expected).double().abs().max())
    if not error <= tolerance * scale:
        raise Wrong(f"off by {error:.2g} of {scale:.2g}")


def noise_for(prompt):
    return NOISE[:, : len(prompt.subject)]


def trace(model, hf):
    """Incremental = cell by cell, several prompts together = alone, and four cells = plain transformers."""
    prompt = encode_fact(model, FACT)
    subject, tokens = prompt.subject, prompt.tokens.tolist()
    answer = int(encode_target(model, FACT.target, FACT.prompt)[0])
    options = {"corruption": AddedNoise(noise_for(prompt)), "generator": torch.Generator(), "progress": False}
    found = causal_trace(model, FACT, "resid_post", **options)
    close(found.scores, causal_trace(model, FACT, "resid_post", method="plain", **options).scores)
    # Granite scales its embeddings before the blocks: TransformerLens 3.9 shows them before that, 4.3 after it.
    stream = Site("resid_pre", 0).hook
    one = [(EMBED, lambda embeddings, hook: embeddings + 1)]
    moved, still = (read(model, prompt.tokens[None], [stream], hooks=hooks)[stream] for hooks in (one, []))
    noise = noise_for(prompt) * (moved - still).median().detach()
    for layer, position in ((0, subject.start), (1, subject.last), (2, len(tokens) - 1), (3, subject.last)):
        truth = plain.restored(hf, tokens, subject.slice, noise, layer, position)[:, answer].mean()
        close(found.scores[layer, position], truth)
    alone = [
        trace_together(model, [fact], "mlp_out", config(model, fact), generators=[torch.Generator()], progress=False)[0]
        for fact in (FACT, OTHER)
    ]
    if len({len(noise_for(encode_fact(model, fact))[0]) for fact in (FACT, OTHER)}) == 1:
        together = trace_together(
            model, [FACT, OTHER], "mlp_out", config(model, FACT), generators=[torch.Generator()] * 2, progress=False
        )
        for one, same in zip(alone, together, strict=True):
            close(same.scores, one.scores)


def config(model, fact):
    return TraceConfig(window=2, corruption=AddedNoise(noise_for(encode_fact(model, fact))))


def edit(model, folder, out):
    """hook_post @ W_out + b_out is W_out's output; the edit in plain transformers gives what the receipt says."""
    tokens, matrix = encode_fact(model, FACT).tokens[None], w_out(model, LAYER)
    with torch.no_grad():
        outputs = []
        with hooked(model, [value_hook(model, LAYER, outputs.append)]):
            _, cache = model.run_with_cache(tokens, names_filter=[key_hook(LAYER)])
        close(cache[key_hook(LAYER)] @ matrix + b_out(model, LAYER), outputs[0])
    made = Rome(covariance(model), CONTEXTS)(model, REQUEST)
    with made.applied(model):
        export_model(model, str(folder), out)
        scored = score_targets(model, [FACT.prompt], [REQUEST.target_new]).logprob[0]
        logits = run(model, tokens)
    edited = plain.load(out)
    prompt, new = (plain.ids(model.tokenizer, text) for text in (FACT.prompt, f" {REQUEST.target_new}"))
    before = model.tokenizer.bos_token_id if model.cfg.default_prepend_bos else None
    prompt = prompt if before is None else [before, *prompt]
    truth = plain.logprob(edited, prompt, new)
    close(scored, truth)
    close(made.receipt.prob_new[1], torch.tensor(truth).exp(), 1e-3)
    with torch.no_grad():
        close(logits, edited(tokens).logits)


def bfloat16(model, hf):
    """Logits of the two agree as far as eight bits go, and a trace and an edit come out."""
    tokens = encode_fact(model, FACT).tokens[None]
    with torch.no_grad():
        found, truth = run(model, tokens).double(), hf(tokens).logits.double()
    if not float((found - truth).norm() / truth.norm()) < 0.05:
        raise Wrong("other logits in bfloat16")
    result = causal_trace(
        model, FACT, corruption=AddedNoise(noise_for(encode_fact(model, FACT))), generator=torch.Generator(),
        progress=False,
    )  # fmt: skip
    assert bool(result.scores.isfinite().all())


@contextmanager
def counted(name: str, able: list[str], reasons: list[str]) -> Iterator[None]:
    """Add a capability where it works, or the reason where it is refused; anything else is a fault."""
    try:
        yield
    except UnsupportedModelError as error:
        reasons.append(f"{name}: {error}")
    else:
        able.append(name)


def capabilities(family: str, kind: str, tiny: Callable, family_dir: Callable, out: Path) -> tuple[str, list[str]]:
    able: list[str] = []
    reasons: list[str] = []
    folder = family_dir(family)
    try:
        model = tiny(family, kind)
    except UnsupportedModelError as error:
        return "-", [str(error)]
    with counted("trace", able, reasons):
        trace(model, plain.load(folder))
    with counted("edit", able, reasons):
        edit(model, folder, out)
    with counted("bf16", able, reasons):
        bfloat16(tiny(family, kind, torch.bfloat16), plain.load(folder, torch.bfloat16))
    return ", ".join(able), reasons


def cell(text: str, family: str, column: str) -> tuple[int, int]:
    """Where a cell of the table is in the page."""
    header = next(line for line in text.splitlines() if line.startswith("| family |"))
    place = [name.strip() for name in header.split("|")].index(column)
    row = re.search(rf"^\| {family} \|.*$", text, re.M)
    assert row is not None, f"{PAGE.name} has no row for {family}"
    bars = [match.start() for match in re.finditer(r"\|", row[0])]
    return row.start() + bars[place - 1] + 1, row.start() + bars[place]


def cases() -> list[tuple[str, str]]:
    """Families and classes of this leg: all of them when the page is written.

    Otherwise TransformerBridge 3.9 is tried with the families that HookedTransformer lacks, since the other leg has the
    bridge of all, and this leg's other tests have those of `FAMILIES`.
    """
    text = PAGE.read_text("utf-8")
    found = []
    for family in (*FAMILIES, *MORE_CONFIGS):
        hooked = "hooked" in KINDS and text[slice(*cell(text, family, COLUMNS["hooked"]))].strip() != "-"
        found += [(family, kind) for kind in KINDS if WRITING or kind == "hooked" or not hooked]
    return found


@pytest.mark.parametrize(("family", "kind"), cases())
def test_the_table_of_families(family, kind, tiny, family_dir, tmp_path):
    found, reasons = capabilities(family, kind, tiny, family_dir, tmp_path / "edited")
    text = PAGE.read_text("utf-8")
    start, end = cell(text, family, COLUMNS[kind])
    if WRITING:
        PAGE.write_text(f"{text[:start]} {found} {text[end:]}", encoding="utf-8")
    else:
        assert found == text[start:end].strip(), reasons
