import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from support.compare import same, weights
from support.edits import REQUEST, editor, random_edit
from support.families import FAMILY_KINDS, KINDS

from tl_rome.editors import DenseUpdate, Edit, LowRankUpdate
from tl_rome.editors.edits.finish import finish_edit
from tl_rome.editors.edits.receipts.outcome import probe_model
from tl_rome.editors.edits.receipts.receipt import UpdateFigures
from tl_rome.errors import EditStateError, InputError, ModelMismatchError, NumericsError, StorageError
from tl_rome.running.matrices import MlpMatrix, editable_matrices, mlp_matrices, w_out
from tl_rome.storage.files import _digest, _former, fingerprint

KIND = KINDS[0]


@pytest.fixture(scope="module")
def edit(tiny):
    return editor(tiny("llama", KIND))(tiny("llama", KIND), REQUEST)


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_apply_writes_delta_and_undo_is_bit_exact(fresh_tiny, family, kind):
    model = fresh_tiny(family, kind)
    edit = editor(model)(model, REQUEST)
    tokens = torch.arange(20)[None]
    before, logits = weights(model), model(tokens)
    with edit.applied(model) as edited:
        assert edited is model
        expected = before[1].double() + edit.updates[0].delta
        torch.testing.assert_close(w_out(model, 1).double(), expected, rtol=1e-6, atol=1e-7)
        assert not torch.allclose(model(tokens), logits)
    assert same(weights(model), before)
    assert torch.equal(model(tokens), logits)


def test_weights_are_restored_after_an_exception(fresh_tiny, edit):
    model = fresh_tiny("llama", KIND)
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), edit.applied(model):
        raise KeyboardInterrupt
    assert same(weights(model), before)


@pytest.mark.parametrize("moment", range(1, 5))
def test_an_interruption_while_writing_leaves_the_weights(fresh_tiny, edit, monkeypatch, moment):
    model = fresh_tiny("llama", KIND)
    before = weights(model)
    both = Edit((edit.updates[0], random_edit(edit, 2, 1).updates[0]), edit.request, edit.receipt, edit.model, {})
    calls, weight = [], MlpMatrix.weight

    def interrupted(place, model):
        calls.append(place)
        if len(calls) == 2 * len(both.updates) + moment:  # those before look; then each matrix is written and read back
            raise KeyboardInterrupt
        return weight(place, model)

    monkeypatch.setattr(MlpMatrix, "weight", interrupted)
    with pytest.raises(KeyboardInterrupt), both.applied(model):
        pytest.fail("the block must not be entered")
    assert same(weights(model), before)
    assert not both.is_applied(model)


def test_weights_that_do_not_keep_what_is_written_are_noticed(fresh_tiny, edit, monkeypatch):
    model = fresh_tiny("llama", KIND)
    weight = MlpMatrix.weight
    monkeypatch.setattr(MlpMatrix, "weight", lambda place, model: weight(place, model).clone())
    with pytest.raises(EditStateError, match="layer 1 does not keep what is written"):
        edit.apply(model)


def test_two_updates_of_one_matrix_are_refused(edit):
    with pytest.raises(InputError, match=r"one update per matrix at most, got several of W_out of layer 1"):
        Edit(edit.updates * 2, edit.request, edit.receipt, edit.model, {})


def test_bfloat16_edit_is_undone_bit_for_bit(fresh_tiny):
    model = fresh_tiny("gpt2", KIND, torch.bfloat16)
    edit = editor(model)(model, REQUEST)
    before = weights(model)
    edit.apply(model)
    assert w_out(model, 1).dtype == torch.bfloat16
    assert not torch.equal(w_out(model, 1), before[1])
    edit.undo(model)
    assert same(weights(model), before)


def test_nested_edits_are_undone_in_reverse_and_refused_otherwise(fresh_tiny, edit):
    model = fresh_tiny("llama", KIND)
    before = weights(model)
    second = random_edit(edit, layer=1, seed=1)
    edit.apply(model)
    second.apply(model)
    with pytest.raises(EditStateError, match=r"layer 1 has changed since.*reverse order"):
        edit.undo(model)
    second.undo(model)
    edit.undo(model)
    assert same(weights(model), before)


def test_edits_of_different_layers_are_undone_in_any_order(fresh_tiny, edit):
    model = fresh_tiny("llama", KIND)
    before = weights(model)
    second = random_edit(edit, layer=2, seed=1)
    edit.apply(model)
    second.apply(model)
    edit.undo(model)
    second.undo(model)
    assert same(weights(model), before)


