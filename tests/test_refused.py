"""One text where several are wanted is refused, and so is a fact where a request is: neither is read otherwise."""

import inspect
from dataclasses import replace

import pytest
import torch
from support.edits import CONTEXTS, REQUEST, covariance, editor
from support.families import KINDS

from tl_rome import (
    Fact,
    Rome,
    causal_trace,
    compose,
    continue_texts,
    estimate_covariance,
    load_model,
    score_targets,
    summarize,
)
from tl_rome.counterfact.evaluation.evaluate import named_editors
from tl_rome.editors import DenseUpdate, LowRankUpdate, VirtualEdits, estimate_covariances
from tl_rome.editors.by_name import check_names, editors_by_name
from tl_rome.errors import InputError, ModelMismatchError, ModelUnavailableError
from tl_rome.facts import check_requests
from tl_rome.patching import LogitDifference, TargetLogprob, TargetProbability, TraceConfig, noise_scale, trace_together

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
    rome = Rome(covariance(tiny("gpt2", KIND)), CONTEXTS)
    with pytest.raises(InputError, match="not an EditRequest"):
        inspect.unwrap(Rome.each)(rome, tiny("gpt2", KIND), [FACT])


def test_wrong_choices_are_named():
    with pytest.raises(InputError, match="conventions 'bogus' is unknown; choose 'draft' or 'neurips' or 'released'"):
        summarize([], conventions="bogus")
    with pytest.raises(InputError, match=r"editors are \['rome'\]; give an editor"):
        inspect.unwrap(named_editors)(["rome"])


def test_contexts_are_a_list_or_the_recipe(tiny):
    model = tiny("gpt2", KIND)
    with pytest.raises(InputError, match=r"contexts is one string \('He said\. '\); give a list of strings"):
        Rome.prepare(model, covariance=covariance(model), contexts="He said. ")
    assert list(editors_by_name(model, "ft")) == ["ft"]


def test_half_a_character_is_no_text(tiny):
    with pytest.raises(InputError, match=r"half a character at 'Paris \\ud83d is' \(a lone surrogate\)"):
        score_targets(tiny("gpt2", KIND), ["Paris \ud83d is"], ["in"])


@pytest.mark.parametrize(
    "update",
    [
        LowRankUpdate.rank_one(1, torch.ones(1), torch.ones(32)),
        LowRankUpdate.rank_one(1, torch.ones(128), torch.ones(1)),
        LowRankUpdate.rank_one(1, torch.ones(32), torch.ones(128)),
        DenseUpdate(1, torch.ones(1, 1)),
    ],
    ids=lambda update: str([tuple(part.shape) for part in update.tensors.values()]),
)
def test_edits_of_another_shape(fresh_tiny, update):
    model = fresh_tiny("gpt2", KIND)
    edit = replace(editor(model)(model, REQUEST), updates=(update,), digests={})
    before = model.blocks[1].mlp.W_out.detach().clone()
    for use in (edit.apply, compose([edit]).apply, lambda model: VirtualEdits(model, [edit])):
        with pytest.raises(
            ModelMismatchError, match=r"the update of W_out of layer 1 has (left|right|change) of shape .* asks for"
        ):
            use(model)
    assert torch.equal(model.blocks[1].mlp.W_out, before)


def test_there_has_to_be_something_to_do(tiny):
    model = tiny("gpt2", KIND)
    with pytest.raises(InputError, match="no layers to estimate"):
        estimate_covariances(model, [], ["a text"], source="x")
    with pytest.raises(InputError, match="no tokens to score"):
        TargetProbability(())
    with pytest.raises(InputError, match=r"positions \[99\] are not all in 0 to"):
        trace_together(model, [FACT], "mlp_out", TraceConfig(), generators=[torch.Generator()], positions=[99])
    with pytest.raises(InputError, match="1 facts but 2 generators"):
        trace_together(model, [FACT], "mlp_out", TraceConfig(), generators=[torch.Generator()] * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": TargetLogprob((10**6,))}, r"tokens \(1000000,\) do not fit"),
        ({"metric": LogitDifference(1, 10**6)}, "tokens 1 and 1000000 are not both among"),
        ({"corruption": lambda embeddings, generator: "noise"}, "corruption returned str; return a tensor"),
    ],
)
def test_metrics_and_corruptions_that_do_not_fit(tiny, options, message):
    with pytest.raises(InputError, match=message):
        causal_trace(tiny("gpt2", KIND), FACT, generator=torch.Generator(), progress=False, **options)


def test_a_home_that_nobody_has():
    for options in ({"name": "~nosuchuser/model"}, {"name": "x", "cache_dir": "~nosuchuser/cache"}):
        with pytest.raises(ModelUnavailableError, match=r"folder '~nosuchuser.* cannot be found"):
            load_model(**options)


@pytest.mark.parametrize("device", ["", "gpu", "cuda:99"])
def test_a_device_that_is_not_there(family_dir, device):
    with pytest.raises(InputError, match=f"device '{device}' cannot be used"):
        load_model(str(family_dir("gpt2")), device=device, progress=False)
