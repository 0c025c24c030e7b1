"""Batched scores of multi-token targets equal one-by-one scores from the model's own logits."""

import json
from contextlib import contextmanager

import pytest
import torch
from support.evaluation import RECORDS, RandomEdit
from support.families import FAMILIES, KINDS

from tl_rome.editors.edits.virtual import score_edited
from tl_rome.errors import InputError, NumericsError
from tl_rome.running.forward import final_logits
from tl_rome.scoring import ScoringPrompt, TargetScores, score_prompts, score_targets
from tl_rome.sites import EMBED
from tl_rome.tokens import encode, encode_target

each_kind = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("family", FAMILIES)
PROMPTS = (
    "The Eiffel Tower is located in the city of",
    "Rome",
    "The river Seine flows through Paris, and the river Tiber flows through",
    "The mother tongue of Łucja is",
    "Rome",
)
TARGETS = ("Rome", "is the capital of Italy, 東京", "a city", "Polish", "is")


def scores_one_by_one(model, prompts, targets):
    """Sum of log-probabilities (nats) and number of tokens of each target, and whether greedy decoding says it."""
    for prompt, target in zip(prompts, targets, strict=True):
        start, end = encode(model, prompt), encode_target(model, target, prompt)
        logprobs = model(torch.cat([start, end])[None])[0].double().log_softmax(dim=-1)
        steps = [logprobs[len(start) + i - 1, token].item() for i, token in enumerate(end)]
        greedy = [logprobs[len(start) + i - 1].argmax() == token for i, token in enumerate(end)]
        yield sum(steps), len(steps), all(greedy)


@each_kind
@each_family
def test_scores_equal_one_by_one_scoring(tiny, family, kind):
    model = tiny(family, kind)
    logprob, n_tokens, _ = zip(*scores_one_by_one(model, PROMPTS, TARGETS), strict=True)
    assert len(set(n_tokens)) > 2, "the targets should differ in length"
    expected = torch.tensor(logprob, dtype=torch.float64)
    for max_batch_tokens in (1, 40, 4096):
        scores = score_targets(model, PROMPTS, TARGETS, max_batch_tokens=max_batch_tokens)
        torch.testing.assert_close(scores.logprob, expected, rtol=1e-5, atol=0)
        assert scores.n_tokens.tolist() == list(n_tokens)


@each_kind
@each_family
def test_targets_of_one_prompt_share_rows_and_a_pass_with_its_state(tiny, family, kind):
    model, shapes = tiny(family, kind), []
    targets = ("Rome", "Paris", "the capital of Italy", "a city in France", "a", "the")
    given = [ScoringPrompt.texts(model, PROMPTS[0], targets), ScoringPrompt(encode(model, PROMPTS[2]))]

    def note(embeddings, hook):
        shapes.append(embeddings.shape[:2])

    with model.hooks([(EMBED, note)]):
        scores, states = score_prompts(model, given)
    assert sum(rows for rows, _ in shapes) == 3, "two long targets that differ, and a prompt without any"
    expected = zip(*scores_one_by_one(model, [PROMPTS[0]] * len(targets), targets), strict=True)
    logprob, n_tokens, is_argmax = map(torch.tensor, expected)
    torch.testing.assert_close(scores.logprob, logprob.double(), rtol=1e-5, atol=0)
    assert torch.equal(scores.n_tokens, n_tokens)
    assert torch.equal(scores.is_argmax, is_argmax)
    following = torch.stack([model(encode(model, prompt)[None])[0, -1] for prompt in (PROMPTS[0], PROMPTS[2])])
    torch.testing.assert_close(final_logits(model, states), following, rtol=1e-4, atol=1e-4)


@each_kind
def test_the_likeliest_tokens_are_noticed(tiny, kind):
    model, (prompt,) = tiny("gpt2", kind), PROMPTS[:1]
    start = encode(model, prompt)
    tokens = start
    for _ in range(3):
        tokens = torch.cat([tokens, model(tokens[None])[0, -1].argmax()[None]])
    said = tokens[len(start) :]
    ends = (said, said[:1], torch.cat([said[:2], said[2:] + 1]), torch.cat([said[:1] + 1, said[1:]]))
    assert score_prompts(model, [ScoringPrompt(start, ends)])[0].is_argmax.tolist() == [True, True, False, False]


@each_kind
@pytest.mark.parametrize(("max_batch_tokens", "n_runs"), [(1, 5), (40, 2), (4096, 1)])
def test_the_bound_holds_but_for_single_rows(tiny, kind, max_batch_tokens, n_runs):
    model, shapes = tiny("gpt2", kind), []

    def note(embeddings, hook):
        shapes.append(embeddings.shape[:2])

    with model.hooks([(EMBED, note)]):
        score_targets(model, PROMPTS, TARGETS, max_batch_tokens=max_batch_tokens)
    assert len(shapes) == n_runs
    assert all(rows * length <= max_batch_tokens or rows == 1 for rows, length in shapes)
    assert sum(rows for rows, _ in shapes) == len(PROMPTS)


