"""One text where several are wanted is refused, and so is a fact where a request is: neither is read otherwise."""

import inspect

import pytest
import torch
from support.edits import CONTEXTS, covariance
from support.families import KINDS

from tl_rome import Fact, Rome, continue_texts, estimate_covariance, score_targets, summarize
from tl_rome.counterfact.evaluation.evaluate import named_editors
from tl_rome.editors.by_name import check_names
from tl_rome.errors import InputError
from tl_rome.facts import check_requests
from tl_rome.patching import noise_scale

KIND = KINDS[0]
FACT = Fact("{} is located in the city of", "The Eiffel Tower", "Paris")


@pytest.mark.parametrize(
    "call",
    [
        lambda model: continue_texts(model, "Paris", 2, generator=torch.Generator(), top_k=1),
        lambda model: score_targets(model, "Paris", ["Tokyo"] * 5),
        lambda model: score_targets(model, ["Paris"] * 5, "Tokyo"),
        lambda model: estimate_covariance(model, 1, "a text about Paris", source="x", progress=False),
        lambda model: noise_scale(model, "Paris"),
    ],
)
def test_one_string_where_several_are_wanted(tiny, call):
    with pytest.raises(InputError, match=r"is one string \(.*\); give a list of strings, as in \[text\]"):
        call(tiny("gpt2", KIND))


def test_one_name_is_that_editor():
    assert check_names("rome") == ["rome"]


def test_a_fact_is_no_request(tiny):
    with pytest.raises(InputError, match=r"is a Fact, not an EditRequest; make one with fact.rewrite"):
        check_requests([FACT.rewrite("Rome"), FACT])
    editor = Rome(covariance(tiny("gpt2", KIND)), CONTEXTS)
    with pytest.raises(InputError, match="not an EditRequest"):
        inspect.unwrap(Rome.each)(editor, tiny("gpt2", KIND), [FACT])


def test_wrong_choices_are_named():
    with pytest.raises(InputError, match="conventions are 'bogus'; choose from draft, neurips, released"):
        inspect.unwrap(summarize)([], conventions="bogus")
    with pytest.raises(InputError, match=r"editors are \['rome'\]; give an editor"):
        inspect.unwrap(named_editors)(["rome"])
