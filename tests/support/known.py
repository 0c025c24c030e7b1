"""Facts that a random tiny model knows, because they are made from what it says."""

from tl_rome.facts import Fact
from tl_rome.patching import collect_known_facts
from tl_rome.tokens import encode_fact


def known_to(model, count):
    """Facts whose object is, by construction, what the model says next."""
    found = []
    for subject in ("Eiffel Tower", "Space Needle", "Louvre", "Kremlin", "Big Ben", "Rome", "Berlin", "Marie Curie"):
        fact = Fact("In {} is", subject)
        said = model.tokenizer.decode([int(model(encode_fact(model, fact).tokens[None])[0, -1].argmax())])
        if said.startswith(" ") and said.strip().isalpha():
            found.append(Fact(fact.template, subject, said.strip()))
    known = [one.fact for one in collect_known_facts(model, found, progress=False)]
    return known[:count]
