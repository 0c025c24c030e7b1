"""Many records measured together give what each prompt gives alone in the edited weights."""

import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from support import plain
from support.evaluation import RECORDS, SHORT, RandomEdit
from support.families import KINDS
from support.records import GAZI

from tl_rome.counterfact.evaluation.measure import EvaluationConfig, compare, generate, measure
from tl_rome.counterfact.records import CounterFactRecord, RequestedRewrite, Target
from tl_rome.editors.edits.virtual import VirtualEdits
from tl_rome.errors import InputError, NumericsError
from tl_rome.generation import sample_tokens
from tl_rome.running.matrices import w_out
from tl_rome.scoring import score_targets
from tl_rome.storage.files import digest
from tl_rome.tokens import encode

KIND = KINDS[0]
each_kind = pytest.mark.parametrize("kind", KINDS)
GROUPS = ("rewrite", "paraphrase", "neighborhood", "neighborhood_plus", "attribute")
TEXT = "The Space Needle is a tower that stands in Seattle, in the United States."


def made(model, **options):
    """An edit per record, rank-one and dense ones in turn."""
    return [RandomEdit(dense=bool(i % 2), **options)(model, record.request) for i, record in enumerate(RECORDS)]


def scored_alone(model, prompt, target):
    scores = score_targets(model, [prompt], [target])
    return scores.logprob.item(), scores.n_tokens.item(), scores.is_argmax.item()


def written_alone(model, record, length, seed=0):
    """Each text of a record, sampled without a batch."""
    for place, prompt in enumerate(record.generation_prompts):
        tokens = encode(model, prompt)
        generator = torch.Generator().manual_seed(int(digest([seed, record.case_id, place]), 16) >> 1)
        sampled = sample_tokens(model, tokens[None], length - len(tokens), generator=generator)
        yield model.tokenizer.decode(sampled[0].tolist(), skip_special_tokens=True)


@each_kind
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_scores_and_texts_equal_those_of_each_prompt_alone_in_edited_weights(fresh_tiny, family, kind):
    model = fresh_tiny(family, kind)
    edits = made(model)
    together = measure(model, RECORDS, SHORT, edits=VirtualEdits(model, edits))
    untouched = measure(model, RECORDS, SHORT)
    for record, edit, found, before in zip(RECORDS, edits, together, untouched, strict=True):
        targets = (record.requested_rewrite.target_new.str, record.requested_rewrite.target_true.str)
        with edit.applied(model):
            for name in GROUPS:
                scores = getattr(found.measurement, name)
                assert len(scores) == len(record.prompts(name))
                for i, prompt in enumerate(record.prompts(name)):
                    new, true = (scored_alone(model, prompt, target) for target in targets)
                    assert scores.logprob_new[i] == pytest.approx(new[0], rel=1e-4)
                    assert scores.logprob_true[i] == pytest.approx(true[0], rel=1e-4)
                    assert (scores.tokens_new[i], scores.argmax_new[i]) == new[1:]
                    assert (scores.tokens_true[i], scores.argmax_true[i]) == true[1:]
            texts = [text.prompt + text.continuation for text in found.measurement.generations]
            assert texts == list(written_alone(model, record, SHORT.generation_length))
        assert found.measurement.rewrite.logprob_new != pytest.approx(before.measurement.rewrite.logprob_new, rel=0.01)
        assert found.measurement.generations != before.measurement.generations


CHINESE = CounterFactRecord(
    case_id=11,
    requested_rewrite=RequestedRewrite("{}位于", "P131", Target("罗马"), Target("巴黎"), "埃菲尔铁塔"),
    paraphrase_prompts=("埃菲尔铁塔在哪里？它在", "要看埃菲尔铁塔，你得去 Rome"),
    neighborhood_prompts=("卢浮宫位于",),
    attribute_prompts=("斗兽场位于",),
    joiner="",
)


@each_kind
@pytest.mark.parametrize("joiner", ["", " "])
def test_every_group_is_scored_with_the_joiner_of_its_record(tiny, family_dir, kind, joiner):
    model, hf = tiny("llama", kind), plain.load(family_dir("llama"))
    record = replace(CHINESE, joiner=joiner)
    other = CounterFactRecord.from_dict(GAZI)
    found = measure(model, [other, record], replace(SHORT, generation_length=0))[1].measurement
    for name in GROUPS:
        scores = getattr(found, name)
        for prompt, new, true in zip(record.prompts(name), scores.logprob_new, scores.logprob_true, strict=True):
            before = plain.ids(model.tokenizer, prompt)
            for logprob, target in ((new, "罗马"), (true, "巴黎")):
                whole = plain.ids(model.tokenizer, prompt + joiner + target)
                assert whole[: len(before)] == before
                assert logprob == pytest.approx(plain.logprob(hf, before, whole[len(before) :]), rel=1e-4)


