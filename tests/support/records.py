"""The paper's sample record (appendix H), and small changes of it."""

import copy
from typing import Any

GAZI: dict[str, Any] = {
    "case_id": 1067,
    "pararel_idx": 21136,
    "requested_rewrite": {
        "prompt": "The headquarters of {} is in",
        "entity": "Gazi University",
        "relation_id": "P159",
        "target_new": {"str": "Glasgow", "id": "Q4093"},
        "target_true": {"str": "Ankara", "id": "Q3640"},
    },
    "paraphrase_prompts": [
        "The headquarter of Gazi University is located in",
        "Gazi University is headquartered in",
    ],
    "neighborhood_prompts": ["The headquarter of TRT Haber is located in", "Agricultural Bank is headquartered in"],
    "generation_prompts": ["Gazi University's headquarters is surrounded by"],
}


def changed(*path: Any, value: Any = None) -> dict[str, Any]:
    """Return the record with the field at a path set to a value, or taken out where the value is None."""
    record = copy.deepcopy(GAZI)
    place: Any = record
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return record
