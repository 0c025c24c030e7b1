"""Editing borrows the model: its owner's modes do not enter the result, and are as they were afterwards."""

from dataclasses import replace

import pytest
import torch
from support.bridges import booted
from support.compare import relative_error
from support.edits import CONTEXTS, LAYER, REQUEST, covariance
from support.families import KINDS, SENTENCES

from tl_rome.editors import FT, RELEASED, FineTune, Rome, estimate_covariance, rome, sample_contexts, score_edited
from tl_rome.editors.covariance.convergence import measure_convergence
from tl_rome.editors.covariance.estimation import covariance_from_samples
from tl_rome.editors.export.hugging_face import export_model
from tl_rome.editors.rank_one.key import subject_keys
from tl_rome.errors import InputError

FAST = replace(FT, max_steps=3, learning_rate=5e-3)
SHORT = replace(RELEASED, max_evaluations=4)


def finetuned(model):
    return FineTune(LAYER, FAST)(model, REQUEST).updates[0].delta


def rank_one(model):
    edit = Rome.prepare(model, covariance=covariance(model), contexts=CONTEXTS, config=SHORT)(model, REQUEST)
    assert edit.receipt.verdict is not None
    return edit.updates[0].delta


def estimated(model):
    return estimate_covariance(model, LAYER, SENTENCES, source="sentences", progress=False).second_moment


def sampled(model):
    generator = torch.Generator().manual_seed(0)
    return covariance_from_samples(
        model, LAYER, generator=generator, tokens=64, batch_size=4, progress=False
    ).second_moment


def converged(model):
    keys = torch.ones(2, covariance(model).second_moment.shape[0])
    return measure_convergence(model, LAYER, SENTENCES, keys, max_tokens=700, points=2, progress=False).norm_ratio


def scored(model):
    edit = Rome(covariance(model), CONTEXTS, SHORT)(model, REQUEST)
    return score_edited(model, [edit], [REQUEST.fact.prompt] * 2, ["Rome"] * 2, [0, -1]).logprob


@pytest.mark.parametrize("work", [finetuned, rank_one, estimated, sampled, converged, scored])
def test_dropout_of_train_mode_does_not_enter_and_train_mode_stays(family_dir, work):
    expected = work(booted(family_dir("gpt2")))
    model = booted(family_dir("gpt2"), training=True)
    assert any(module.training and getattr(module, "p", 0) for module in model.original_model.modules()), "no dropout"
    modes = [module.training for module in (*model.modules(), *model.original_model.modules())]
    assert relative_error(work(model), expected) < 1e-6
    assert [module.training for module in (*model.modules(), *model.original_model.modules())] == modes


def test_contexts_and_exports_of_a_model_in_train_mode(family_dir, tmp_path):
    models = [booted(family_dir("gpt2"), training=training) for training in (False, True)]
    drawn = [sample_contexts(model, RELEASED, generator=torch.Generator().manual_seed(0)) for model in models]
    assert drawn[0] == drawn[1]
    assert export_model(models[1], str(family_dir("gpt2")), tmp_path / "same").is_dir()
    assert models[1].original_model.training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_edits_made_without_gradients_around_are_the_same(tiny, kind, mode):
    model = tiny("llama", kind)
    statistics = covariance(model)
    options = {"covariance": statistics, "contexts": CONTEXTS, "config": SHORT, "progress": False}
    expected = rome(model, REQUEST, **options), FineTune(LAYER, FAST)(model, REQUEST)
    with mode():
        found = rome(model, REQUEST, **options), FineTune(LAYER, FAST)(model, REQUEST)
        assert not torch.is_grad_enabled()
        with found[0].applied(model):
            pass
    for edit, other in zip(found, expected, strict=True):
        assert torch.equal(edit.updates[0].delta, other.updates[0].delta)
        assert not edit.updates[0].delta.is_inference()
        with edit.applied(model):
            pass
    with torch.inference_mode():
        statistics = covariance(model)
    keys = subject_keys(model, LAYER, REQUEST.fact, CONTEXTS)
    assert rome(model, REQUEST, **options | {"covariance": statistics}).receipt.losses == expected[0].receipt.losses
    assert keys.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_made_in_inference_mode_are_refused(fresh_tiny, kind):
    model = fresh_tiny("llama", kind)
    owner = next(module for module in model.modules() if module._parameters)
    with torch.inference_mode():  # where loaders make some weights, depending on class and version
        for name, parameter in owner._parameters.items():
            owner._parameters[name] = torch.nn.Parameter(parameter.clone(), requires_grad=False)
    with pytest.raises(InputError, match=r"loaded inside torch\.inference_mode\(\).*load it outside"):
        FineTune(LAYER, FAST)(model, REQUEST)