@each_kind
def test_divergences_are_those_of_whole_distributions(fresh_tiny, kind):
    model = fresh_tiny("llama", kind)
    edits = made(model)
    before = measure(model, RECORDS, SHORT)
    after = measure(model, RECORDS, SHORT, edits=VirtualEdits(model, edits))

    def logprobs(prompt):
        return model(encode(model, prompt)[None])[0, -1].double().log_softmax(-1)

    for record, edit, old, new in zip(RECORDS, edits, before, after, strict=True):
        (found,) = compare(model, [old.states], [new.states])
        asked = {name: record.prompts(name) for name in ("neighborhood", "neighborhood_plus")}
        asked["essence"] = (f"{record.requested_rewrite.subject} is a",)
        for name, prompts in asked.items():
            expected = []
            for prompt in prompts:
                was = logprobs(prompt)
                with edit.applied(model):
                    expected.append((was.exp() * (was - logprobs(prompt))).sum().item())
            figures = (found.essence,) if name == "essence" else getattr(found, name)
            assert figures == pytest.approx(expected, rel=1e-3, abs=1e-6)
            assert all(figure > 1e-5 for figure in figures)


@each_kind
def test_a_text_about_the_subject_costs_the_mean_of_its_tokens(tiny, kind):
    model, record = tiny("gpt2", kind), RECORDS[1]
    config = EvaluationConfig(generation_length=0, essence_texts={record.request.subject: TEXT})
    with_text, without = measure(model, [record, RECORDS[0]], config)
    tokens = encode(model, TEXT)
    logprobs = model(tokens[None])[0].double().log_softmax(-1)
    expected = -logprobs[:-1].gather(1, tokens[1:, None]).mean().item()
    assert with_text.measurement.essence_nll == pytest.approx(expected, rel=1e-5)
    assert without.measurement.essence_nll is None


def test_texts_depend_on_seed_record_and_place_but_not_on_the_batch(tiny):
    model = tiny("llama", KIND)
    together = generate(model, RECORDS, SHORT, seed=4)
    alone = [generate(model, [record], SHORT, seed=4)[0] for record in RECORDS]
    assert together == alone
    assert together != generate(model, RECORDS, SHORT, seed=5)
    first, _, third = together[0]
    assert first.prompt == third.prompt
    assert first.continuation != third.continuation


def test_prompts_as_long_as_the_texts_are_not_continued(tiny):
    model, config = tiny("gpt2", KIND), EvaluationConfig(generation_length=12)
    texts = [text for each in generate(model, RECORDS, config) for text in each]
    full = [len(encode(model, text.prompt)) >= 12 for text in texts]
    assert [text.continuation == "" for text in texts] == full
    assert len(set(full)) == 2


def test_what_is_not_asked_for_is_not_measured(tiny):
    config = EvaluationConfig(generation_length=0, kl=False, essence_template=None)
    (found,) = measure(tiny("gpt2", KIND), RECORDS[:1], config)
    measured = found.measurement
    assert measured.neighborhood_plus is measured.attribute is measured.essence_nll is None
    assert measured.generations == ()
    assert found.states == {}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_broken_model_is_an_error(fresh_tiny, batch):
    model = fresh_tiny("gpt2", KIND)
    with torch.no_grad():
        w_out(model, 2).fill_(math.nan)
    with pytest.raises(NumericsError, match=r"logits of .* are not finite"):
        measure(model, RECORDS[:batch], SHORT)
    with pytest.raises(NumericsError, match=r"logits of .* are not finite"):
        generate(model, RECORDS[:batch], SHORT)


def test_impossible_settings_are_refused(tiny):
    for wrong in ({"generation_length": -1}, {"top_k": 0}, {"texts": 0}, {"essence_template": "what is it"}):
        with pytest.raises(InputError, match=r"give a number of at least|exactly once"):
            EvaluationConfig(**wrong)
    with pytest.raises(InputError, match="129 tokens exceed the model's context of 128"), nullcontext():
        generate(tiny("gpt2", KIND), RECORDS, EvaluationConfig(generation_length=129))


def test_settings_distinguish_texts():
    described = [EvaluationConfig(essence_texts=texts).describe() for texts in ({}, {"Rome": "a"}, {"Rome": "b"})]
    assert len({each["essence_texts"] for each in described}) == 3


def test_fewer_texts_are_the_first_of_all(tiny):
    model = tiny("gpt2", KIND)
    every, few = (generate(model, RECORDS, EvaluationConfig(generation_length=12, texts=texts)) for texts in (None, 2))
    assert [texts[:2] for texts in every] == few
    assert any(len(texts) > 2 for texts in every)
