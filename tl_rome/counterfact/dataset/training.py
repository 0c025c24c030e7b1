"""Training data of the rows MEND-CF and KE-CF: COUNTERFACT-style records, made as those that editors are measured on.

The sources train on 10,000 held-out records, the rewriting prompt as inner prompt; what the outer prompt was is not
published. Here it is the rewriting prompt or one of the paraphrases, half and half: with the prompt alone paraphrase
scores would have to come by themselves.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from tl_rome.arguments import Count
from tl_rome.counterfact.dataset.builder import BuilderConfig, build_records
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.editors.trained.data.parts import subject_key
from tl_rome.editors.trained.examples import TrainingExample
from tl_rome.fact_files import Relation


def training_records(
    relations: Iterable[Relation],
    count: Count,
    *,
    generator: torch.Generator,
    kept: Iterable[str] = (),
) -> list[CounterFactRecord]:
    """Records to train on, about as many of each relation, with two paraphrases and no other tests.

    Args:
        relations: Templates and facts, as `load_pararel` reads them; those of fewer than three templates give none.
        count: How many are needed; there can be more, or fewer where the facts do not give more.
        generator: Source of all draws.
        kept: Subjects of records that are kept for testing; facts about them are left out, see `subject_key`.
    """
    keys = {subject_key(subject) for subject in kept}
    usable = [
        replace(relation, facts=tuple(fact for fact in relation.facts if subject_key(fact.subject) not in keys))
        for relation in relations
        if len(relation.templates) > 2
    ]
    most = max((len(relation.facts) for relation in usable), default=0)
    per_relation = max(1, -(-count // max(1, len(usable))))
    while True:
        config = BuilderConfig(neighbors=0, attributes=0, generations=0, per_relation=per_relation)
        built = build_records(usable, generator=generator, config=config)
        if len(built.records) >= count or per_relation >= most:
            return list(built.records)
        per_relation *= 2


def record_examples(records: Sequence[CounterFactRecord], *, generator: torch.Generator) -> list[TrainingExample]:
    """An example of each record: its rewrite, judged after the same prompt or after a paraphrase of it.

    Args:
        records: Those without paraphrases are judged after their own prompt.
        generator: Decides by a toss for each record, and draws the paraphrase.

    Returns:
        Examples in order, named by relation and `pararel_idx`, or by `case_id` where there is no such number.
    """
    return [_example(record, generator) for record in records]


def _example(record: CounterFactRecord, generator: torch.Generator) -> TrainingExample:
    rewrite, prompt = record.requested_rewrite, record.request.fact.prompt
    paraphrases, outer = record.paraphrase_prompts, prompt
    if int(torch.randint(2, (), generator=generator)) and paraphrases:
        outer = paraphrases[int(torch.randint(len(paraphrases), (), generator=generator))]
    number = f"case {record.case_id}" if record.pararel_idx is None else record.pararel_idx
    name = f"{rewrite.relation_id} {number}"
    return TrainingExample(prompt, rewrite.target_new.str, outer, rewrite.subject, record.joiner, name)