def test_probability_and_mean_loss_follow_from_the_log_probability():
    scores = TargetScores(
        torch.tensor([-1.0, -6.0], dtype=torch.float64), torch.tensor([1, 3]), torch.tensor([True, False])
    )
    torch.testing.assert_close(scores.prob, torch.tensor([-1.0, -6.0], dtype=torch.float64).exp())
    torch.testing.assert_close(scores.nll, torch.tensor([1.0, 2.0], dtype=torch.float64))


def test_full_batches_are_not_padded(tiny):
    model, shapes = tiny("gpt2", KINDS[0]), []
    given = [ScoringPrompt(torch.full((length,), 5)) for length in (9, 3, 9, 3, 4) * 40]

    def note(embeddings, hook):
        shapes.append(tuple(embeddings.shape[:2]))

    with model.hooks([(EMBED, note)]):
        states = score_prompts(model, given)[1]
    assert shapes == [(80, 3), (40, 4), (80, 9)]
    torch.testing.assert_close(states[2], score_prompts(model, given[2:3])[1][0], rtol=1e-4, atol=1e-4)


@each_kind
def test_nothing_to_score_gives_no_scores(tiny, kind):
    scores = score_targets(tiny("gpt2", kind), [], [])
    assert scores.logprob.shape == scores.n_tokens.shape == (0,)


@each_kind
@pytest.mark.parametrize(
    ("prompts", "targets", "message"),
    [
        (["Rome is", "Paris is"], ["big"], "2 prompts but 1 targets; give one target per prompt"),
        (["Rome is"], [" "], "target is empty"),
        ([""], ["Rome"], "has no tokens"),
        (["Rome " * 200], ["big"], "context only 128"),
    ],
)
def test_what_cannot_be_scored_is_refused(tiny, kind, prompts, targets, message):
    with pytest.raises(InputError, match=message):
        score_targets(tiny("gpt2", kind), prompts, targets)


@each_kind
def test_a_prompt_and_target_that_just_fill_the_context_are_scored(tiny, kind):
    model = tiny("gpt2", kind)
    prompt = "The" + " the" * (model.cfg.n_ctx - 2)
    assert len(encode(model, prompt)) == model.cfg.n_ctx - 1
    assert score_targets(model, [prompt], ["the"]).logprob.isfinite().all()
    with pytest.raises(InputError, match=f"has {model.cfg.n_ctx + 1} tokens"):
        score_targets(model, [prompt], ["the the"])


@each_kind
def test_scores_of_the_reference_implementation(smollm2, shared_data, kind):
    golden = json.loads((shared_data / "golden/edit_0.json").read_text("utf-8"))
    record, before = golden["record"], golden["before"]
    rewrite = record["requested_rewrite"]
    prompts = {
        "rewrite": [rewrite["prompt"].format(rewrite["subject"])],
        "paraphrase": record["paraphrase_prompts"],
        "neighborhood": record["neighborhood_prompts"],
    }
    cases = [
        (prompt, rewrite[target]["str"], losses[target])
        for role, texts in prompts.items()
        for prompt, losses in zip(texts, before[role], strict=True)
        for target in ("target_new", "target_true")
    ]
    texts, targets, expected = zip(*cases, strict=True)
    scores = score_targets(smollm2(kind), texts, targets)
    assert len(expected) == 26
    torch.testing.assert_close(scores.nll, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=2e-5)


def test_a_score_that_is_not_finite_names_its_row(tiny):
    model, rows = tiny("gpt2", KINDS[0]), []

    @contextmanager
    def broken(chunk):
        rows[:] = chunk
        with model.hooks(fwd_hooks=[(EMBED, spoil)]):
            yield

    def spoil(embeddings, hook):
        embeddings[[row in (1, 4) for row in rows]] = torch.nan
        return embeddings

    with pytest.raises(NumericsError, match=r"^the score of row 1, 4 of 5 is not finite; look for NaN or inf weights"):
        score_targets(model, PROMPTS, TARGETS, row_context=broken)
    assert score_targets(model, PROMPTS, TARGETS).logprob.isfinite().all()


def test_edited_rows_that_are_not_finite_are_named(tiny):
    model = tiny("gpt2", KINDS[0])
    edit = RandomEdit(strength=1e38)(model, RECORDS[0].request)
    with pytest.raises(NumericsError, match="the score of row 1 of 2 is not finite"):
        score_edited(model, [edit], PROMPTS[:2], TARGETS[:2], [-1, 0])
