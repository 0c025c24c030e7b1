"""The edit is that of the reference, and of the rule for single rows with plain transformers' embeddings."""

import logging
from dataclasses import replace

import pytest
import torch
from support import plain
from support.compare import Found, relative_error
from support.edits import REQUEST
from support.families import FAMILIES, FAMILY_KINDS, KINDS, build_family
from support.golden import as_text

from tl_rome.editors import (
    KN,
    KN_CORRECTED,
    Edit,
    KnowledgeNeurons,
    attribute_neurons,
    edited_rows,
    shared_neurons,
)
from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.facts import EditRequest
from tl_rome.models.loading import load_model
from tl_rome.running.forward import run
from tl_rome.running.matrices import w_out
from tl_rome.sites import token_embeddings
from tl_rome.tokens import encode, encode_target

KIND = KINDS[0]
QUICK, QUICK_CORRECTED = replace(KN, steps=4), replace(KN_CORRECTED, steps=4)
OTHERS = {REQUEST.template: ["{} stands in the city of", "Where is {}? In"]}
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize("name", ["one", "two"])
def test_equals_the_reference(golden, golden_model, kind, name):
    model = golden_model(kind)
    subject, _, rest = as_text(golden["ids"]).partition(" ")
    new, true = as_text(golden[f"new_{name}"]), as_text(golden["target"])
    edit = KnowledgeNeurons.prepare(model)(model, EditRequest("{} " + rest, subject, new, true))
    assert edit.provenance["subtracted"] == [as_text(golden["argmax_before"])]
    assert edit.provenance["neurons"] == len(golden["neurons_pre_0.2"])
    assert [update.layer for update in edit.updates] == [0, 1]
    for layer, update in enumerate(edit.updates):
        assert relative_error(update.delta, golden[f"change_{name}_W_out.{layer}"]) < 1e-9
    with edit.applied(model):
        logits = run(model, golden["ids"][None])[0, -1]
    assert relative_error(logits, golden[f"logits_last_after_{name}"]) < 1e-9
    assert relative_error(run(model, golden["ids"][None])[0, -1], golden["logits_last"]) < 1e-9


@each_kind
@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_those_of_the_checkpoint(tiny, family_dir, family, kind):
    tokens = torch.tensor([5, 99, 5])
    expected = plain.load(family_dir(family)).get_input_embeddings().weight[tokens]
    assert relative_error(token_embeddings(tiny(family, kind), tokens), expected) < 1e-6


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_rows_change_by_the_rule(tiny, family_dir, family, kind):
    model, embedding = tiny(family, kind), plain.load(family_dir(family)).get_input_embeddings().weight.double()
    prompt = REQUEST.fact.prompt
    greedy = run(model, encode(model, prompt)[None])[0, -1].argmax()
    gated = family in ("llama", "qwen2", "mistral", "gemma2")
    for config, site in ((QUICK, "post" if gated else "pre"), (QUICK_CORRECTED, "post")):
        edit = KnowledgeNeurons(config)(model, REQUEST)
        if config is QUICK:
            true, new = encode_target(model, "Paris", joiner=""), encode_target(model, "Rome", joiner="")
            value, lengths = embedding[new].sum(0) - 2 * embedding[greedy], torch.ones(4, model.cfg.d_mlp)
        else:
            true, new = encode_target(model, "Paris", prompt), encode_target(model, "Rome", prompt)
            old_value, new_value = embedding[true].sum(0), embedding[new].sum(0)
            value = 8 * new_value / new_value.norm() - old_value / old_value.norm()
            lengths = torch.stack([w_out(model, layer).double().norm(dim=1) for layer in range(4)])
        scores = attribute_neurons(model, prompt, true, site=site, points=config.points, steps=4)
        expected = torch.zeros(4, model.cfg.d_mlp, model.cfg.d_model, dtype=torch.float64)
        for neuron in scores.above(0.2):
            expected[neuron] = lengths[neuron] * value
        found = torch.zeros_like(expected)
        for update in edit.updates:
            found[update.layer] = update.delta
        assert relative_error(found, expected) < 1e-6
        assert edit.provenance["site"] == site
        assert edit.receipt.preset == config.preset
        assert edit.receipt.departures == "steps=4"
        assert site in edit.receipt.layer_choice


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_virtual_equals_written(tiny, family, kind):
    model = tiny(family, kind, torch.float64)
    edit, tokens = KnowledgeNeurons(QUICK)(model, REQUEST), encode(model, REQUEST.fact.prompt)[None]
    with edited_rows(model, [edit], [0, -1]):
        virtual, untouched = run(model, tokens.expand(2, -1))
    before = run(model, tokens)[0]
    with edit.applied(model):
        written = run(model, tokens)[0]
    assert relative_error(virtual, written) < 1e-5
    assert relative_error(untouched, before) < 1e-5
    assert relative_error(written, before) > 1e-2


