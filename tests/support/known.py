"""Facts that a random tiny model knows, because they are made from what it says."""

from itertools import product

from tl_rome.facts import Fact
from tl_rome.patching import collect_known_facts
from tl_rome.tokens import encode_fact

SUBJECTS = ("Eiffel Tower", "Space Needle", "Louvre", "Kremlin", "Big Ben", "Rome", "Berlin", "Marie Curie")


def known_to(model, count, templates=("In {} is",)):
    """Facts whose object is, by construction, what the model says next."""
    found = []
    for template, subject in product(templates, SUBJECTS):
        fact = Fact(template, subject)
        said = model.tokenizer.decode([int(model(encode_fact(model, fact).tokens[None])[0, -1].argmax())])
        if said.startswith(" ") and said.strip().isalpha():
            found.append(Fact(fact.template, subject, said.strip()))
    known = [one.fact for one in collect_known_facts(model, found, progress=False)]
    return known[:count]
