"""Edits of quantised models: made as on the dequantised weights, run by hooks, and said so in the receipt.

Truth is the same edit of a whole model that has the rounded weights, written into it.
"""

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.compare import relative_error
from support.edits import REQUEST, editor
from support.evaluation import QUICK, RECORDS
from support.families import KINDS
from support.mass import BIG_BEN, REQUESTS
from support.mass import editor as mass_editor
from support.quantised import RoundedConfig, RoundedLinear, dequantised
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from tl_rome import edited_rows, load_model
from tl_rome.counterfact import evaluate, mass_edits
from tl_rome.editors import (
    MEMIT_SEQ,
    R_ROME,
    Edit,
    FineTune,
    KeyMemory,
    VirtualEdits,
    compose,
)
from tl_rome.errors import EditStateError, ModelMismatchError, UnsupportedModelError
from tl_rome.running.forward import run
from tl_rome.running.matrices import MlpMatrix
from tl_rome.running.packed import PackedMatrix, packed_matrix
from tl_rome.storage.ledger import model_settings

KIND = KINDS[0]
TOKENS = torch.arange(24).view(2, 12)
REASON = "W_out of layer 1 is packed (RoundedLinear, int8)"


@pytest.fixture(scope="module")
def packed(family_dir):
    """A quantised bridge, to be left as it was found."""
    return load_model(str(family_dir("llama")), quantization_config=RoundedConfig(), progress=False)


@pytest.fixture(scope="module")
def made(packed):
    return editor(packed)(packed, REQUEST)


def other_packing(family_dir):
    """The same model with one scale of one matrix changed."""
    model = load_model(str(family_dir("llama")), quantization_config=RoundedConfig(), progress=False)
    module: Any = MlpMatrix(1).module(model)
    module.scale[0] *= 1.01
    return model


@pytest.mark.parametrize(("family", "config"), [("llama", None), ("neox", R_ROME)], ids=["llama", "neox-r_rome"])
def test_an_edit_is_that_of_the_dequantised_weights(fresh_tiny, family_dir, family, config):
    packed = load_model(str(family_dir(family)), quantization_config=RoundedConfig(), progress=False)
    whole = dequantised(packed, fresh_tiny(family, KIND))
    edits = []
    for model in (packed, whole):
        ready = editor(model)
        edits.append((ready if config is None else replace(ready, config=config))(model, REQUEST))
    hooks, written = edits
    for name in ("left", "right"):
        assert relative_error(getattr(hooks.updates[0], name), getattr(written.updates[0], name)) < 1e-4
    unedited = run(packed, TOKENS)
    with written.applied(whole):
        expected = run(whole, TOKENS)
    assert not torch.allclose(unedited, expected, atol=1e-2)
    with hooks.applied(packed):
        torch.testing.assert_close(run(packed, TOKENS), expected, rtol=1e-3, atol=1e-3)
    with edited_rows(packed, [hooks], [0, -1]):
        found = run(packed, TOKENS)
    torch.testing.assert_close(found, torch.stack([expected[0], unedited[1]]), rtol=1e-3, atol=1e-3)
    assert torch.equal(run(packed, TOKENS), unedited)
    assert [edit.receipt.runs_as_hooks for edit in edits] == [REASON, None]
    for name in ("relative_change", "disturbance", "divisor", "prob_new", "prob_true", "text_nll"):
        assert getattr(hooks.receipt, name) == pytest.approx(getattr(written.receipt, name), rel=1e-3), name


def test_a_batch_is_that_of_the_dequantised_weights(fresh_tiny, packed):
    """RECT looks at the weights themselves, and the second layer at what the first one has got."""
    whole = dequantised(packed, fresh_tiny("llama", KIND))
    hooks, written = (mass_editor(model, rect_share=0.5)(model, REQUESTS) for model in (packed, whole))
    for mine, theirs in zip(hooks.updates, written.updates, strict=True):
        assert relative_error(mine.delta, theirs.delta) < 1e-3
    with hooks.applied(packed), written.applied(whole):
        torch.testing.assert_close(run(packed, TOKENS), run(whole, TOKENS), rtol=1e-3, atol=1e-3)
    assert hooks.receipt.runs_as_hooks == f"{REASON}, and one more matrix"
    assert "runs as hooks" in str(hooks.receipt)
    assert "hooks" not in str(written.receipt)
    found = [[each.residual_left for each in edit.receipt.facts] for edit in (hooks, written)]
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    figures = [[(each.relative, each.disturbance) for each in edit.receipt.layers] for edit in (hooks, written)]
    assert figures[0] == [pytest.approx(each, rel=1e-3) for each in figures[1]]


