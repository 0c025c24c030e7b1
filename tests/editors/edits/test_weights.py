"""Edits are put on the weights that they were made on, once: copies and exports of an edited model are noticed."""

from copy import deepcopy

import pytest
import torch
from support.compare import same, weights
from support.edits import REQUEST, editor
from support.families import KINDS

from tl_rome.editors import Edit, EditSequence, VirtualEdits, compose, edited_rows, export_model
from tl_rome.editors.edits.weights import weight_digest
from tl_rome.errors import EditStateError, ModelMismatchError
from tl_rome.facts import EditRequest
from tl_rome.models.loading import load_model
from tl_rome.running.matrices import MlpMatrix, w_out

KIND = KINDS[0]
OTHERS = [EditRequest(REQUEST.template, name, "Paris") for name in ("Big Ben", "The Kremlin")]


@pytest.fixture(scope="module")
def apart(tiny):
    """Three edits of one layer, each made on the unedited model."""
    return editor(tiny("llama", KIND)).each(tiny("llama", KIND), [REQUEST, *OTHERS])


@pytest.fixture(scope="module")
def chain(tiny):
    """Two edits of one layer, the second one made on top of the first."""
    model = tiny("llama", KIND)
    ready = editor(model)
    first = ready(model, REQUEST)
    with first.applied(model):
        return first, ready(model, OTHERS[0])


@pytest.mark.parametrize("kind", KINDS)
def test_digests_are_those_of_the_weights_without_and_with_the_edit(fresh_tiny, apart, tmp_path, kind):
    model = fresh_tiny("llama", kind)
    loaded = Edit.load(apart[0].save(tmp_path / "edit.safetensors"))
    assert loaded.digests == apart[0].digests
    ((before, after),) = loaded.digests.values()
    assert weight_digest(model, MlpMatrix(1)) == before
    with loaded.applied(model):
        assert weight_digest(model, MlpMatrix(1)) == after != before
        assert weight_digest(model, MlpMatrix(2)) == weight_digest(fresh_tiny("llama", KIND), MlpMatrix(2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("again", ["copy", "export"])
def test_an_edit_is_not_applied_twice(fresh_tiny, family_dir, apart, tmp_path, kind, again):
    model = fresh_tiny("llama", kind)
    with apart[0].applied(model):
        if again == "copy":
            edited = deepcopy(model)
        else:
            folder = export_model(model, str(family_dir("llama")), tmp_path / "edited")
            edited = load_model(str(folder), model_class=kind, device="cpu", progress=False)
    before = weights(edited)
    loaded = Edit.load(apart[0].save(tmp_path / "edit.safetensors"))
    for use in (
        lambda: apart[0].apply(edited),
        lambda: loaded.apply(edited),
        lambda: compose([loaded]).apply(edited),
        lambda: VirtualEdits(edited, [loaded]),
    ):
        with pytest.raises(EditStateError, match=r"edit 'The Eiffel .*' -> 'Rome' is already applied"):
            use()
    with pytest.raises(ModelMismatchError, match="made on other weights: W_out of layer 1"):
        apart[1].apply(edited)
    assert same(weights(edited), before)


def test_edits_made_apart_add_up_when_composed_and_are_refused_one_by_one(fresh_tiny, apart):
    model = fresh_tiny("llama", KIND)
    before = weights(model)
    with compose(apart).applied(model):
        expected = before[1].double() + sum(edit.updates[0].delta for edit in apart)
        torch.testing.assert_close(w_out(model, 1).double(), expected, rtol=1e-5, atol=1e-6)
    with (
        apart[0].applied(model),
        pytest.raises(
            ModelMismatchError,
            match=r"apply the edits that were in the model when it was made, .* compose\(\[\.\.\.\]\)",
        ),
    ):
        apart[1].apply(model)
    assert same(weights(model), before)


def test_edits_made_on_top_of_each_other_are_applied_in_order(fresh_tiny, chain):
    model = fresh_tiny("llama", KIND)
    before = weights(model)
    first, second = chain
    for wrong in (second, compose([second]), compose([second, first])):
        with pytest.raises(ModelMismatchError, match=r"edit 'Big Ben .* made on other weights"):
            wrong.apply(model)
    assert same(weights(model), before)
    with compose(chain).applied(model):
        together = weights(model)
        copied = deepcopy(model)
    with pytest.raises(EditStateError, match="already applied"):
        compose(chain).apply(copied)
    with first.applied(model), second.applied(model):
        assert same(weights(model), together)
    with edited_rows(model, [compose(chain), first]):
        pass


def test_an_edit_made_on_top_of_composed_ones_follows_them(fresh_tiny, apart):
    model = fresh_tiny("llama", KIND)
    with compose(apart[:2]).applied(model):
        third = editor(fresh_tiny("llama", KIND))(model, OTHERS[1])
        with third.applied(model):
            expected = weights(model)
    with compose([*apart[:2], third]).applied(model):
        assert same(weights(model), expected)
    with pytest.raises(ModelMismatchError, match=r"'The Kremlin .* made on other weights"):
        compose([apart[0], third, apart[1]]).apply(model)


def test_one_edit_loaded_twice_is_noticed(fresh_tiny, apart, tmp_path):
    path = apart[0].save(tmp_path / "edit.safetensors")
    with pytest.raises(EditStateError, match="occurs twice in this sequence"):
        compose([Edit.load(path), apart[1], Edit.load(path)]).apply(fresh_tiny("llama", KIND))


def test_files_without_digests_are_applied_as_before(fresh_tiny, apart):
    tensors, header = apart[0].to_file()
    del header["digests"]
    old, model = Edit.from_file(tensors, header, "old"), fresh_tiny("llama", KIND)
    assert old.digests == {}
    with apart[1].applied(model), old.applied(model):
        assert not torch.equal(w_out(model, 1), w_out(fresh_tiny("llama", KIND), 1))


def test_sequences_keep_digests_in_their_file(apart, tmp_path):
    loaded = EditSequence.load(compose(apart).save(tmp_path / "all.safetensors"))
    assert [edit.digests for edit in loaded.edits] == [edit.digests for edit in apart]


def test_bfloat16_weights_have_a_digest_too(fresh_tiny):
    model = fresh_tiny("gpt2", KIND, torch.bfloat16)
    edit = editor(model)(model, REQUEST)
    edit.apply(model)
    with pytest.raises(EditStateError, match="already applied"):
        edit.apply(deepcopy(model))
    edit.undo(model)
