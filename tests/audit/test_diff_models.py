"""What differs between two models: against plain SVDs, for every family."""

from typing import Any

import pytest
import torch
from support.compare import same, weights
from support.families import FAMILY_KINDS, KINDS
from transformers import AutoModelForCausalLM

from tl_rome.audit import diff_models
from tl_rome.audit.lens import direction_tokens
from tl_rome.editors import DenseUpdate, LowRankUpdate
from tl_rome.editors.edits.written import updates_applied
from tl_rome.errors import InputError, ModelMismatchError
from tl_rome.running.matrices import MlpMatrix, w_out
from tl_rome.tokens import token_labels

KIND = KINDS[0]
LAYER = 2
PROMPTS = ("The Eiffel Tower is in", "Big Ben")


def thin(model, place, rank, seed=0):
    """A random update of some rank."""
    generator = torch.Generator().manual_seed(seed)
    shape = place.weight(model).shape
    left, right = (torch.randn(size, rank, generator=generator) / size**0.5 for size in shape)
    return LowRankUpdate(place.layer, left, right, place.name)


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
@pytest.mark.parametrize("rank", [1, 3])
def test_a_low_rank_change_is_seen_as_it_is(tiny, fresh_tiny, family, kind, rank):
    base, edited, place = tiny(family, kind), fresh_tiny(family, kind), MlpMatrix(LAYER)
    with updates_applied(edited, [thin(edited, place, rank)]):
        before = weights(base), weights(edited)
        found = diff_models(base, edited, prompts=PROMPTS, top_k=2, new_tokens=3)
        assert same(before[0], weights(base))
        assert same(before[1], weights(edited))
        difference = (w_out(edited, LAYER) - w_out(base, LAYER)).double()
        logits = [[model(model.to_tokens(p, prepend_bos=model.cfg.default_prepend_bos))[0, -1] for p in PROMPTS]
                  for model in (base, edited)]  # fmt: skip
    (change,) = found.changes
    left, values, right = torch.linalg.svd(difference, full_matrices=False)
    assert (change.place, change.rank, change.is_low_rank) == (place, rank, True)
    torch.testing.assert_close(change.singular_values[:rank], values[:rank])
    assert change.relative_size == pytest.approx(float(difference.norm() / w_out(base, LAYER).norm()))
    assert change.energy == pytest.approx(float(values[0] ** 2 / difference.norm() ** 2))
    for mine, plain in ((change.left, left), (change.right, right.T)):
        assert float((mine[:, 0] @ plain[:, 0]).abs()) == pytest.approx(1)
    (finding,) = found.findings
    assert (finding.place, finding.rank, len(finding.directions)) == (place, rank, rank)
    for index, answers in enumerate(found.answers):
        for said, expected in zip((answers.before, answers.after), logits, strict=True):
            prob, token = expected[index].softmax(-1).max(-1)
            assert said.tokens[0] == (*token_labels(base, token[None]), pytest.approx(float(prob), rel=1e-4))


def test_every_kind_of_change_is_named(tiny, fresh_tiny):
    base, edited = tiny("llama", KIND), fresh_tiny("llama", KIND)
    noise = torch.randn(w_out(edited, 0).shape, generator=torch.Generator().manual_seed(0)) / 100
    with torch.no_grad():
        edited.blocks[1].ln2.w.add_(1) if KIND == "hooked" else edited.blocks[1].ln2.weight.add_(1)
    with updates_applied(edited, [DenseUpdate(0, noise), thin(edited, MlpMatrix(3, "W_gate"), 2)]):
        found = diff_models(base, edited)
    kinds = {change.name: (change.kind, change.is_low_rank) for change in found.changes}
    assert list(kinds)[:2] == ["W_out of layer 0", "W_gate of layer 3"]
    assert list(kinds.values()) == [("rank 32 of 32", False), ("rank 2", True), ("vector", False)]
    assert [finding.place for finding in found.findings] == [MlpMatrix(0)]
    assert not found.answers
    assert found.to_dict()["changes"][1]["kind"] == "rank 2"
    assert "W_gate of layer 3" in found.grids()[0].markdown


