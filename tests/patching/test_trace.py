"""What a trace says, what it refuses, and that the model it borrows is left as it was."""

import warnings

import pytest
import torch
from support.compare import Found, relative_error
from support.families import FAMILIES, FAMILY_KINDS, KINDS, N_CTX, N_LAYERS
from support.traces import FACT, trace

from tl_rome.errors import InputError, NumericsError, SubjectError, UnsupportedModelError
from tl_rome.facts import Fact
from tl_rome.patching import AddedNoise, GaussianNoise, noise_scale
from tl_rome.running.matrices import w_out
from tl_rome.storage.files import fingerprint
from tl_rome.tokens import encode_fact, encode_target

SWEPT = ("resid_post", "mlp_out", "attn_out")
each_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_what_restoring_cannot_or_must_do(tiny, family, kind):
    model = tiny(family, kind)
    result = trace(model)
    before = result.scores[:, : result.subject.start]
    assert before.numel() > 0
    torch.testing.assert_close(before, torch.full_like(before, result.corrupted_score), rtol=1e-5, atol=0)
    assert result.scores[-1, -1].item() == pytest.approx(result.clean_score, rel=1e-5)
    others = result.scores[-1, :-1]  # the last layer's other positions are never read
    torch.testing.assert_close(others, torch.full_like(others, result.corrupted_score), rtol=1e-5, atol=0)


@each_kind
def test_the_result_says_what_was_done(tiny, kind):
    model = tiny("gpt2", kind)
    prompt = encode_fact(model, FACT)
    result = trace(model, "attn_out", clipping="draft")
    assert result.scores.shape == (N_LAYERS, len(prompt.tokens))
    assert result.scores.dtype == torch.float64
    assert (result.component, result.window, result.clipping, result.method) == ("attn_out", 10, "draft", "incremental")
    assert (result.labels, result.subject, result.prepend_bos) == (prompt.labels, prompt.subject, False)
    assert (result.samples, result.corruption) == (2, "GaussianNoise(sigma=0.7, samples=2)")
    assert result.model == fingerprint(model)
    predicted = model.tokenizer.decode(model(prompt.tokens[None])[0, -1].argmax())
    assert result.answer == result.predicted == predicted
    assert trace(model).window == 1


def test_defaults_are_ten_draws_at_the_models_noise_scale(tiny):
    model = tiny("gpt2", KINDS[0])
    default = trace(model, corruption=None)
    given = trace(model, corruption=GaussianNoise(noise_scale(model), samples=10))
    assert default.corruption == given.corruption
    assert torch.equal(default.scores, given.scores)


@each_kind
def test_seeds_decide_the_scores(tiny, kind):
    model = tiny("gpt2", kind)
    assert torch.equal(trace(model, seed=1).scores, trace(model, seed=1).scores)
    assert not torch.equal(trace(model, seed=1).scores, trace(model, seed=2).scores)


@each_kind
def test_the_first_token_of_a_given_target_is_scored(tiny, kind):
    model = tiny("gpt2", kind)
    fact = Fact(FACT.template, FACT.subject, "Rome Paris")
    tokens = encode_fact(model, fact).tokens
    first = encode_target(model, fact.target, fact.prompt)[0]
    result = trace(model, fact=fact)
    assert result.clean_score == pytest.approx(model(tokens[None])[0, -1].softmax(-1)[first].item(), rel=1e-5)
    assert result.scores[-1, -1].item() == pytest.approx(result.clean_score, rel=1e-5)
    assert result.answer != result.predicted == trace(model).answer


@each_kind
@pytest.mark.parametrize(("inner", "outer"), [("mlp.hook_post", "mlp_out"), ("attn.hook_z", "attn_out")])
def test_any_hook_point_of_a_block_can_be_restored(tiny, kind, inner, outer):
    # The outer activation is a linear function of the inner one, so that restoring either is the same.
    model = tiny("gpt2", kind, torch.float64)
    result = trace(model, inner, window=2)
    assert relative_error(result.scores, trace(model, outer, window=2).scores) < 1e-6


@each_kind
@pytest.mark.parametrize("component", ["resid_post", "mlp_out"])
def test_a_bos_token_shifts_the_subject(fresh_tiny, kind, component):
    without, model = (fresh_tiny("gpt2", kind, torch.float64, prepend_bos=bos) for bos in (False, True))
    plain_start = encode_fact(without, FACT).subject.start
    result = trace(model, component, window=2)
    assert result.prepend_bos
    assert result.labels[0] == model.tokenizer.bos_token
    assert result.subject.start == plain_start + 1
    assert relative_error(result.scores, trace(model, component, window=2, method="plain").scores) < 1e-6


@pytest.mark.skipif("hooked" not in KINDS, reason="this TransformerLens has no HookedTransformer")
def test_a_model_of_attention_alone(tiny):
    shape = {"n_layers": 3, "d_model": 16, "n_ctx": 32, "d_head": 8, "n_heads": 2, "d_vocab": 600}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        config = HookedTransformerConfig(**shape, attn_only=True, device="cpu")
        model = HookedTransformer(config, tiny("gpt2", "hooked").tokenizer)
    model.cfg.default_prepend_bos = False
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    swept, plain = (trace(model, "attn_out", window=2, method=method) for method in ("incremental", "plain"))
    assert (swept.method, plain.method) == ("incremental", "plain")
    assert relative_error(swept.scores, plain.scores) < 1e-4
    with pytest.raises(UnsupportedModelError, match="hook_mlp_out"):
        trace(model, "mlp_out")


