"""A model gives its own numbers, however its owner left it; the truth is computed by plain transformers."""

from typing import Any

import pytest
import torch
from support.bridges import booted
from support.compare import Stub, relative_error
from support.families import KINDS
from transformers import AutoModelForCausalLM, AutoTokenizer

from tl_rome import score_targets
from tl_rome.errors import UnsupportedModelError
from tl_rome.generation import continue_texts, sample_tokens
from tl_rome.running.borrowed import borrowed
from tl_rome.running.forward import check_final_logits, final_logits, last_resid, read, run

PROMPT, TARGET = "The Eiffel Tower is located in the city of", "Paris"
MODEL_CLASSES = KINDS


def plain(folder):
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


def true_logprob(folder):
    """Of the target after the prompt, in plain transformers."""
    hf, tokenizer = plain(folder), AutoTokenizer.from_pretrained(folder)
    prompt, target = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (PROMPT, f" {TARGET}"))
    with torch.no_grad():
        logprobs = hf(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
    return sum(float(logprobs[len(prompt) - 1 + place, token]) for place, token in enumerate(target))


def test_logits_with_a_multiplier_are_the_models_own(family_dir, tiny):
    model, tokens = tiny("granite", "bridge"), torch.tensor([[5, 70, 12, 99]])
    with torch.no_grad():
        expected = plain(family_dir("granite"))(tokens).logits
        found = final_logits(model, read(model, tokens, [last_resid(model)])[last_resid(model)])
    assert relative_error(found, expected) < 1e-5
    assert score_targets(model, [PROMPT], [TARGET]).logprob[0].item() == pytest.approx(
        true_logprob(family_dir("granite")), abs=1e-4
    )


def test_a_model_that_does_something_else_to_its_logits_is_refused(tiny, monkeypatch):
    model = tiny("granite", "bridge")
    monkeypatch.setattr(model.adapter, "apply_output_logits_transform", lambda logits: logits)
    with pytest.raises(UnsupportedModelError, match="not its unembedded last residual stream"):
        check_final_logits(model)
    with pytest.raises(UnsupportedModelError, match="not its unembedded"), borrowed(model):
        pytest.fail("the model was lent")


def test_train_mode_is_set_aside_and_left_as_found(family_dir):
    model = booted(family_dir("gpt2"), training=True)
    modules = [*model.modules(), *model.original_model.modules()]
    modes = [module.training for module in modules]
    assert any(modes)
    with borrowed(model):
        assert not any(module.training for module in modules)
        found = run(model, torch.tensor([[5, 70, 12]]))
    assert [module.training for module in modules] == modes
    with torch.no_grad():
        assert relative_error(found, plain(family_dir("gpt2"))(torch.tensor([[5, 70, 12]])).logits) < 1e-5


@pytest.mark.parametrize("family", ["gptj", "gpt2"])
def test_settings_that_add_to_the_output_are_set_aside_and_left_as_found(family_dir, family):
    model = booted(family_dir(family), output_attentions=True, output_hidden_states=True)
    config: Any = model.original_model.config
    with pytest.raises(KeyboardInterrupt), borrowed(model):
        raise KeyboardInterrupt(config.output_attentions) if not config.output_attentions else AssertionError
    assert (config.output_attentions, config.output_hidden_states) == (True, True)


def test_another_class_of_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="wrap it"), borrowed(Stub()):
        pytest.fail("the model was lent")


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
@pytest.mark.parametrize("family", ["gpt2", "gptj", "neox"])
def test_the_pad_token_is_an_ordinary_token(family_dir, tiny, family, model_class):
    """There the token that begins and ends texts is the pad token too, which TransformerLens masks by default."""
    model, hf = tiny(family, model_class), plain(family_dir(family))
    pad = model.tokenizer.pad_token_id
    assert pad == model.tokenizer.bos_token_id
    for prompt in ([pad], [pad, pad, 7], [30, 41, pad], [30, pad]):
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(6):
                ids.append(int(hf(torch.tensor([ids])).logits[0, -1].argmax()))
        found = sample_tokens(model, torch.tensor([prompt]), 6, generator=torch.Generator(), top_k=1)
        assert found[0].tolist() == ids


@pytest.mark.parametrize("model_class", MODEL_CLASSES)
def test_left_padding_tokenizers_hide_no_token(family_dir, fresh_tiny, model_class):
    model, tokens = fresh_tiny("gpt2", model_class), torch.tensor([[0, 0, 7, 9]])
    model.tokenizer.padding_side = "left"
    with torch.no_grad():
        assert relative_error(run(model, tokens), plain(family_dir("gpt2"))(tokens).logits) < 1e-5


def test_sampling_does_without_a_cache_that_the_model_ignores(tiny, monkeypatch, caplog):
    model = tiny("gpt2", "bridge")
    expected = continue_texts(model, [PROMPT], 8, generator=torch.Generator(), top_k=1)
    forward = type(model).forward

    def forgetful(self, *args, past_key_values=None, **options):
        return forward(self, *args, **options)

    monkeypatch.setattr(type(model), "forward", forgetful)
    assert continue_texts(model, [PROMPT], 8, generator=torch.Generator(), top_k=1) == expected
    assert caplog.text.count("ignores its key-value cache; sampling by a whole forward pass") == 1


def test_sampling_does_without_a_cache_that_the_model_cannot_fill(tiny, monkeypatch, caplog):
    model = tiny("gpt2", "bridge")
    expected = continue_texts(model, [PROMPT], 8, generator=torch.Generator(), top_k=1)
    forward = type(model).forward

    def picky(self, *args, past_key_values=None, **options):
        if past_key_values is not None:
            raise IndexError("list index out of range")
        return forward(self, *args, **options)

    monkeypatch.setattr(type(model), "forward", picky)
    assert continue_texts(model, [PROMPT], 8, generator=torch.Generator(), top_k=1) == expected
    assert caplog.text.count("no key-value cache of the usual kind (IndexError: list index out of range)") == 1