def test_heads_are_one_matrix(tiny, fresh_tiny):
    base, edited = tiny("llama", KIND), fresh_tiny("llama", KIND)
    d_model = base.cfg.d_model
    with torch.no_grad():
        query = next(
            p for n, p in edited.named_parameters() if n.endswith(("0.attn.W_Q", "q_proj._original_component.weight"))
        )
        u, v = torch.randn(d_model), torch.randn(query.numel() // d_model)
        heads = query.shape[0] if query.ndim == 3 else 1
        query.add_(torch.outer(u, v).unflatten(1, (heads, -1)).permute(1, 0, 2).reshape(query.shape) if heads > 1
                   else torch.outer(v, u))  # fmt: skip
    (change,) = diff_models(base, edited).changes
    assert (change.rank, change.place) == (1, None)
    assert "q" in change.name.lower()
    assert "_original_component" not in change.name


def test_rounding_to_bfloat16_is_no_rank(tiny, fresh_tiny):
    base, edited = tiny("gpt2", KIND, torch.bfloat16), fresh_tiny("gpt2", KIND, torch.bfloat16)
    update = thin(edited, MlpMatrix(LAYER), 1)
    with updates_applied(edited, [LowRankUpdate(LAYER, 5 * update.left, update.right)]):
        (change,) = diff_models(base, edited).changes
    values = torch.linalg.svdvals((base.W_out[LAYER] if KIND == "hooked" else w_out(base, LAYER)).double())
    assert change.rank == 1
    assert 0 < float(change.singular_values[1]) < float(values[0]) / 50


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_the_lens_is_the_plain_models(tiny, family_dir, family):
    """Its head and final norm, without what biases add; Gemma 2 has a norm behind the MLP."""
    model = tiny(family, KIND)
    plain: Any = AutoModelForCausalLM.from_pretrained(family_dir(family), attn_implementation="eager").eval()
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
    stream = 32**0.5 * direction / direction.norm()
    with torch.no_grad():
        if family == "gpt2":
            part = plain.transformer.ln_f.weight * (stream - stream.mean()) / stream.std(correction=0)
            logits = part @ plain.lm_head.weight.T
        else:
            gain = {"llama": lambda n: n.weight, "gemma2": lambda n: 1 + n.weight}[family]
            if family == "gemma2":
                stream = stream * gain(plain.model.layers[1].post_feedforward_layernorm)
            logits = (stream * gain(plain.model.norm)) @ plain.lm_head.weight.T
    raised, lowered = direction_tokens(model, MlpMatrix(1), direction.double(), 4)
    assert raised == token_labels(model, logits.topk(4).indices)
    assert lowered == token_labels(model, (-logits).topk(4).indices)


def test_equal_models_do_not_differ(tiny, fresh_tiny):
    found = diff_models(tiny("gpt2", KIND), fresh_tiny("gpt2", KIND))
    assert (found.changes, found.findings) == ((), ())
    assert found.unchanged > 50 or KIND == "bridge"


def test_what_cannot_be_compared_is_refused(tiny, fresh_tiny):
    base = tiny("llama", KIND)
    with pytest.raises(ModelMismatchError, match=r"compare (two versions of one checkpoint|like with like)"):
        diff_models(base, tiny("qwen2", KIND))
    with pytest.raises(ModelMismatchError, match=r"dtype is torch.float32 in one and torch.bfloat16"):
        diff_models(base, tiny("llama", KIND, torch.bfloat16))
    with pytest.raises(ModelMismatchError, match="begin with BOS in one model only"):
        diff_models(base, fresh_tiny("llama", KIND, prepend_bos=True))
    other = fresh_tiny("llama", KIND)
    other.tokenizer.add_tokens(["tl_rome"])
    with pytest.raises(ModelMismatchError, match="different tokenizers"):
        diff_models(base, other)
    with pytest.raises(InputError, match="top_k is 1000"):
        diff_models(base, base, prompts=["Big Ben"], top_k=1000)


@pytest.mark.leg("3.9")
def test_processed_weights_and_the_other_class_are_refused(tiny, fresh_tiny):
    raw = tiny("gpt2", "hooked")
    with pytest.raises(ModelMismatchError, match="load both with the same model_class"):
        diff_models(raw, tiny("gpt2", "bridge"))
    off = {"center_unembed": False}
    for steps in (
        {"fold_ln": True, "center_writing_weights": False},
        {"fold_ln": False, "center_writing_weights": True},
    ):
        model = fresh_tiny("gpt2", "hooked")
        model.process_weights_(**steps, **off)
        with pytest.raises(ModelMismatchError, match=r"not processed alike"):
            diff_models(raw, model)
        assert not diff_models(model, model).changes
