"""Mass edits of tiny models."""

from dataclasses import replace

import torch

from support.edits import CONTEXTS, REQUEST
from support.families import SENTENCES
from tl_rome.editors import MEMIT, MassEditor, estimate_covariances
from tl_rome.facts import EditRequest
from tl_rome.running.forward import read
from tl_rome.sites import Site
from tl_rome.tokens import encode_fact

LAYERS = (1, 2)
CURIE = EditRequest("The mother tongue of {} is", "Marie Curie", "French")
BIG_BEN = EditRequest("People say that {} is located in the city of", "Big Ben", "Paris", "London")
REQUESTS = (REQUEST, CURIE, BIG_BEN)
QUICK = {"max_evaluations": 4, "early_stop": False}


def statistics(model, layers=LAYERS):
    """Key statistics from the sentences of all tests."""
    return estimate_covariances(model, layers, SENTENCES, source="test sentences", progress=False)


def editor(model, config=MEMIT, layers=LAYERS, **changes):
    """An editor of two layers with few evaluations."""
    config = replace(config, **QUICK, **changes)
    return MassEditor.prepare(model, config=config, covariances=statistics(model, layers), contexts=CONTEXTS)


def at_subject(model, request, prefix, name):
    """What a hook point has at the subject's last token, from a run of one prompt."""
    prompt = encode_fact(model, request.fact, prefix)
    return read(model, prompt.tokens[None], [name])[name][0, prompt.subject.last].double()


def subject_states(model, requests, layer):
    """A layer's output at each bare prompt's subject."""
    name = Site("resid_post", layer).hook
    return torch.stack([at_subject(model, request, "", name) for request in requests])
