"""Rows with virtual edits give what the edited weights give, and nothing else changes."""

from dataclasses import replace

import pytest
import torch
from support.edits import REQUEST, rank_one
from support.families import FAMILY_KINDS, KINDS, N_LAYERS

from tl_rome.editors import DenseUpdate, Edit, LowRankUpdate, Receipt, compose
from tl_rome.editors.edits.virtual import continue_edited, edited_rows, score_edited
from tl_rome.errors import InputError, ModelMismatchError
from tl_rome.generation import continue_texts, sample_tokens
from tl_rome.running.matrices import mlp_matrices, w_out
from tl_rome.scoring import score_targets
from tl_rome.storage.files import fingerprint

KIND = KINDS[0]
TOKENS = torch.randint(2, 500, (4, 12), generator=torch.Generator().manual_seed(0))
ROWS = [1, -1, 0, 1]
PROMPTS = [
    "The Eiffel Tower is in",
    "Big Ben",
    "She went to the museum in",
    "Paris is the capital of",
    "The Kremlin is",
]
TARGETS = ["Rome", "is located in the city of Rome", "Paris", "Italy", "a city"]
PROMPT_ROWS = [2, 0, -1, 1, 0]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_pair = pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)


def edit_of(model, *updates):
    receipt = Receipt(
        prompt="",
        target_new="",
        target_true=None,
        prob_new=(0.0, 0.0),
        prob_true=None,
        preset="random",
        changes=(),
        layer_choice="given",
        evaluations=0,
        final_loss=0.0,
        seconds=0.0,
    )
    return Edit(updates, REQUEST, receipt, fingerprint(model), {})


def random_edits(model):
    """Four edits: of one layer, of two, of one densely, and of every matrix of a layer; strong enough to be seen."""
    generator = torch.Generator().manual_seed(1)
    d_mlp, d_model = w_out(model, 0).shape

    def update(place, dense):
        d_in, d_out = place.weight(model).shape
        left, right = (torch.randn(size, 3, generator=generator) / size**0.5 for size in (d_in, d_out))
        low = LowRankUpdate(place.layer, left, right, place.name)
        return DenseUpdate(place.layer, low.delta.float(), place.name) if dense else low

    def rank_one(layer):
        u, v = (torch.randn(size, generator=generator, dtype=torch.float64) for size in (d_mlp, d_model))
        return LowRankUpdate.rank_one(layer, u / u.norm(), 2 * v)

    dense = DenseUpdate(0, torch.randn(d_mlp, d_model, generator=generator) / d_mlp**0.5)
    layer = [update(place, dense=place.name == "W_in") for place in mlp_matrices(model, 1)]
    two = rank_one(0), rank_one(N_LAYERS - 1)
    return [edit_of(model, rank_one(1)), edit_of(model, *two), edit_of(model, dense), edit_of(model, *layer)]


def one_by_one(model, edits, rows, function):
    """What `function(row)` returns with each row's edit in the weights."""
    results = []
    for row, edit in enumerate(rows):
        if edit < 0:
            results.append(function(row))
        else:
            with edits[edit].applied(model):
                results.append(function(row))
    return results


def error(found, expected):
    return ((found - expected).float().norm() / expected.float().norm()).item()


@each_pair
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_each_row_equals_its_edit_in_the_weights(fresh_tiny, family, kind, dtype, tolerance):
    model = fresh_tiny(family, kind, dtype)
    edits, rows = random_edits(model), [*ROWS, 2]
    tokens = torch.cat([TOKENS, TOKENS[:1]])
    plain = model(tokens)
    expected = one_by_one(model, edits, rows, lambda row: model(tokens[row : row + 1])[0])
    before = [w_out(model, layer).clone() for layer in range(N_LAYERS)]
    with edited_rows(model, edits, rows):
        found = model(tokens)
        assert all(torch.equal(w_out(model, layer), weight) for layer, weight in enumerate(before))
    for row, edit in enumerate(rows):
        assert error(found[row], expected[row]) < tolerance
        assert edit < 0 or error(found[row], plain[row]) > 2 * tolerance
    assert torch.equal(model(tokens), plain)


