"""ME-PPL is what plain transformers makes of the same sentences, each by itself."""

import math

import pytest
import torch
from support.edits import REQUEST, editor
from support.families import FAMILY_KINDS, KINDS
from transformers import AutoModelForCausalLM, AutoTokenizer

from tl_rome.counterfact import me_ppl, plain_sentences
from tl_rome.editors import export_model
from tl_rome.errors import InputError
from tl_rome.models.smollm2 import smollm2_folder

KIND = KINDS[0]
TEXTS = plain_sentences()[:4]


@torch.no_grad()
def plain_perplexities(folder, texts, bos):
    """exp of the mean loss of each text's tokens but the first."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer, found = AutoTokenizer.from_pretrained(folder), []
    for text in texts:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([[tokenizer.bos_token_id] * bos + own])
        logprobs = model(tokens).logits.double().log_softmax(-1)[0, bos:-1]
        found.append(math.exp(-logprobs[torch.arange(len(own) - 1), own[1:]].mean()))
    return found


@pytest.mark.parametrize(("family", "kind"), [pair for pair in FAMILY_KINDS if pair[0] in ("gpt2", "gemma2")])
def test_it_is_the_mean_of_each_texts_perplexity(tiny, family_dir, family, kind):
    expected = plain_perplexities(family_dir(family), TEXTS, bos=family == "gemma2")
    assert me_ppl(tiny(family, kind), texts=TEXTS) == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert max(expected) > 1.05 * min(expected)


def test_an_edit_counts_applied_and_virtual(tiny, family_dir, tmp_path):
    model = tiny("llama", KIND)
    edit = editor(model)(model, REQUEST)
    with edit.applied(model):
        applied = me_ppl(model, texts=TEXTS, max_batch_tokens=1)
        export_model(model, str(family_dir("llama")), tmp_path / "edited")
    expected = plain_perplexities(tmp_path / "edited", TEXTS, bos=False)
    assert applied == pytest.approx(sum(expected) / len(expected), rel=1e-4)
    assert me_ppl(model, edit, texts=TEXTS) == pytest.approx(applied, rel=1e-4)
    assert me_ppl(model, texts=TEXTS) != pytest.approx(applied, rel=1e-2)


def test_there_are_fifty_sentences_of_one_line_each():
    sentences = plain_sentences()
    assert len(set(sentences)) == len(sentences) == 50
    assert all(5 <= len(sentence.split()) <= 30 and sentence[-1] in '.?"' for sentence in sentences)


def test_texts_without_anything_to_predict_are_refused(tiny):
    with pytest.raises(InputError, match="there are no texts"):
        me_ppl(tiny("gpt2", KIND), texts=[])
    with pytest.raises(InputError, match="'a' has a single token"):
        me_ppl(tiny("gpt2", KIND), texts=["a"])


def test_the_embedded_model_reads_plain_sentences(smollm2):
    model = smollm2(KIND)
    expected = plain_perplexities(
        smollm2_folder(progress=False), plain_sentences(), bool(model.cfg.default_prepend_bos)
    )
    assert me_ppl(model) == pytest.approx(sum(expected) / 50, rel=1e-4)