def test_state_errors(fresh_tiny, edit):
    model = fresh_tiny("llama", KIND)
    with pytest.raises(EditStateError, match="nothing to undo"):
        edit.undo(model)
    with edit.applied(model), pytest.raises(EditStateError, match="applied to this model already"):
        edit.apply(model)


def test_one_edit_on_two_models_at_once(fresh_tiny, edit):
    models = fresh_tiny("llama", KIND), fresh_tiny("llama", KIND)
    before = weights(models[0])
    with edit.applied(models[0]), edit.applied(models[1]):
        assert same(weights(models[0]), weights(models[1]))
    assert all(same(weights(model), before) for model in models)


def test_an_edit_for_another_model_is_refused_and_changes_nothing(fresh_tiny, edit):
    model = fresh_tiny("qwen2", KIND)
    before = weights(model)
    with pytest.raises(ModelMismatchError, match=f"fingerprint {edit.model}"):
        edit.apply(model)
    assert same(weights(model), before)


def test_an_update_as_a_factored_matrix(edit):
    update = edit.updates[0]
    assert torch.equal(update.factored.AB, update.delta)
    assert update.factored.norm().item() == pytest.approx(update.delta.norm().item())


def test_an_edit_shows_as_one_line_and_as_its_receipt_in_a_notebook(edit):
    before, after = edit.receipt.prob_new
    assert repr(edit) == (
        f"<edit {REQUEST.fact.prompt!r} -> 'Rome', layer 1: P {before:.4f} → {after:.4f}, {edit.receipt.verdict}>"
    )
    marked = Edit(edit.updates, edit.request, replace(edit.receipt, target_new="<b>R & D</b>"), edit.model, {})
    html = marked._repr_html_()
    assert "<b>" not in html
    assert "<th>P(&lt;b&gt;R &amp; D&lt;/b&gt;)</th>" in html
    assert html.count("<tr>") == len(edit.receipt.rows())


