"""Fine-tuning on cached keys gives what training the model's own weight gives, request by request."""

from dataclasses import replace

import pytest
import torch
from support.edits import LAYER, REQUEST
from support.families import FAMILY_KINDS, KINDS

from tl_rome.editors import Edit
from tl_rome.editors.finetune import FT, FT_L, FineTune, FineTuneConfig
from tl_rome.errors import InputError, NumericsError
from tl_rome.facts import EditRequest
from tl_rome.running.matrices import w_out
from tl_rome.tokens import encode, encode_target

KIND = KINDS[0]
FAST = replace(FT, max_steps=6, learning_rate=5e-3)
"""Tiny weights are large, so that steps must be too for anything to happen in a few of them."""
REQUESTS = [
    REQUEST,
    EditRequest("The headquarters of {} is in", "Siemens", "Copenhagen Lisbon"),
    EditRequest("{}", "Big Ben", "Rome"),
]
each_kind = pytest.mark.parametrize("kind", KINDS)


def train_the_weight(model, request, config):
    """The definition: Adam on the model's own parameter, through full forward passes. Returns the losses."""
    weight = w_out(model, LAYER)
    leaf = next(p for p in model.parameters() if p.data_ptr() == weight.data_ptr())
    before = leaf.detach().clone()
    leaf.requires_grad_(True)
    prompt = encode(model, request.fact.prompt)
    target = encode_target(model, request.target_new, request.fact.prompt)
    optimiser, losses = torch.optim.Adam([leaf], lr=config.learning_rate), []
    for _ in range(config.max_steps):
        logprobs = model(torch.cat([prompt, target])[None])[0].log_softmax(-1)
        loss = -logprobs[len(prompt) - 1 : -1].gather(1, target[:, None]).mean()
        losses.append(loss.item())
        if loss < config.stop_loss:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if config.epsilon is not None:
            with torch.no_grad():
                leaf.copy_(torch.min(torch.max(leaf, before - config.epsilon), before + config.epsilon))
    leaf.requires_grad_(False)
    return losses


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
@pytest.mark.parametrize("config", [FAST, replace(FAST, epsilon=8e-3)], ids=["free", "clamped"])
def test_equals_training_the_weight_itself(fresh_tiny, family, kind, config):
    model, request = fresh_tiny(family, kind), REQUESTS[1]
    before = w_out(model, LAYER).detach().clone()
    edit = FineTune(LAYER, config)(model, request)
    assert torch.equal(w_out(model, LAYER), before)
    losses = train_the_weight(model, request, config)
    assert list(edit.receipt.losses) == pytest.approx(losses, rel=1e-3)
    assert losses[-1] < losses[0]
    change = (w_out(model, LAYER).detach() - before).double()
    assert (
        edit.updates[0].delta - change
    ).norm() < 0.02 * change.norm()  # where gradients vanish, Adam's signs are noise
    if config.epsilon is not None:
        assert edit.updates[0].delta.abs().max().item() == pytest.approx(config.epsilon)


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS[::3])
def test_many_at_once_equal_one_by_one_and_end_on_their_own(tiny, family, kind):
    model = tiny(family, kind)
    losses = [edit.receipt.losses for edit in FineTune(LAYER, FAST).each(model, REQUESTS)]
    editor = FineTune(LAYER, replace(FAST, stop_loss=sorted(loss[2] for loss in losses)[1] * 1.01))
    alone = [editor(model, request) for request in REQUESTS]
    together = editor.each(model, REQUESTS)
    assert len({len(edit.receipt.losses) for edit in together}) > 1, "the requests should end at different steps"
    for found, expected in zip(together, alone, strict=True):
        assert found.request == expected.request
        assert found.receipt.losses == pytest.approx(expected.receipt.losses, rel=1e-3)
        assert (found.updates[0].delta - expected.updates[0].delta).norm() < 0.02 * expected.updates[0].delta.norm()
    for requests in (REQUESTS, REQUESTS[::-1]):
        assert [edit.request for edit in editor.each(model, requests, batch_size=2)] == list(requests)


@each_kind
def test_an_edit_raises_the_target_is_undone_and_survives_a_file(fresh_tiny, tmp_path, kind):
    model = fresh_tiny("llama", kind)
    before = w_out(model, LAYER).detach().clone()
    edit = FineTune(LAYER, FAST)(model, REQUEST)
    loaded = Edit.load(edit.save(tmp_path / "ft.safetensors"), model)
    assert edit.receipt.prob_new[1] > 2 * edit.receipt.prob_new[0]
    assert loaded.receipt == edit.receipt
    with edit.applied(model):
        after = w_out(model, LAYER).detach().clone()
    with loaded.applied(model):
        assert torch.equal(w_out(model, LAYER), after)
    assert torch.equal(w_out(model, LAYER), before)
    assert ("preset", "ft") in loaded.receipt.rows()


@each_kind
def test_the_model_is_left_as_found_after_an_error_too(fresh_tiny, kind):
    model = fresh_tiny("llama", kind)
    parameters = list(model.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad_(True)
    required = [p.requires_grad for p in parameters]
    FineTune(LAYER, FAST)(model, REQUEST)
    with torch.no_grad():
        w_out(model, 3).fill_(float("nan"))
    with pytest.raises(NumericsError, match=r"logits of .* are not finite; look for NaN"):
        FineTune(LAYER, FAST)(model, REQUEST)
    assert [p.requires_grad for p in parameters] == required
    assert all(p.grad is None for p in parameters)
    assert not any(point.fwd_hooks for point in model.hook_dict.values())


def test_bfloat16_models_are_trained_in_float32(tiny):
    edit = FineTune(LAYER, FAST)(tiny("gpt2", KIND, torch.bfloat16), REQUEST)
    assert edit.updates[0].tensors["change"].dtype == torch.float32
    assert edit.receipt.prob_new[1] > edit.receipt.prob_new[0]


def test_settings_are_those_of_the_paper_and_bad_ones_are_refused(tiny):
    assert (FT.learning_rate, FT.max_steps, FT.stop_loss, FT.epsilon) == (5e-4, 25, 0.03, None)
    assert replace(FT_L, preset="ft", epsilon=None) == FT
    assert FT_L.epsilon == 5e-4
    with pytest.raises(InputError, match=r"epsilon is 0\.0; give a number above 0"):
        FineTuneConfig(preset="ft", epsilon=0.0)
    with pytest.raises(InputError, match="layer 9 is out of range"):
        FineTune(9)(tiny("gpt2", KIND), REQUEST)
