"""KE learns on a tiny model, is a value that can be stored, and makes the released modules' edit end to end."""

from dataclasses import replace

import pytest
import torch
from support.families import FAMILY_KINDS, KINDS
from support.golden import MATRICES, golden_arrays, golden_gpt2
from support.training import SMALL_KE, trained_ke

from tl_rome.editors.gradients import borrowed_for_gradients
from tl_rome.editors.trained.ke.config import KE_CF
from tl_rome.editors.trained.ke.editor import Ke
from tl_rome.editors.trained.ke.network import KeNetwork
from tl_rome.editors.trained.mend.editor import Mend
from tl_rome.editors.trained.passes.inner import inner_gradients
from tl_rome.editors.trained.passes.outer import EditedModels
from tl_rome.editors.trained.passes.texts import TargetText
from tl_rome.editors.trained.passes.upper import UpperBlocks
from tl_rome.editors.trained.training import Training
from tl_rome.errors import ModelMismatchError, StorageError
from tl_rome.facts import EditRequest
from tl_rome.running.matrices import MlpMatrix

REQUESTS = [
    EditRequest("The {} is located in the city of", "Eiffel Tower", "Rome"),
    EditRequest("The Space Needle stands near {} in", "Seattle", "Rome and Paris"),
]


def deltas(edits):
    return [update.delta for edit in edits for update in edit.updates]


def test_end_to_end_edit_of_the_released_modules(shared_data, tmp_path):
    golden = golden_arrays(shared_data, "ke")
    model = golden_gpt2(golden, KINDS[0], tmp_path)
    names = [f"h.{layer}.mlp.{part}" for layer in (1, 2) for part in ("c_proj", "c_fc")]
    matrices = [MlpMatrix(int(name[2]), MATRICES[name.split(".")[-1]]) for name in names]
    shapes = [tuple(matrix.weight(model).shape) for matrix in matrices]
    config = replace(KE_CF, hidden=6, condition=5, own_embedding=True)
    network = KeNetwork(shapes, 8, config, torch.Generator(), golden["embedding"]).double()
    parts = {name: golden[name] for name in golden if name.startswith(("lstm.", "linear.", "embedding"))}
    for place, name in enumerate(names):
        for layer in (0, 1):
            for part in ("g", "v", "bias"):
                parts[f"heads.{place}.{2 * layer}.{part}"] = golden[f"head.{name}.{layer}.{part}"]
    network.load_state_dict(parts)
    ids, count = golden["ids"][0], int(golden["n_target"])
    text = TargetText(ids[:-count], ids[-count:])
    with borrowed_for_gradients(model), torch.no_grad():
        upper = UpperBlocks(model, 1)
        gradients, losses = inner_gradients(upper, matrices, [text], upper.enter([text.read]))
        changes = network(gradients, [text.whole])
        models = EditedModels(upper, matrices, changes, 1)
        after, _ = models.edit_losses([text], upper.enter([text.read]))
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(losses[0], golden["inner_nll"], **close)
    for name, change in zip(names, changes, strict=True):
        torch.testing.assert_close(change.left.T @ change.right, golden[f"update.{name}"], **close)
    torch.testing.assert_close(after[0], golden["l_edit"], **close)


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_learns_to_make_edits_that_take(tiny, family, kind):
    model, state = tiny(family, kind), torch.get_rng_state()
    editor = trained_ke(model)
    assert torch.equal(torch.get_rng_state(), state)
    first, best = editor.log.curve[0], editor.log.best
    assert best.edit_loss < 0.7 * first.edit_loss
    edit = editor(model, REQUESTS[0])
    assert [update.place for update in edit.updates] == list(editor.matrices)
    assert edit.receipt.prob_new[1] > edit.receipt.prob_new[0]


def test_one_alone_is_one_of_many_and_seeds_decide(tiny):
    model = tiny("llama", KINDS[0])
    editor, again = trained_ke(model), trained_ke(model)
    assert editor.identity() == again.identity() != trained_ke(model, seed=1).identity()
    together, alone = editor.each(model, REQUESTS), [editor(model, request) for request in REQUESTS]
    assert max((a - b).norm() / b.norm() for a, b in zip(deltas(together), deltas(alone), strict=True)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=["bfloat16", "float64"])
def test_models_of_other_types(tiny, dtype):
    model = tiny("llama", KINDS[0], dtype)
    editor = trained_ke(model)
    assert editor.log.best.edit_loss < editor.log.curve[0].edit_loss
    assert {parameter.dtype for parameter in editor.network.parameters()} == {torch.float32}
    assert editor(model, REQUESTS[0]).updates


@pytest.mark.parametrize("own", [False, True])
def test_a_stored_editor_makes_the_same_edits_in_both_classes(tiny, tmp_path, own):
    model = tiny("gemma2", KINDS[0])
    editor = trained_ke(model, replace(SMALL_KE, own_embedding=own))
    stored = Ke.load(editor.save(tmp_path / "ke.safetensors"), model)
    assert (stored.identity(), stored.log, stored.config) == (editor.identity(), editor.log, editor.config)
    assert all(map(torch.equal, deltas(stored.each(model, REQUESTS)), deltas(editor.each(model, REQUESTS))))
    names = stored.network.state_dict().keys()
    assert ("embedding" in names) == own
    other = tiny("gemma2", KINDS[-1])
    pairs = zip(deltas(stored.each(other, REQUESTS)), deltas(editor.each(model, REQUESTS)), strict=True)
    assert max((a - b).norm() / b.norm() for a, b in pairs) < 1e-3


def test_files_of_other_models_and_editors_are_refused(tiny, tmp_path):
    model = tiny("gpt2", KINDS[0])
    file = trained_ke(model).save(tmp_path / "ke.safetensors")
    with pytest.raises(ModelMismatchError, match="belongs to the model"):
        Ke.load(file, tiny("gptj", KINDS[0]))
    with pytest.raises(StorageError, match="holds 'ke'"):
        Mend.load(file, model)


def test_an_interrupted_training_goes_on_to_the_same_editor(tiny, tmp_path, monkeypatch):
    def interrupt(self):
        if self.state.step == 6:
            raise KeyboardInterrupt
        return step(self)

    model, step, kept = tiny("neox", KINDS[0]), Training._step, tmp_path / "unfinished"
    whole = trained_ke(model)
    monkeypatch.setattr(Training, "_step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trained_ke(model, checkpoint=kept)
    monkeypatch.setattr(Training, "_step", step)
    resumed = trained_ke(model, checkpoint=kept)
    assert (resumed.identity(), resumed.log) == (whole.identity(), whole.log)