def test_not_finite_edits_are_refused(fresh_tiny, edit):
    good = edit.updates[0]
    with pytest.raises(NumericsError, match="layer 1 is not finite"):
        LowRankUpdate.rank_one(1, good.left[:, 0] * float("nan"), good.right[:, 0])
    model = fresh_tiny("llama", KIND)
    before = weights(model)
    update = LowRankUpdate(1, good.left, good.right * 1e300)
    huge = Edit((update,), edit.request, edit.receipt, edit.model, {})
    with pytest.raises(NumericsError, match=r"not finite in torch\.float32"):
        huge.apply(model)
    assert same(weights(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load_keep_everything_across_classes(fresh_tiny, edit, tmp_path, kind):
    path = edit.save(tmp_path / "deep" / "edit.safetensors")
    model = fresh_tiny("llama", kind)
    loaded = Edit.load(path, model)
    assert (loaded.request, loaded.receipt, loaded.model) == (edit.request, edit.receipt, edit.model)
    assert loaded.provenance == json.loads(json.dumps(edit.provenance))
    assert torch.equal(loaded.updates[0].delta, edit.updates[0].delta)
    with edit.applied(model):
        direct = w_out(model, 1).clone()
    with loaded.applied(model):
        assert torch.equal(w_out(model, 1), direct)


def test_an_edit_file_is_small_beside_the_model(edit, tmp_path):
    path = edit.save(tmp_path / "edit.safetensors")
    with safe_open(path, "pt") as file:
        assert sorted(file.keys()) == ["1.W_out.left", "1.W_out.right"]


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def damage_drop_vector(path: Path) -> None:
    with safe_open(path, "pt") as file:
        tensors, meta = {"1.W_out.left": file.get_tensor("1.W_out.left")}, file.metadata()
    save_file(tensors, path, meta)


def damage_header(path: Path) -> None:
    with safe_open(path, "pt") as file:
        tensors, header = (
            {name: file.get_tensor(name) for name in ("1.W_out.left", "1.W_out.right")},
            json.loads(file.metadata()["tl_rome"]),
        )
    del header["request"]
    save_file(tensors, path, {"tl_rome": json.dumps(header)})


@pytest.mark.parametrize("damage", [damage_truncate, damage_drop_vector, damage_header])
def test_damaged_files_are_refused(edit, tmp_path, damage):
    path = edit.save(tmp_path / "edit.safetensors")
    damage(path)
    with pytest.raises(StorageError, match=r"edit\.safetensors.*make it again"):
        Edit.load(path)


def test_loading_for_another_model_is_refused(fresh_tiny, edit, tmp_path):
    path = edit.save(tmp_path / "edit.safetensors")
    with pytest.raises(ModelMismatchError, match="same checkpoint"):
        Edit.load(path, fresh_tiny("gpt2", KIND))


def test_layer_out_of_range_writes_nothing(fresh_tiny, edit):
    model = fresh_tiny("llama", KIND)
    before = weights(model)
    good = edit.updates[0]
    both = Edit((good, LowRankUpdate(9, good.left, good.right)), edit.request, edit.receipt, edit.model, {})
    with pytest.raises(InputError, match="layer 9 is out of range"):
        both.apply(model)
    assert same(weights(model), before)


def test_a_copy_of_an_applied_edit_is_applied_to_nothing(fresh_tiny):
    model = fresh_tiny("llama", KIND)
    made = editor(model)(model, REQUEST)
    with made.applied(model):
        for twin in (copy.deepcopy(made), copy.copy(made), pickle.loads(pickle.dumps(made))):
            assert not twin.is_applied(model)
            with pytest.raises(EditStateError, match="nothing to undo"):
                twin.undo(model)
            assert str(twin) == str(made)
        assert made.is_applied(model)
    assert not made.is_applied(model)


def test_files_of_edits_from_before_an_edit_had_several_matrices_are_read(edit, fresh_tiny):
    tensors, header = edit.to_file()
    old = {"1.u": tensors["1.W_out.left"][:, 0], "1.v": tensors["1.W_out.right"][:, 0]}
    change = header["receipt"].pop("changes")[0]
    header["receipt"] |= {"layer": 1, "relative_change": change["relative"]}
    header["digests"] = {"1": header["digests"]["1.W_out"]}
    header["layers"] = [1]
    del header["matrices"]
    found, model = Edit.from_file(old, header, "old"), fresh_tiny("llama", KIND)
    assert found.receipt == edit.receipt
    assert found.digests == edit.digests
    with edit.applied(model):
        expected = weights(model)
    with found.applied(model):
        assert same(weights(model), expected)


def test_edits_of_the_former_fingerprint_are_applied(edit, fresh_tiny):
    model = fresh_tiny("llama", KIND)
    former = replace(edit, model=_digest(model, _former))
    assert former.model != edit.model
    with former.applied(model):
        pass
    with torch.no_grad():
        MlpMatrix(0, "W_in").weight(model).mul_(1.01)
    with pytest.raises(ModelMismatchError, match="belongs to the model with fingerprint"):
        former.apply(model)


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_edits_of_several_matrices_are_applied_saved_and_undone(fresh_tiny, tmp_path, family, kind):
    model, generator = fresh_tiny(family, kind), torch.Generator().manual_seed(0)
    updates = []
    for place in (*mlp_matrices(model, 1), MlpMatrix(2, "W_in")):
        d_in, d_out = place.weight(model).shape
        left, right = (torch.randn(size, 2, generator=generator) / size**0.5 for size in (d_in, d_out))
        low = LowRankUpdate(place.layer, left, right, place.name)
        updates.append(low if place.layer == 1 else DenseUpdate(2, low.delta.float(), "W_in"))
    before = {place: weight.detach().clone() for place, weight in editable_matrices(model).items()}
    figures = UpdateFigures(preset="random", layer_choice="given", losses=(1.0,))
    made = {"before": probe_model(model, REQUEST), "provenance": {}, "started": 0.0, "remedy": "another seed"}
    path = finish_edit(model, REQUEST, updates, figures, **made).save(tmp_path / "edit.safetensors")
    assert all(torch.equal(place.weight(model), weight) for place, weight in before.items())
    edit = Edit.load(path, model)
    assert [update.place for update in edit.updates] == [update.place for update in updates]
    assert edit.receipt.layers == (1, 2)
    assert edit.receipt.relative_change == max(change.relative for change in edit.receipt.changes)
    for update, change in zip(updates, edit.receipt.changes, strict=True):
        size = update.delta.norm() / before[update.place].norm()
        assert (change.layer, change.matrix, change.relative) == (
            update.layer,
            update.matrix,
            pytest.approx(size.item()),
        )
    with edit.applied(model):
        for update in updates:
            expected = before[update.place].double() + update.delta
            torch.testing.assert_close(update.place.weight(model).double(), expected, rtol=1e-5, atol=1e-6)
        assert fingerprint(model) == edit.model
        with pytest.raises(EditStateError, match="already applied"):
            edit.apply(copy.deepcopy(model))
    assert all(torch.equal(place.weight(model), weight) for place, weight in before.items())
