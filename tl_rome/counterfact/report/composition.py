"""Table 2 for a set of records: what it is made of."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from tl_rome.counterfact.metrics.prompts import mean
from tl_rome.counterfact.records import CounterFactRecord
from tl_rome.grid import Grid

ITEMS: Mapping[str, Callable[[CounterFactRecord], Iterable[str]]] = {
    "Records": lambda record: (str(record.case_id),),
    "Entities": lambda record: (record.requested_rewrite.subject,),
    "Targets": lambda record: (record.requested_rewrite.target_new.str,),
    "Rewriting Prompts": lambda record: record.prompts("rewrite"),
    "Paraphrase Prompts": lambda record: record.paraphrase_prompts,
    "Neighborhood Prompts": lambda record: record.neighborhood_prompts,
    "Generation Prompts": lambda record: record.generation_prompts,
}
"""What table 2 counts, in the draft's words; targets (table 2: objects) are those to be written, o*."""


def tabulate_composition(records: Sequence[CounterFactRecord]) -> Grid:
    """Table 2: how many different items there are in all, per relation and per record."""
    relations: dict[str, list[CounterFactRecord]] = defaultdict(list)
    for record in records:
        relations[record.requested_rewrite.relation_id].append(record)
    rows = []
    for name, items in ITEMS.items():
        groups = ([records], relations.values(), [[record] for record in records])
        averages = (mean([_different(items, group) for group in each]) for each in groups)
        rows.append((name, *(f"{average:,.1f}" for average in averages)))
    caption = f"Different items among {len(records)} records of {len(relations)} relations."
    return Grid(caption, ("item", "total", "per relation", "per record"), tuple(rows))


def _different(items: Callable[[CounterFactRecord], Iterable[str]], records: Iterable[CounterFactRecord]) -> float:
    return float(len({item for record in records for item in items(record)}))
