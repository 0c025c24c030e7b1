"""MEND as an editor: trained on tiny models, saved, loaded, refused where it does not belong."""

from dataclasses import replace

import pytest
import torch
from support.edits import REQUEST
from support.families import FAMILY_KINDS, KINDS
from support.state import changed, model_state
from support.training import EXAMPLES, SMALL, trained

from tl_rome.editors import MEND_CF, Mend, edited_rows, training_doubt
from tl_rome.editors.edits.receipts.outcome import probe_model
from tl_rome.editors.identity import describe_editor, editor_name
from tl_rome.editors.trained.mend.network import MendNetwork
from tl_rome.errors import InputError, ModelMismatchError, StorageError
from tl_rome.facts import EditRequest
from tl_rome.running.forward import run
from tl_rome.tokens import encode

KIND = KINDS[0]
REQUESTS = [REQUEST, EditRequest("The headquarters of {} is in", "Siemens", "Copenhagen Lisbon")]


@pytest.fixture(scope="module")
def editor(tiny):
    return trained(tiny("llama", KIND))


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_an_edit_in_the_weights_is_the_virtual_one(fresh_tiny, family, kind):
    model = fresh_tiny(family, kind)
    before = model_state(model)
    made = trained(model, replace(SMALL, max_steps=1))
    edits = made.each(model, REQUESTS)
    assert not changed(before, model_state(model))
    tokens = encode(model, REQUESTS[0].fact.prompt)[None]
    with edited_rows(model, edits):
        virtual = run(model, tokens.repeat(2, 1))
    unedited = run(model, tokens)
    for edit, row in zip(edits, virtual, strict=True):
        assert [update.place for update in edit.updates] == list(made.matrices)
        with edit.applied(model):
            written = run(model, tokens)[0]
            outcome = probe_model(model, edit.request)
        assert edit.receipt.prob_new[1] == pytest.approx(outcome.probs[0], rel=1e-3), "probed from the edited blocks up"
        assert edit.receipt.text_nll[1] == pytest.approx(outcome.text_nll, rel=1e-3)
        torch.testing.assert_close(written, row, rtol=1e-3, atol=1e-4)
        assert (written - unedited[0]).abs().max() > 1e-2
    assert not changed(before, model_state(model))


def test_the_list_of_matrices_follows_the_layout(editor):
    assert [str(matrix) for matrix in editor.matrices[:3]] == [
        "W_gate of layer 1",
        "W_in of layer 1",
        "W_out of layer 1",
    ]
    assert [tuple(transform.sizes) for transform in editor.network.transforms.values()] == [(32, 64), (64, 32)]


@pytest.mark.parametrize(("start", "better"), [(-1e-3, True), (1e-3, False)])
def test_a_negative_start_raises_the_target_and_a_positive_one_lowers_it(tiny, start, better):
    model = tiny("llama", KIND)
    untrained = trained(
        model, replace(SMALL, start_rate=start, max_steps=1, learning_rate=1e-12, rates_learning_rate=1e-12)
    )
    for edit in untrained.each(model, REQUESTS):
        before, after = edit.receipt.prob_new
        assert (after > before) == better


def test_an_edit_says_that_its_editor_did_not_converge(tiny, editor):
    doubt = training_doubt(editor.log, editor.config)
    assert doubt
    assert f"the editor did not converge: {doubt}" in editor(tiny("llama", KIND), REQUEST).receipt.warnings


def test_training_lowers_the_loss_on_other_facts_and_keeps_the_best(editor):
    first, *_ = editor.log.curve
    assert [point.step for point in editor.log.curve] == [0, 2, 4, 6]
    assert editor.log.best.loss == min(point.loss for point in editor.log.curve) < first.loss
    assert editor.log.data["records"] == sorted(example.record for example in EXAMPLES)
    assert editor.log.skipped == 0
    moved = (editor.network.rates - SMALL.start_rate).abs()
    assert moved.max() > 0.5 * SMALL.rates_learning_rate, "the second optimiser of the released code moves no rate"
    assert "best of 6 steps" in repr(editor)