@pytest.mark.skipif(len(KINDS) < 2, reason="this TransformerLens has one class")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("component", ["mlp_out", "attn_out"])
def test_both_classes_give_the_same_trace(tiny, family, component):
    hooked, bridge = (trace(tiny(family, kind), component, window=2) for kind in KINDS)
    assert relative_error(bridge.scores, hooked.scores) < 1e-4
    assert bridge.clean_score == pytest.approx(hooked.clean_score, rel=1e-4)
    assert bridge.corrupted_score == pytest.approx(hooked.corrupted_score, rel=1e-4)
    assert (bridge.model, bridge.labels, bridge.answer) == (hooked.model, hooked.labels, hooked.answer)


# ------------------------------------------------------------------------------------------------------------- warnings


@each_kind
def test_another_answer_than_the_models_own_is_logged(tiny, kind, caplog):
    model = tiny("gpt2", kind)
    own = trace(model)
    assert "first choice" not in caplog.text
    trace(model, fact=Fact(FACT.template, FACT.subject, "Łucja"))
    assert f"the model's first choice is {own.predicted!r}, not the traced" in caplog.text


@each_kind
def test_a_corruption_that_helps_the_answer_is_logged(tiny, kind, caplog):
    outcomes = set()
    for target in ("Rome", "Paris", "French"):
        caplog.clear()
        result = trace(tiny("gpt2", kind), fact=Fact(FACT.template, FACT.subject, target))
        helped = result.corrupted_score >= result.clean_score
        assert (f"corrupting the subject did not lower the score of {result.answer!r}" in caplog.text) is helped
        outcomes.add(helped)
    assert outcomes == {True, False}, "both outcomes should occur"


@each_kind
@pytest.mark.parametrize("method", ["incremental", "plain"])
def test_progress_counts_positions_and_is_shown_only_when_asked_for(tiny, kind, method, capsys):
    result = trace(tiny("gpt2", kind), method=method)
    assert capsys.readouterr() == ("", "")
    trace(tiny("gpt2", kind), method=method, progress=True)
    assert f"{len(result.labels)}/{len(result.labels)}" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ borrowed models


class Boom(Exception):
    pass


def boom(*_args):
    raise Boom


@each_kind
@pytest.mark.parametrize(
    ("component", "method"), [*((component, "incremental") for component in SWEPT), ("mlp.hook_post", "plain")]
)
def test_the_model_is_left_as_it_was(fresh_tiny, kind, component, method):
    model = fresh_tiny("gemma2", kind)
    model.blocks[1].mlp.W_out.requires_grad_(True)
    model.add_hook("blocks.0.hook_resid_pre", lambda resid, hook: resid * 1.1)  # the user's own
    found = Found(model)
    trace(model, component, window=2, method=method)
    found.check()


@each_kind
@pytest.mark.parametrize("method", ["incremental", "plain"])
def test_the_model_is_left_as_it_was_after_an_exception(tiny, kind, method):
    model = tiny("gpt2", kind)
    found = Found(model)
    with pytest.raises(Boom):
        trace(model, corruption=boom, method=method)
    found.check()
    with pytest.raises(Boom):
        trace(model, "mlp_out", metric=boom, method=method)
    calls = []

    def later(value, hook):
        calls.append(len(value))
        if len(calls) > 3:
            boom()

    with pytest.raises(Boom), model.hooks([("blocks.2.hook_mlp_out", later)]):
        trace(model, "mlp_out", method=method, max_batch_tokens=9)
    found.check()


# --------------------------------------------------------------------------------------------------------------- errors


@each_kind
@pytest.mark.parametrize(
    ("component", "options", "message"),
    [
        ("mlp_outt", {}, r"no hook point 'blocks.0.hook_mlp_outt'; closest: .*hook_mlp_out"),
        ("mlp_out", {"window": 0}, "window is 0; give a number of at least 1"),
        ("mlp_out", {"fact": Fact("the " * N_CTX + "{} is", "Rome")}, f"context only {N_CTX}; shorten the text"),
        ("mlp_out", {"fact": Fact("{}n is", "Rome", "x")}, "ends inside the token"),
        ("mlp_out", {"corruption": AddedNoise(torch.zeros(2, 7, 32))}, r"noise is for \(7, 32\) .*, the subject has"),
        (
            "mlp_out",
            {"corruption": lambda embeddings, generator: embeddings},
            r"corruption returned shape \(2, 32\); it must be \(samples, 2, 32\)",
        ),
        ("mlp_out", {"corruption": lambda embeddings, generator: embeddings[None][:0]}, r"returned shape \(0, 2, 32\)"),
    ],
)
def test_what_cannot_be_traced_is_refused(tiny, kind, component, options, message):
    model = tiny("gpt2", kind)
    found = Found(model)
    with pytest.raises(InputError, match=message):
        trace(model, component, **options)
    found.check()


def test_an_absent_subject_is_refused_before_any_model_is_needed():
    with pytest.raises(SubjectError, match="does not occur in"):
        Fact.from_prompt("In Rome they speak", "Paris")


def test_another_class_of_model_is_refused():
    with pytest.raises(UnsupportedModelError, match="neither a HookedTransformer nor a TransformerBridge"):
        trace(torch.nn.Linear(1, 1))


@each_kind
@pytest.mark.parametrize("method", ["incremental", "plain"])
def test_weights_and_corruptions_that_are_not_finite_are_refused(fresh_tiny, kind, method):
    model = fresh_tiny("gpt2", kind)
    with pytest.raises(NumericsError, match=r"score is not finite.*corruption"):
        trace(model, method=method, corruption=lambda embeddings, generator: embeddings[None] * float("nan"))
    with torch.no_grad():
        w_out(model, 2)[3, 4] = float("nan")
    with pytest.raises(NumericsError, match="not finite; look for NaN or inf weights"):
        trace(model, method=method)