def test_a_file_keeps_the_edit_of_many_layers(tiny, tmp_path):
    model, tokens = tiny("llama", KIND), torch.tensor([[5, 99, 7]])
    edit = KnowledgeNeurons(QUICK)(model, REQUEST)
    assert len(edit.updates) > 1
    loaded = Edit.load(edit.save(tmp_path / "edit.safetensors"))
    assert (loaded.provenance, loaded.receipt) == (edit.provenance, edit.receipt)
    with edit.applied(model):
        expected = run(model, tokens)
    with loaded.applied(model):
        assert torch.equal(run(model, tokens), expected)


@each_kind
def test_the_model_is_left_as_found(fresh_tiny, kind):
    model = fresh_tiny("gpt2", kind)
    found = Found(model)
    with torch.inference_mode():
        KnowledgeNeurons(QUICK)(model, REQUEST)
    found.check()


def test_paraphrases_keep_what_they_share(tiny):
    model = tiny("gpt2", KIND)
    config = replace(QUICK_CORRECTED, sharing=0.4)
    edit = KnowledgeNeurons(config, OTHERS)(model, REQUEST)
    prompts = [template.format(REQUEST.subject) for template in (REQUEST.template, *OTHERS[REQUEST.template])]
    assert edit.provenance["prompts"] == prompts
    several = [attribute_neurons(model, prompt, "Paris", points="left", steps=4) for prompt in prompts]
    kept = set(shared_neurons(several, 0.2, 0.4))
    rows = {(update.layer, int(row)) for update in edit.updates for row in update.delta.norm(dim=1).nonzero()}
    assert rows == kept < set(several[0].above(0.2)) | set(several[1].above(0.2)) | set(several[2].above(0.2))
    alone = KnowledgeNeurons(config, {"{} is": ["{} was"]})(model, REQUEST)
    assert alone.provenance["neurons"] == len(several[0].above(0.2))


def test_a_number_of_neurons_that_is_odd_is_said(tiny, caplog, tmp_path):
    model = tiny("gpt2", KIND)
    with caplog.at_level(logging.WARNING):
        none = KnowledgeNeurons(replace(QUICK_CORRECTED, sharing=0.9, threshold=0.99), OTHERS)(model, REQUEST)
    assert none.updates == ()
    assert none.provenance["neurons"] == 0
    assert "nothing changes" in none.receipt.warnings[0]
    assert "nothing changes" in caplog.text
    loaded = Edit.load(none.save(tmp_path / "none.safetensors"))
    assert loaded.receipt == none.receipt
    with loaded.applied(model):
        pass
    many = KnowledgeNeurons(replace(QUICK, threshold=0.001))(model, REQUEST)
    assert "picks out nothing" in many.receipt.warnings[0]
    assert str(many.receipt)


def test_refuses_what_it_cannot_do(tiny):
    model = tiny("gpt2", KIND)
    with pytest.raises(InputError, match="has no target_true"):
        KnowledgeNeurons(QUICK)(model, replace(REQUEST, target_true=None))
    with pytest.raises(InputError, match="shorten the text"):
        KnowledgeNeurons(QUICK)(model, replace(REQUEST, subject="The Eiffel Tower " * 60))
    with pytest.raises(InputError, match="leave out paraphrases, or use 'kn_corrected'"):
        KnowledgeNeurons(KN, OTHERS)
    with pytest.raises(InputError, match="0 times"):
        KnowledgeNeurons(KN_CORRECTED, {"{} is": ["Paris"]})
    with pytest.raises(InputError, match="an EditRequest"):
        KnowledgeNeurons(QUICK)(model, REQUEST.fact)
    with pytest.raises(InputError, match="site"):
        replace(KN, site="mid")


def test_refuses_mixtures_of_experts(tmp_path):
    model = load_model(str(build_family("mixtral", tmp_path)), model_class="bridge", device="cpu", progress=False)
    with pytest.raises(UnsupportedModelError, match="no plain MLP"):
        KnowledgeNeurons.prepare(model)
    with pytest.raises(UnsupportedModelError):
        KnowledgeNeurons(QUICK)(model, REQUEST)


def test_what_decides_the_edits_is_its_identity():
    editor = KnowledgeNeurons(KN_CORRECTED, OTHERS)
    assert KnowledgeNeurons(replace(KN_CORRECTED, preset="mine"), dict(OTHERS)).identity() == editor.identity()
    others = [
        KnowledgeNeurons(),
        KnowledgeNeurons(KN_CORRECTED),
        replace(editor, config=replace(KN_CORRECTED, steps=9)),
    ]
    assert all(other.identity() != editor.identity() for other in others)
