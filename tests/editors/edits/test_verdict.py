"""Whether an edit took: by its definition on made-up outcomes, and by plain transformers on exported models."""

import logging
from dataclasses import replace

import pytest
from support import plain
from support.edits import CONTEXTS, LAYER, REQUEST, covariance, editor
from support.families import KINDS, SENTENCES
from transformers import AutoTokenizer

from tl_rome.editors import FT, P_ROME, RELEASED, Edit, FineTune, LowRankUpdate, Rome, export_model
from tl_rome.editors.edits.finish import finish_edit
from tl_rome.editors.edits.receipts.outcome import Outcome, probe_model
from tl_rome.editors.edits.receipts.verdict import NEUTRAL, Taken, first_context, verdict_warning
from tl_rome.editors.rank_one.value import optimise_value
from tl_rome.facts import EditRequest
from tl_rome.tokens import encode, encode_fact, encode_target

KIND = KINDS[0]
LAST = EditRequest("People in Paris visit {}", "The Eiffel Tower", "Rome", "Paris")
"""The subject ends the prompt, where even a model that knows nothing can be edited."""
STRONG = replace(P_ROME, clamp=None, norm_penalty=0.0, kl_factor=0.0, max_evaluations=60)
NAN = float("nan")


@pytest.mark.parametrize(
    ("probs", "ranks", "said", "again", "expected"),
    [
        ((0.6, 0.1), (1, 2), True, True, "took"),
        ((0.6, 0.1), (1, 2), True, None, "took"),
        ((0.6,), (1,), True, True, "took"),
        ((0.1, 0.1), (1, 1), True, True, "partly"),
        ((0.6, 0.1), (1, 2), True, False, "partly"),
        ((0.2, 0.1), (2, 3), False, False, "partly"),
        ((0.2, 0.1), (2, 3), False, None, "partly"),
        ((0.1, 0.2), (3, 2), False, True, "partly"),
        ((0.1, 0.2), (3, 2), False, False, "did not take"),
        ((0.4,), (2,), False, False, "did not take"),
        ((NAN, 0.2), (1, 2), True, True, "did not take"),
        ((0.2, NAN), (1, 2), True, True, "did not take"),
        ((NAN,), (1,), True, None, "did not take"),
    ],
)
def test_the_verdict_of_each_outcome(probs, ranks, said, again, expected):
    taken = Taken.of(Outcome(probs, ranks, 3.0, 3.0, said, again))
    assert taken.verdict == expected
    warning = verdict_warning(taken, "more steps", ", or fewer")
    assert (warning is None) == (expected == "took")
    if warning is not None:
        assert warning.endswith("; try more steps" + ", or fewer" * (taken.said and again is False))


def facts(folder, request, prefix):
    """The three facts, by whole forward passes of plain transformers."""
    hf, tokenizer = plain.load(folder), AutoTokenizer.from_pretrained(folder)
    prompt, after = (plain.ids(tokenizer, text) for text in (request.fact.prompt, prefix + request.fact.prompt))
    new, true = (plain.ids(tokenizer, f" {target}") for target in (request.target_new, request.target_true))
    preferred = plain.logprob(hf, prompt, new) > plain.logprob(hf, prompt, true)
    return (preferred, *(plain.greedy(hf, text, len(new)) == new for text in (prompt, after)))