def test_edits_do_not_depend_on_each_other(tiny, editor):
    model = tiny("llama", KIND)
    before = {name: value.clone() for name, value in editor.network.state_dict().items()}
    together = editor.each(model, REQUESTS)
    alone = [editor(model, request) for request in reversed(REQUESTS)][::-1]
    again = [editor(model, request) for request in REQUESTS]
    for first, second, third in zip(together, alone, again, strict=True):
        for one, two, three in zip(first.updates, second.updates, third.updates, strict=True):
            torch.testing.assert_close(one.delta, two.delta, rtol=1e-3, atol=1e-6)
            assert torch.equal(two.delta, three.delta)
    assert all(torch.equal(before[name], value) for name, value in editor.network.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_same_edits_in_every_class(tiny, editor, tmp_path, kind):
    path = editor.save(tmp_path / "mend.safetensors")
    model = tiny("llama", kind)
    loaded = Mend.load(path, model)
    assert (loaded.log, loaded.config, loaded.matrices) == (editor.log, editor.config, editor.matrices)
    assert loaded.digest == editor.digest
    assert describe_editor(loaded) == describe_editor(editor)
    assert editor_name(loaded) == "mend_cf"
    for found, expected in zip(
        loaded(model, REQUEST).updates, editor(tiny("llama", KIND), REQUEST).updates, strict=True
    ):
        assert (found.delta - expected.delta).norm() < 1e-3 * expected.delta.norm()


def test_another_model_is_refused(fresh_tiny, tiny, editor, tmp_path):
    path = editor.save(tmp_path / "mend.safetensors")
    with pytest.raises(ModelMismatchError, match="belongs to the model with fingerprint"):
        Mend.load(path, tiny("qwen2", KIND))
    with pytest.raises(ModelMismatchError, match="this mend_cf editor belongs to the model with fingerprint"):
        editor(tiny("gpt2", KIND), REQUEST)
    other = fresh_tiny("llama", KIND, prepend_bos=True)
    with pytest.raises(ModelMismatchError, match="prepend_bos=False, this model has True"):
        Mend.load(path, other)


def test_another_list_of_matrices_is_refused(tiny, editor, tmp_path):
    path = replace(editor, matrices=editor.matrices[:-1]).save(tmp_path / "fewer.safetensors")
    with pytest.raises(StorageError, match=r"lacks part of the network of a mend editor for W_gate of layer 1"):
        Mend.load(path, tiny("llama", KIND))


def test_a_target_without_tokens_is_refused():
    with pytest.raises(InputError, match="target_new is empty"):
        EditRequest("{} is in", "Siemens", " ")
    with pytest.raises(InputError, match="target of a training example is empty"):
        type(EXAMPLES[0])("In", "", "In")


def test_released_settings_and_those_for_small_hardware():
    assert (MEND_CF.batch_size, MEND_CF.clip, MEND_CF.edit_weight, MEND_CF.locality_weight) == (10, 100, 0.1, 1)
    network = MendNetwork([(6, 4), (4, 6), (6, 4)], MEND_CF, torch.Generator().manual_seed(0))
    networks, rates = network.groups()
    assert networks["lr"] == pytest.approx(MEND_CF.learning_rate * 1920 / 256)
    assert (rates["lr"], network.rates.tolist()) == (2e-5, pytest.approx([-1e-4] * 3))
    shapes = {name: tuple(part.shape) for name, part in network.named_parameters()}
    assert shapes["transforms.6x4.layers.1.scale"] == (2, 10)
    assert shapes["transforms.4x6.layers.0.U"] == (10, 10), "the rank is at most the number of coordinates"
    assert sum(len(group["params"]) for group in network.groups()) == len(list(network.parameters()))


def test_a_model_in_half_precision_is_edited_in_single(tiny):
    editor = trained(tiny("gpt2", KIND, torch.bfloat16), replace(SMALL, max_steps=1))
    edit = editor(tiny("gpt2", KIND, torch.bfloat16), REQUEST)
    assert {tensor.dtype for update in edit.updates for tensor in update.tensors.values()} == {torch.float32}
    assert edit.receipt.prob_new[1] > edit.receipt.prob_new[0]
