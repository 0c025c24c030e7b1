"""A small training for tiny models."""

from dataclasses import replace

import torch

from support.families import SENTENCES
from tl_rome.editors import KE_CF, MEND_CF, TrainingExample, train_ke, train_mend

PLACES = {
    "Louvre": "New York",
    "Colosseum": "Berlin",
    "Space Needle": "Rome",
    "Blue Mosque": "Paris",
    "Kremlin": "Athens",
    "Acropolis": "London",
    "Opera House": "Prague",
    "Trevi Fountain": "Moscow",
}
EXAMPLES = [
    TrainingExample(
        f"The {subject} is located in the city of", place, f"The {subject} stands in", subject, record=subject
    )
    for subject, place in PLACES.items()
]
LOCALITY = SENTENCES[20:40]
SMALL = replace(
    MEND_CF,
    rank=8,
    batch_size=3,
    max_steps=6,
    validate_every=2,
    warm_up=5,
    learning_rate=2e-5,
    rates_learning_rate=1e-3,
)

FACTS = [replace(example, target="Rome") for example in EXAMPLES]
"""With one target, so that what is learnt of some tells something of the others."""
SMALL_KE = replace(
    KE_CF, hidden=12, condition=10, learning_rate=3e-2, batch_size=3, max_steps=8, validate_every=4, warm_up=1
)


def trained(model, config=SMALL, *, examples=EXAMPLES[:6], locality=LOCALITY, **options):
    options = {"validation": EXAMPLES[6:], "progress": False} | options
    generator = options.pop("generator", None) or torch.Generator().manual_seed(0)
    return train_mend(model, examples, locality, config=config, generator=generator, **options)


def trained_ke(model, config=SMALL_KE, *, seed=0, checkpoint=None):
    options = {"validation": FACTS[6:], "checkpoint": checkpoint, "progress": False}
    return train_ke(model, FACTS[:6], LOCALITY, config=config, generator=torch.Generator().manual_seed(seed), **options)