def test_a_memory_goes_on_where_its_facts_run_as_hooks(fresh_tiny, packed):
    whole, batches = dequantised(packed, fresh_tiny("llama", KIND)), []
    for model in (packed, whole):
        ready = mass_editor(model, MEMIT_SEQ)
        first, memory = ready(model, REQUESTS[:1], memory=KeyMemory.empty(model, ready.layers))
        with pytest.raises(EditStateError, match="W_out of layer 1 is not as the 1 facts of this key memory left it"):
            ready(model, REQUESTS[1:2], memory=memory)
        with first.applied(model):
            second, memory = ready(model, REQUESTS[1:2], memory=memory)
        assert memory.facts == 2
        batches.append([first, second])
    for mine, theirs in zip(batches[0][1].updates, batches[1][1].updates, strict=True):
        assert relative_error(mine.delta, theirs.delta) < 1e-3


def test_what_runs_as_hooks_is_in_the_model_for_all_that_asks(packed, made, tmp_path):
    before = model_settings(packed)
    with made.applied(packed):
        assert model_settings(packed) == {**before, "weights": model_settings(packed)["weights"]} != before
        later = mass_editor(packed)(packed, [BIG_BEN])
        for again in (made.applied(packed), edited_rows(packed, [made])):
            with pytest.raises(EditStateError, match="is already applied"), again:
                pass
        config = {"config": QUICK, "store": tmp_path, "progress": False}
        evaluate(packed, RECORDS[:1], {}, **config)
    assert model_settings(packed) == before
    with pytest.raises(ModelMismatchError, match="was made on other weights"), later.applied(packed):
        pass
    with pytest.raises(ModelMismatchError):
        evaluate(packed, RECORDS[:1], {}, **config)
    with compose([made, later]).applied(packed):
        both = run(packed, TOKENS)
    with edited_rows(packed, [compose([made, later])], [0, 0]):
        torch.testing.assert_close(run(packed, TOKENS), both, rtol=1e-4, atol=1e-4)


def test_many_facts_in_one_model_are_refused_before_any_work(packed):
    def optimise(*_, **__):
        raise AssertionError("this is work")

    ready = replace(mass_editor(packed), find_values=optimise)
    with pytest.raises(UnsupportedModelError, match="nothing can be written into it"):
        mass_edits(packed, RECORDS[:2], ready, (2,), progress=False)


def test_edits_are_composed(fresh_tiny, packed, made):
    whole, other = dequantised(packed, fresh_tiny("llama", KIND)), mass_editor(packed)(packed, [BIG_BEN])
    both = compose([made, other])
    with both.applied(packed):
        found = run(packed, TOKENS)
    for update in both.updates:
        with torch.no_grad():
            update.place.weight(whole).add_(update.delta)
    torch.testing.assert_close(found, run(whole, TOKENS), rtol=1e-3, atol=1e-3)
    with pytest.raises(EditStateError, match="occurs twice"), compose([made, made]).applied(packed):
        pass
    with pytest.raises(UnsupportedModelError, match="nothing can be written"):
        both.apply(packed)


def test_an_evaluation_is_that_of_the_dequantised_weights(fresh_tiny, packed):
    found = []
    for model in (packed, dequantised(packed, fresh_tiny("llama", KIND))):
        (result,) = evaluate(model, RECORDS[:1], editor(model), config=QUICK, progress=False)
        assert result.after is not None
        found.append(result.after.rewrite.logprob_new + result.after.neighborhood.logprob_true)
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_receipt_says_so_and_keeps_it(made, packed, tmp_path):
    assert f"  runs as hooks  {REASON}\n" in str(made)
    assert "runs as hooks" in made._repr_html_()
    loaded = Edit.load(made.save(tmp_path / "edit.safetensors"), packed)
    assert loaded.receipt == made.receipt
    tensors, header = made.to_file()
    del header["receipt"]["runs_as_hooks"]  # as in files from before
    assert Edit.from_file(tensors, header, "old").receipt == replace(made.receipt, runs_as_hooks=None)


