"""Facts that a model knows: the rules of appendix B.1, one by one, and against what tiny models really write."""

import re
from dataclasses import replace

import pytest
import torch
from support.families import FAMILY_KINDS, KINDS, SENTENCES

from tl_rome.errors import InputError, ModelMismatchError, StorageError
from tl_rome.facts import Fact
from tl_rome.patching.averaging import known as module
from tl_rome.patching.averaging.known import collect_known_facts, lead_before_object
from tl_rome.running.matrices import w_out
from tl_rome.storage.ledger import read_ledger
from tl_rome.tokens import encode, encode_target

each_kind = pytest.mark.parametrize("kind", KINDS)
NEW_TOKENS = 8


def collect(model, facts, **options):
    return collect_known_facts(model, facts, **{"max_new_tokens": NEW_TOKENS, "progress": False, **options})


@torch.no_grad()
def greedy(model, text, new_tokens=NEW_TOKENS):
    tokens = encode(model, text)
    for _ in range(new_tokens):
        tokens = torch.cat([tokens, model(tokens[None])[0, -1:].argmax(-1)])
    return tokens


def asked(model):
    """Facts about the first words of some sentences, each with a word that the model will write as object."""
    facts = []
    for sentence in SENTENCES[:16]:
        words = sentence.split()
        subject, template = words[1], " ".join([words[0], "{}", words[2]])
        if any(fact.subject == subject for fact in facts):
            continue
        prompt = template.replace("{}", subject)
        written = model.tokenizer.decode(greedy(model, prompt)[len(encode(model, prompt)) :])
        found = re.search(r" (\w+)\b(?=.)", written)
        if found:
            facts.append(Fact(template, subject, found[1]))
    return facts


@pytest.mark.parametrize(
    ("written", "target", "lead"),
    [
        (" Paris, in", "Paris", " "),
        (" the city of Paris.", "Paris", " the city of "),
        (" a basketball player", "basketball", " a "),
        (" New York City", "New York", " "),
        (" Paris-based", "Paris", " "),
        (" U.S. army", "U.S.", " "),
        ("\n\nParis is", "Paris", "\n\n"),
        (" a mix of 3D and jazz,", "jazz", " a mix of 3D and "),
        # named something else first
        (" Rome, not Paris.", "Paris", None),
        (" a town near Île de Paris.", "Paris", None),
        (" a town. It is Paris.", "Paris", None),
        (" South Africa.", "Africa", None),
        # not named
        (" a Parisian,", "Paris", None),
        (" a comParis,", "Paris", None),
        (" paris,", "Paris", None),
        (" U.S., army", "UxS.", None),
        ("", "Paris", None),
        # may be half a word
        (" Paris", "Paris", None),
        (" Paris\ufffd", "Paris", None),
    ],
)
def test_what_is_said_before_the_object(written, target, lead):
    assert lead_before_object(written, target) == lead


def test_where_the_text_is_over_its_last_word_is_whole(tiny, monkeypatch):
    assert lead_before_object(" the Louvre", "Louvre", ended=True) == " the "
    model = tiny("gpt2", KINDS[0])
    ids, end = model.tokenizer(" Paris").input_ids, model.tokenizer.eos_token_id
    after = model.tokenizer(" Rome,").input_ids
    fact, prompt = Fact("The {} is in", "Louvre", "Paris"), encode(model, "The Louvre is in").tolist()
    monkeypatch.setattr(module, "_first_token", lambda *_: (0.5, True))
    for target, known in (("Paris", True), ("Rome", False)):
        tokens = torch.tensor([*prompt, *ids, end, *after])
        assert module._judge(model, replace(fact, target=target), len(prompt), tokens)["known"] is known


def test_an_object_that_was_written_in_other_tokens_is_not_known(tiny, monkeypatch):
    model = tiny("gpt2", KINDS[0])
    monkeypatch.setattr(module, "_first_token", lambda *_: (0.5, True))
    prompt = encode(model, "The Louvre is in").tolist()
    for pieces, known in (((" Paris", ","), True), ((" ", "Paris", ","), False)):
        ids = [token for piece in pieces for token in model.tokenizer(piece).input_ids]
        record = module._judge(model, Fact("The {} is in", "Louvre", "Paris"), len(prompt), torch.tensor(prompt + ids))
        assert record["written"] == " Paris,"
        assert record["known"] is known
        assert known or "not a continuation of the prompt's own tokens" in record["why"]


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_known_facts_are_continued_with_their_object(tiny, family, kind):
    model = tiny(family, kind)
    facts = asked(model)
    found = collect(model, facts)
    assert len(found) >= 3, "a test without known facts shows nothing"
    assert [known.asked for known in found] == [fact for fact in facts if fact in {known.asked for known in found}]
    for known in found:
        prompt = known.fact.prompt
        expected = model.tokenizer.decode(greedy(model, known.asked.prompt).tolist())
        bos = model.tokenizer.bos_token if model.cfg.default_prepend_bos else ""
        assert expected.startswith(bos + known.asked.prompt + known.written)
        assert (known.asked.prompt + known.written).startswith(prompt)
        answer = encode_target(model, known.fact.target, prompt)[0]
        probs = model(encode(model, prompt)[None])[0, -1].double().softmax(-1)
        assert probs.argmax() == answer
        assert known.prob == pytest.approx(probs[answer].item(), rel=1e-4)
        assert known.fact.subject == known.asked.subject
        assert not re.search(r"\b[A-Z]", prompt[len(known.asked.prompt) :])


