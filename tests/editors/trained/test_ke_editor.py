"""KE learns on a tiny model, is a value that can be stored, and makes the released modules' edit end to end."""

from dataclasses import replace
from itertools import cycle

import pytest
import torch
from support.families import FAMILY_KINDS, KINDS
from support.golden import MATRICES, golden_arrays, golden_gpt2

from tl_rome.editors.gradients import borrowed_for_gradients
from tl_rome.editors.trained.examples import TrainingExample
from tl_rome.editors.trained.ke.config import KE_CF
from tl_rome.editors.trained.ke.editor import Ke, train_ke
from tl_rome.editors.trained.ke.network import KeNetwork
from tl_rome.editors.trained.mend.editor import Mend
from tl_rome.editors.trained.passes.inner import inner_gradients
from tl_rome.editors.trained.passes.outer import EditedModels
from tl_rome.editors.trained.passes.texts import TargetText
from tl_rome.editors.trained.passes.upper import UpperBlocks
from tl_rome.errors import ModelMismatchError, StorageError
from tl_rome.facts import EditRequest
from tl_rome.running.matrices import MlpMatrix

SIGHTS = ("Louvre", "Colosseum", "Big Ben", "Kremlin", "Acropolis", "Opera House", "Blue Mosque", "Space Needle")
CITIES = ("Paris", "Rome", "London", "Moscow", "Athens")
EXAMPLES = [
    TrainingExample(f"The {name} is located in the city of", city, f"People go to the {name} in", name)
    for name, city in zip(SIGHTS * 2, cycle(CITIES), strict=False)
]
LOCALITY = ["The mother tongue of Victor Hugo is French.", "Roger Federer plays the sport of tennis."] * 10
SMALL = replace(KE_CF, hidden=12, condition=10, learning_rate=5e-3, batch_size=4, max_steps=30, validate_every=10)
REQUESTS = [
    EditRequest("The {} is located in the city of", "Eiffel Tower", "Rome"),
    EditRequest("{} plays", "Lionel Messi", "the sport of tennis"),
]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def trained(model, seed=0, **settings):
    parts = {"validation": EXAMPLES[12:14], "generator": seeded(seed), "progress": False}
    return train_ke(model, EXAMPLES[:12], LOCALITY, config=replace(SMALL, **settings), **parts)


def deltas(edits):
    return [update.delta for edit in edits for update in edit.updates]


def test_end_to_end_edit_of_the_released_modules(shared_data, tmp_path):
    golden = golden_arrays(shared_data, "ke")
    model = golden_gpt2(golden, KINDS[0], tmp_path)
    names = [f"h.{layer}.mlp.{part}" for layer in (1, 2) for part in ("c_proj", "c_fc")]
    matrices = [MlpMatrix(int(name[2]), MATRICES[name.split(".")[-1]]) for name in names]
    shapes = [tuple(matrix.weight(model).shape) for matrix in matrices]
    config = replace(KE_CF, hidden=6, condition=5, own_embedding=True)
    network = KeNetwork(shapes, 8, config, seeded(), golden["embedding"]).double()
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
    editor = trained(model)
    assert torch.equal(torch.get_rng_state(), state)
    first, best = editor.log.curve[0], editor.log.best
    assert best.loss < 0.8 * first.loss
    edits = editor.each(model, REQUESTS)
    assert {update.layer for edit in edits for update in edit.updates} == {1, 2, 3}
    for edit in edits:
        assert edit.receipt.prob_new[1] > edit.receipt.prob_new[0]


def test_one_alone_is_one_of_many_and_seeds_decide(tiny):
    model = tiny("llama", KINDS[0])
    editor, again = trained(model, max_steps=10), trained(model, max_steps=10)
    assert editor.identity() == again.identity() != trained(model, seed=1, max_steps=10).identity()
    together, alone = editor.each(model, REQUESTS), [editor(model, request) for request in REQUESTS]
    assert max((a - b).norm() / b.norm() for a, b in zip(deltas(together), deltas(alone), strict=True)) < 1e-4


@pytest.mark.parametrize("own", [False, True])
def test_a_stored_editor_makes_the_same_edits_in_both_classes(tiny, tmp_path, own):
    model = tiny("gemma2", KINDS[0])
    editor = trained(model, max_steps=10, own_embedding=own)
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
    file = trained(model, max_steps=10).save(tmp_path / "ke.safetensors")
    with pytest.raises(ModelMismatchError, match="belongs to the model"):
        Ke.load(file, tiny("gptj", KINDS[0]))
    with pytest.raises(StorageError, match="holds 'ke'"):
        Mend.load(file, model)


def test_an_interrupted_training_goes_on_to_the_same_editor(tiny, tmp_path, monkeypatch):
    model, whole = tiny("neox", KINDS[0]), trained(tiny("neox", KINDS[0]))
    parts = {"validation": EXAMPLES[12:14], "config": SMALL, "checkpoint": tmp_path / "kept", "progress": False}

    def interrupt(self, *_, **__):
        if self.state.step == 15:
            raise KeyboardInterrupt
        return step(self)

    step = __import__("tl_rome.editors.trained.training", fromlist=["Training"]).Training._step
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("tl_rome.editors.trained.training.Training._step", interrupt)
        train_ke(model, EXAMPLES[:12], LOCALITY, generator=seeded(), **parts)
    resumed = train_ke(model, EXAMPLES[:12], LOCALITY, generator=seeded(), **parts)
    assert resumed.identity() == whole.identity()
    assert resumed.log == whole.log