def test_an_edit_is_for_the_packed_weights_it_was_made_on(tiny, family_dir, packed, made):
    whole, other = tiny("llama", KIND), other_packing(family_dir)
    elsewhere = editor(whole)(whole, REQUEST)
    with pytest.raises(UnsupportedModelError, match=r"int8\), so nothing .* edited_rows\(model, \[edit\]\)"):
        made.apply(packed)
    for edit, model in ((made, other), (elsewhere, packed), (made, whole)):
        with pytest.raises(ModelMismatchError, match="made on other weights"), edit.applied(model):
            pass
        with pytest.raises(ModelMismatchError, match="made on other weights"):
            VirtualEdits(model, [edit])
    VirtualEdits(packed, [elsewhere], same_weights=False)
    assert model_settings(other)["weights"] != model_settings(packed)["weights"] != model_settings(whole)["weights"]


class _Backless(torch.autograd.Function):
    @staticmethod
    def forward(ctx, inputs, module):
        return module.plain(inputs)

    @staticmethod
    def backward(ctx, *gradients):
        raise NotImplementedError("this kernel has no backward")


@pytest.mark.parametrize("kind", ["no graph", "no backward"])
def test_packed_weights_without_gradients_are_refused(packed, monkeypatch, kind, caplog):
    caplog.set_level(logging.ERROR)
    ready, forward = editor(packed), RoundedLinear.forward
    monkeypatch.setattr(RoundedLinear, "plain", forward, raising=False)
    cut = {"no graph": torch.no_grad()(forward), "no backward": lambda self, inputs: _Backless.apply(inputs, self)}
    monkeypatch.setattr(RoundedLinear, "forward", cut[kind])
    reason = {"no graph": "its output has none", "no backward": "this kernel has no backward"}[kind]
    with pytest.raises(UnsupportedModelError, match=rf"no gradient passes .*\({reason}\).* run it here"):
        ready(packed, REQUEST)
    assert not any(module._forward_hooks for module in packed.modules() if isinstance(module, RoundedLinear))


def test_what_is_not_linear_is_refused(packed, monkeypatch):
    ready, forward = editor(packed), RoundedLinear.forward
    monkeypatch.setattr(RoundedLinear, "forward", lambda self, inputs: forward(self, inputs).clamp(max=0.1))
    with pytest.raises(UnsupportedModelError, match=r"W_out of layer 1 is packed .* is not linear"):
        ready(packed, REQUEST)


def test_editors_that_train_the_weights_say_that_they_cannot(packed):
    with pytest.raises(UnsupportedModelError, match=r"cannot read W_out of layer 1 .* without quantisation"):
        FineTune.prepare(packed, layer=1)(packed, REQUEST)


def test_a_matrix_is_read_in_parts_to_the_bit(packed, monkeypatch):
    monkeypatch.setattr("tl_rome.running.packed._ROWS", 7)
    for name in ("W_gate", "W_in", "W_out"):
        found = packed_matrix(packed, MlpMatrix(2, name))
        weight, bias = found.read()
        assert torch.equal(weight, (found.module.weight * found.module.scale).T)
        assert not bias.any()


def test_numbers_that_a_tensor_class_wraps_are_in_the_digest():
    """As in torchao, whose linear layers are those of torch with a tensor of another class."""
    digests = []
    for numbers in (torch.ones(3, 2), torch.ones(3, 2), torch.zeros(3, 2)):
        module = nn.Linear(2, 3, bias=False)
        module.weight = nn.Parameter(TwoTensor(torch.ones(3, 2), numbers))
        found = PackedMatrix(MlpMatrix(1), module, (2, 3), torch.ones(1))
        assert str(found) == "W_out of layer 1 is packed (Linear, TwoTensor)"
        digests.append(found.digest)
    assert digests[0] == digests[1] != digests[2]