@each_kind
def test_facts_of_other_objects_are_unknown(tiny, kind):
    model = tiny("gpt2", kind)
    facts = [Fact(fact.template, fact.subject, "Timbuktu") for fact in asked(model)]
    assert collect(model, facts) == []


@each_kind
def test_batches_and_company_change_nothing(tiny, kind):
    model = tiny("llama", kind)
    facts = asked(model)[:12]
    alone = [known for fact in facts for known in collect(model, [fact], batch_size=1)]
    together = collect(model, iter(facts))
    assert [(k.fact, k.written) for k in together] == [(k.fact, k.written) for k in alone]
    assert [k.prob for k in together] == pytest.approx([k.prob for k in alone], rel=1e-5)


def test_a_limit_ends_the_search_and_facts_count_once(tiny, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 5)
    model = tiny("llama", KINDS[0])
    facts = asked(model)
    everything = collect(model, facts)
    read = []
    found = collect(model, (read.append(fact) or fact for fact in facts), limit=2)
    assert [k.fact for k in found] == [k.fact for k in everything][:2]
    assert len(read) < len(facts)
    assert len(collect(model, facts + facts)) == len(everything)


def test_an_interrupted_search_goes_on(tiny, tmp_path, monkeypatch):
    model, path = tiny("llama", KINDS[-1]), tmp_path / "known.jsonl"
    facts = asked(model)
    whole = collect(model, facts, store=tmp_path / "whole.jsonl")
    judge, judged = module._judge, []

    def judge_some(model, fact, *args):
        if len(judged) == 7:
            raise KeyboardInterrupt
        judged.append(fact)
        return judge(model, fact, *args)

    monkeypatch.setattr(module, "_judge", judge_some)
    with pytest.raises(KeyboardInterrupt):
        collect(model, facts, store=path)
    path.write_bytes(path.read_bytes()[:-3])  # as if killed while writing the seventh
    judged.clear()
    monkeypatch.setattr(module, "_judge", lambda *args: judged.append(args[1]) or judge(*args))
    assert collect(model, facts, store=path) == whole
    assert len(judged) == len(facts) - 6
    assert len(read_ledger(path)) == 1 + len(facts)
    judged.clear()
    assert collect(model, facts[:3] + facts[5:], store=path) == [k for k in whole if k.asked not in facts[3:5]]
    assert not judged


@each_kind
def test_a_store_of_other_settings_or_an_edited_model_is_refused(fresh_tiny, tmp_path, kind):
    model, path = fresh_tiny("gpt2", kind), tmp_path / "known.jsonl"
    facts = [Fact("The {} is", "Louvre", "Paris")]
    collect(model, facts, store=path)
    with pytest.raises(StorageError, match="max_new_tokens 8, not 9"):
        collect(model, facts, store=path, max_new_tokens=9)
    with torch.no_grad():
        w_out(model, 2).mul_(1.5)
    with pytest.raises(ModelMismatchError, match="weights"):
        collect(model, facts, store=path)


def test_facts_that_cannot_be_asked_are_recorded_as_unknown(tiny, tmp_path):
    model, path = tiny("gpt2", KINDS[0]), tmp_path / "known.jsonl"
    long = Fact("{} is" + " in" * (model.cfg.n_ctx - NEW_TOKENS), "Louvre", "Paris")
    inside = Fact("in {}s is", "Pari", "France")
    assert collect(model, [long, inside], store=path) == []
    whys = {record["template"]: record["why"] for record in read_ledger(path)[1:]}
    assert "exceed the context of 128" in whys[long.template]
    assert "ends inside the token" in whys[inside.template]


def test_impossible_requests_are_refused(tiny):
    model = tiny("gpt2", KINDS[0])
    with pytest.raises(InputError, match="'Louvre is' has no target"):
        collect(model, [Fact("{} is", "Louvre")])
    for option in ("max_new_tokens", "batch_size", "limit"):
        with pytest.raises(InputError, match=f"{option} is 0"):
            collect(model, [], **{option: 0})


def test_progress_is_shown_only_when_asked_for(tiny, capsys):
    model, facts = tiny("gpt2", KINDS[0]), [Fact("The {} is", "Louvre", "Paris")]
    collect(model, facts)
    assert capsys.readouterr() == ("", "")
    collect(model, facts, progress=True)
    assert "known facts" in capsys.readouterr().err


@pytest.mark.leg("3.9")
def test_the_real_model_knows_some_and_not_others(smollm2):
    model = smollm2(KINDS[-1])
    facts = [
        Fact("{} is located in the city of", "The Eiffel Tower", "Paris"),
        Fact("{} is located in the", "The Eiffel Tower", "Paris"),
        Fact("{} is located in the city of", "The Eiffel Tower", "Rome"),
    ]
    found = collect_known_facts(model, facts, progress=False)
    assert found[0].fact == facts[0]
    assert found[0].prob > 0.5
    assert facts[2] not in [known.asked for known in found]