CASES = {
    "took": (LAST, RELEASED, CONTEXTS, (True, True, True)),
    "only without a text before it": (LAST, STRONG, ("",), (True, True, False)),
    "only preferred": (LAST, replace(P_ROME, learning_rate=0.1), ("",), (True, False, False)),
    "not at all": (REQUEST, RELEASED, CONTEXTS, (False, False, False)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_the_facts_are_those_of_the_exported_model(fresh_tiny, family_dir, tmp_path, kind, case):
    request, config, contexts, expected = CASES[case]
    model = fresh_tiny("llama", kind)
    edit = Rome(covariance(model), contexts, config)(model, request)
    with edit.applied(model):
        folder = export_model(model, str(family_dir("llama")), tmp_path / "edited")
    receipt = Edit.load(edit.save(tmp_path / "edit.safetensors")).receipt
    assert receipt == edit.receipt
    assert (receipt.preferred, receipt.said, receipt.said_again) == expected
    assert facts(folder, request, CONTEXTS[1] if contexts == CONTEXTS else NEUTRAL) == expected
    assert receipt.verdict == ("took" if all(expected) else "partly" if any(expected) else "did not take")


def test_every_token_of_a_target_has_to_be_said(tiny, family_dir):
    """Of a target of two tokens the first one alone is not enough."""
    model, hf = tiny("llama", KIND), plain.load(family_dir("llama"))
    for text in SENTENCES:
        prompt = encode(model, text)
        first, second = plain.greedy(hf, prompt.tolist(), 2)
        pieces = [model.tokenizer.decode([token]) for token in (first, second)]
        if pieces[0].startswith(" ") and pieces[0].strip().isalpha() and pieces[1].isalpha():
            break
    else:
        pytest.fail("no sentence is continued by a word")
    request = EditRequest(f"{{}}{text[1:]}", text[0], "".join(pieces).strip())
    assert encode_target(model, request.target_new, text).tolist() == [first, second]
    assert probe_model(model, request).said
    other = replace(request, target_new=pieces[0].strip() + "zz")
    assert encode_target(model, other.target_new, text)[0] == first
    found = probe_model(model, other)
    assert found.ranks == (1,)
    assert not found.said


def test_an_edit_of_no_strength_did_not_take_and_says_so_once(tiny, caplog):
    model = tiny("llama", KIND)
    ready = editor(model)
    found = optimise_value(model, LAYER, REQUEST.fact, CONTEXTS, RELEASED)
    update, figures = ready.update_for(model, REQUEST, found)
    nothing = LowRankUpdate.rank_one(LAYER, update.left[:, 0], 0 * update.right[:, 0])
    options = {
        "before": probe_model(model, REQUEST),
        "provenance": {},
        "started": 0.0,
        "contexts": CONTEXTS,
        "remedy": "x",
    }
    with caplog.at_level(logging.WARNING):
        receipt = finish_edit(model, REQUEST, [nothing], figures, **options).receipt
    assert receipt.verdict == "did not take"
    assert receipt.rows()[0] == ("verdict", "did not take (preferred: no, said: no, said after another text: no)")
    assert [record.getMessage() for record in caplog.records if "did not take" in record.getMessage()] == [
        f"the edit {REQUEST.fact.prompt!r} -> 'Rome': {receipt.warnings[-1]}"
    ]


def test_fine_tuning_is_judged_after_the_neutral_text(fresh_tiny, family_dir, tmp_path):
    model = fresh_tiny("llama", KIND)
    edit = FineTune(LAYER, replace(FT, learning_rate=2e-2))(model, LAST)
    with edit.applied(model):
        folder = export_model(model, str(family_dir("llama")), tmp_path / "edited")
    found = (edit.receipt.preferred, edit.receipt.said, edit.receipt.said_again)
    assert found[:2] == (True, True)
    assert found == facts(folder, LAST, NEUTRAL)


def test_a_text_that_does_not_fit_the_context_is_not_measured(tiny):
    model = tiny("gpt2", KIND)
    long = EditRequest("He said that it is so. " * 8 + REQUEST.template, REQUEST.subject, "Rome")
    assert probe_model(model, long, "He said. " * 30).said_again is None
    assert probe_model(model, REQUEST, "He said. " * 5).said_again is False
    assert first_context(("", "A. ", "B. ")) == "A. "
    assert first_context(("",)) == first_context(()) == NEUTRAL


def test_files_without_a_verdict_are_of_unknown_effect(tiny, tmp_path):
    edit = editor(tiny("llama", KIND))(tiny("llama", KIND), REQUEST)
    tensors, header = edit.to_file()
    header["receipt"] = {
        name: figure
        for name, figure in header["receipt"].items()
        if name not in ("verdict", "preferred", "said", "said_again")
    }
    old = Edit.from_file(tensors, header, "old")
    assert old.receipt.verdict is None
    assert old.receipt.rows()[0] == ("verdict", "unknown")


def test_a_subject_that_is_the_first_token_is_warned_of_before_the_work(tiny, caplog):
    first = EditRequest("{} is located in the city of", "Paris", "Rome")
    gpt2, gemma = tiny("gpt2", KIND), tiny("gemma2", KIND)
    assert encode_fact(gpt2, first.fact).subject.last == 0

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace(editor(gpt2), find_values=interrupted)(gpt2, first)
    assert caplog.text.count("an attention sink whose key is unlike others") == 1
    warnings = editor(gpt2)(gpt2, first).receipt.warnings
    assert any("'Paris' is the first token of the text" in warning for warning in warnings)
    assert caplog.text.count("an attention sink") == 2
    for model, request in ((gemma, first), (gpt2, REQUEST)):
        assert not any("attention sink" in warning for warning in editor(model)(model, request).receipt.warnings)
