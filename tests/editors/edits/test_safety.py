import logging
import re
from dataclasses import replace

import pytest
import torch
from support.edits import CONTEXTS, REQUEST, covariance, editor
from support.families import KINDS

from tl_rome.editors import Rome
from tl_rome.editors.edits.outcome import PLAIN_TEXTS, measure
from tl_rome.editors.edits.safety import find_warnings, with_outcome
from tl_rome.editors.rank_one.value import OptimisedValue, optimise_value
from tl_rome.scoring import score_targets
from tl_rome.tokens import encode, encode_target

KIND = KINDS[0]


@pytest.mark.parametrize("kind", KINDS)
def test_outcome_equals_full_runs_of_each_text(tiny, kind):
    model = tiny("gemma2", kind)  # soft-capped logits, and a BOS token of its own
    found = measure(model, REQUEST)
    expected = score_targets(model, [REQUEST.fact.prompt] * 2, [REQUEST.target_new, REQUEST.target_true]).prob
    assert found.probs == pytest.approx(expected.tolist(), rel=1e-5)
    prompt = encode(model, REQUEST.fact.prompt)
    order = model(prompt[None])[0, -1].argsort(descending=True).tolist()
    targets = [encode_target(model, text, REQUEST.fact.prompt)[0] for text in (REQUEST.target_new, REQUEST.target_true)]
    assert found.ranks == tuple(order.index(int(target)) + 1 for target in targets)
    losses, entropies = [], []
    for text in PLAIN_TEXTS:
        tokens = encode(model, text)
        logprobs = model(tokens[None])[0, :-1].log_softmax(-1)
        losses += (-logprobs[torch.arange(len(tokens) - 1), tokens[1:]]).tolist()
        entropies += torch.distributions.Categorical(logits=logprobs).entropy().tolist()
    assert found.text_nll == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.text_entropy == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)


def test_an_edit_that_disables_the_model_is_warned_of_before_it_is_used(tiny, caplog):
    model = tiny("llama", KIND)
    ready = editor(model)
    found = optimise_value(model, ready.layer, REQUEST.fact, CONTEXTS, ready.config)
    huge = OptimisedValue(found.initial + 300 * (found.value - found.initial), found.initial, found.losses)
    edit = ready.edit_for(model, REQUEST, huge)
    before = measure(model, REQUEST)
    with edit.applied(model), caplog.at_level(logging.WARNING):
        receipt = with_outcome(edit.receipt, before, measure(model, REQUEST))
    assert any("output on ordinary text" in warning for warning in receipt.warnings)
    assert str(receipt).count("WARNING") == len(receipt.warnings) == len(caplog.records)


def test_each_sign_by_itself(tiny):
    model = tiny("llama", KIND)
    sound = replace(
        Rome(covariance(model), CONTEXTS)(model, REQUEST).receipt,
        divisor_ratio=1.0,
        disturbance=0.1,
        text_nll=(3.0, 3.1),
        text_entropy=(3.0, 2.9),
        warnings=(),
    )
    assert find_warnings(sound) == ()
    assert "WARNING" not in str(sound)
    nothing = replace(sound, divisor_ratio=None, disturbance=None, text_nll=None, text_entropy=None)
    assert find_warnings(nothing) == ()
    for change, message in (
        ({"divisor_ratio": 0.05}, r"divisor is 0\.05 of what the covariance predicts"),
        ({"divisor_ratio": -1.0}, "points away"),
        ({"disturbance": 3.0}, "changes by 300% of its size"),
        ({"disturbance": float("nan")}, "changes by nan"),
        ({"text_nll": (3.0, 6.0)}, r"cost 6\.00 nats per token, 3\.00 before"),
        ({"text_entropy": (3.0, 0.2)}, r"collapses from 3\.00 to 0\.20 nats"),
    ):
        (warning,) = find_warnings(replace(sound, **change))
        assert re.search(message, warning)
