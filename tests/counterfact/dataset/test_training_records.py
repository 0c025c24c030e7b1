"""Training records leave out what is kept for testing, and make examples of prompts and paraphrases."""

from collections import Counter

import torch
from support.records import GAZI

from tl_rome.counterfact.dataset.sample import load_sample_relations
from tl_rome.counterfact.dataset.training import record_examples, training_records
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.fact_files import Relation, StatedFact, Target

RELATIONS = load_sample_relations()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_records_are_spread_over_relations_without_the_subjects_that_are_kept():
    kept = [fact.subject.upper() for relation in RELATIONS for fact in relation.facts[:2]]
    records = training_records(RELATIONS, 40, generator=seeded(), kept=kept)
    usable = [relation for relation in RELATIONS if len(relation.templates) > 2]
    counts = Counter(record.requested_rewrite.relation_id for record in records)
    assert len(records) >= 40
    assert set(counts) == {relation.relation_id for relation in usable}
    assert max(counts.values()) - min(counts.values()) <= 1
    assert not {record.requested_rewrite.subject.casefold() for record in records} & {name.casefold() for name in kept}
    for record in records:
        assert len(record.paraphrase_prompts) == 2
        assert not record.neighborhood_prompts


def test_a_small_relation_leaves_more_to_the_others():
    facts = [StatedFact(f"City {i}", Target(f"Land {i % 3}"), i) for i in range(12)]
    templates = ("{} is in", "{} lies in", "{} stands in")
    large, small = Relation("P1", templates, tuple(facts)), Relation("P2", templates, tuple(facts[:2]))
    found = training_records([large, small, Relation("P3", templates[:2], tuple(facts))], 10, generator=seeded())
    assert Counter(record.requested_rewrite.relation_id for record in found) == {"P1": 10, "P2": 2}
    assert len(training_records([large], 100, generator=seeded())) == 12


def test_examples_are_judged_after_the_prompt_or_a_paraphrase():
    records = training_records(RELATIONS, 60, generator=seeded())
    examples = record_examples(records, generator=seeded())
    assert examples == record_examples(records, generator=seeded())
    paraphrased = 0
    for record, example in zip(records, examples, strict=True):
        rewrite = record.requested_rewrite
        assert (example.prompt, example.target) == (record.request.fact.prompt, rewrite.target_new.str)
        assert (example.subject, example.joiner) == (rewrite.subject, " ")
        assert example.outer_prompt in (example.prompt, *record.paraphrase_prompts)
        assert example.record == f"{rewrite.relation_id} {record.pararel_idx}"
        paraphrased += example.outer_prompt != example.prompt
    assert 0.3 < paraphrased / len(records) < 0.7


def test_records_of_a_file_are_named_as_it_names_them():
    (example,) = record_examples([CounterFactRecord.from_dict(GAZI)], generator=seeded())
    assert example.record == "P159 21136"
    without = {name: part for name, part in GAZI.items() if name != "pararel_idx"} | {"paraphrase_prompts": []}
    (example,) = record_examples([CounterFactRecord.from_dict(without)], generator=seeded())
    assert (example.record, example.outer_prompt) == ("P159 case 1067", "The headquarters of Gazi University is in")