@each_pair
def test_generation_with_a_cache_equals_generation_by_edited_weights(fresh_tiny, family, kind):
    model = fresh_tiny(family, kind)
    edits = random_edits(model)

    def greedy(tokens):
        return sample_tokens(model, tokens, 8, generator=torch.Generator(), top_k=1)

    expected = one_by_one(model, edits, ROWS, lambda row: greedy(TOKENS[row : row + 1])[0])
    with edited_rows(model, edits, torch.tensor(ROWS)):
        found = greedy(TOKENS)
    assert torch.equal(found, torch.stack(expected))
    assert not torch.equal(found, greedy(TOKENS))


@each_kind
@pytest.mark.parametrize("max_batch_tokens", [1, 20, 4096])
def test_scores_of_many_edited_models_in_any_chunks(fresh_tiny, kind, max_batch_tokens):
    model = fresh_tiny("llama", kind)
    edits = random_edits(model)
    expected = one_by_one(
        model, edits, PROMPT_ROWS, lambda row: score_targets(model, [PROMPTS[row]], [TARGETS[row]]).logprob
    )
    found = score_edited(model, edits, PROMPTS, TARGETS, PROMPT_ROWS, max_batch_tokens=max_batch_tokens)
    torch.testing.assert_close(found.logprob, torch.cat(expected), rtol=1e-4, atol=0)
    assert not torch.allclose(found.logprob, score_targets(model, PROMPTS, TARGETS).logprob, rtol=0.01)


@each_kind
def test_continuations_of_texts_of_different_lengths(fresh_tiny, kind):
    model = fresh_tiny("gpt2", kind)
    edits = random_edits(model)

    def greedy(prompts):
        return continue_texts(model, prompts, 6, generator=torch.Generator(), top_k=1)

    expected = one_by_one(model, edits, PROMPT_ROWS, lambda row: greedy([PROMPTS[row]])[0])
    found = continue_edited(model, edits, PROMPTS, 6, PROMPT_ROWS, generator=torch.Generator(), top_k=1)
    assert found == expected != greedy(PROMPTS)


def test_one_row_per_edit_by_default_and_a_dense_update_equals_the_rank_one_update_it_is(tiny):
    model = tiny("llama", KIND)
    first, *_ = random_edits(model)
    same = edit_of(model, DenseUpdate(1, first.updates[0].delta))
    with edited_rows(model, [first, same]):
        left, right = model(TOKENS[[0, 0]])
    assert error(left, right) < 1e-5


def test_composed_edits_are_one(fresh_tiny):
    model = fresh_tiny("llama", KIND)
    first, second, *_ = random_edits(model)
    other = edit_of(model, replace(rank_one(second), layer=1))
    with edited_rows(model, [compose([first, other])], [0] * len(TOKENS)):
        found = model(TOKENS)
    with first.applied(model), other.applied(model):
        assert error(found, model(TOKENS)) < 1e-5


def test_unedited_rows_equal_the_model_bit_for_bit(tiny):
    model = tiny("gpt2", KIND)
    with edited_rows(model, random_edits(model), [-1] * len(TOKENS)):
        found = model(TOKENS)
    assert torch.equal(found, model(TOKENS))


@each_kind
def test_wrong_rows_and_wrong_models_are_refused_and_hooks_are_removed(tiny, kind):
    model = tiny("llama", kind)
    edits = random_edits(model)
    with (
        pytest.raises(InputError, match=r"rows name edits \[0, 4\]; use 0 to 3, or -1"),
        edited_rows(model, edits, [0, 4]),
    ):
        pass
    with (
        pytest.raises(InputError, match="batch of 4 rows ran, but edits were given to 2 rows"),
        edited_rows(model, edits, [0, 1]),
    ):
        model(TOKENS)
    with pytest.raises(InputError, match="1 rows but 2 prompts"):
        score_edited(model, edits, PROMPTS[:2], TARGETS[:2], [0])
    with pytest.raises(ModelMismatchError, match="an edit belongs to"), edited_rows(tiny("qwen2", kind), edits):
        pass
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
    assert not any(block.mlp._forward_hooks for block in model.blocks)
