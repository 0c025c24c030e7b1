"""Relations to build records from, read from JSON texts that list the facts by object, as the sample's do.

Those of ParaRel (Elazar et al. 2021) are read by `load_pararel`.
"""

from collections.abc import Mapping, Sequence

from tl_rome.errors import InputError, StorageError
from tl_rome.fact_files import Relation, StatedFact, Target, load_generation_prompts
from tl_rome.storage.json_text import parse_json, refuse_halves
from tl_rome.storage.parts import read_as


def parse_relations(
    texts: Mapping[str, str], generation_prompts: Mapping[str, Sequence[str]] | None = None
) -> list[Relation]:
    """Make relations of JSON texts: `{"templates": [...], "facts": {object: [subject, ...]}}`, perhaps with "reversed".

    Args:
        texts: By relation_id.
        generation_prompts: By relation_id; None takes `load_generation_prompts`.

    Raises:
        StorageError: If a text is not of this form.
    """
    beginnings = load_generation_prompts() if generation_prompts is None else generation_prompts
    relations, number = [], 0
    for relation_id, text in texts.items():
        try:
            data = parse_json(text)
            refuse_halves(text, data)
            objects = read_as(dict[str, tuple[str, ...]], data["facts"], "facts")
            templates = read_as(tuple[str, ...], data["templates"], "templates")
            backward = read_as(tuple[str, ...], data.get("reversed", ()), "reversed")
            pairs = [(subject, target) for target, subjects in objects.items() for subject in subjects]
            facts = tuple(StatedFact(name, Target(target), number + i) for i, (name, target) in enumerate(pairs))
            more = tuple(beginnings.get(relation_id, ()))
            relations.append(Relation(relation_id, templates, facts, more, backward))
        except InputError as error:
            raise type(error)(f"relation {relation_id}: {error}") from error
        except (AttributeError, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"relation {relation_id} has no templates and facts by object ({error!r})") from error
        number += len(facts)
    return relations
