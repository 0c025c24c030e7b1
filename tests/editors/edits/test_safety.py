import logging
import re
from dataclasses import replace

import pytest
import torch
from support.edits import CONTEXTS, REQUEST, covariance, editor
from support.families import KINDS

from tl_rome.editors import Rome
from tl_rome.editors.edits.finish import finish_edit
from tl_rome.editors.edits.receipts.outcome import PLAIN_TEXTS, Outcome, probe_model
from tl_rome.editors.edits.receipts.safety import find_warnings
from tl_rome.editors.rank_one.value import OptimisedValue, optimise_value
from tl_rome.scoring import score_targets
from tl_rome.tokens import encode, encode_target

KIND = KINDS[0]


@pytest.mark.parametrize("kind", KINDS)
def test_outcome_equals_full_runs_of_each_text(tiny, kind):
    model = tiny("gemma2", kind)  # soft-capped logits, and a BOS token of its own
    found = probe_model(model, REQUEST)
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
    update, figures = ready.update_for(model, REQUEST, huge)
    before, options = probe_model(model, REQUEST), {"provenance": {}, "started": 0.0, "remedy": "another layer"}
    with caplog.at_level(logging.WARNING):
        receipt = finish_edit(model, REQUEST, [update], figures, before=before, **options).receipt
    assert any("output on ordinary text" in warning for warning in receipt.warnings)
    assert str(receipt).count("WARNING") == len(receipt.warnings) == len(caplog.records)


def test_each_sign_of_damage_by_itself(tiny):
    model = tiny("llama", KIND)
    receipt = replace(Rome(covariance(model), CONTEXTS)(model, REQUEST).receipt, warnings=())
    assert "WARNING" not in str(receipt)
    before, after = Outcome((), (), 3.0, 3.0), Outcome((), (), 3.1, 2.9)
    sound = replace(receipt, divisor_ratio=1.0, disturbance=0.1)
    assert find_warnings(sound, before, after) == ()
    assert find_warnings(replace(sound, divisor_ratio=None, disturbance=None), before, after) == ()
    for change, message in (
        ({"divisor_ratio": 0.05}, r"divisor is 0\.05 of what the covariance predicts"),
        ({"divisor_ratio": -1.0}, "points away"),
        ({"disturbance": 3.0}, "changes by 300% of its size"),
        ({"disturbance": float("nan")}, "changes by nan"),
        ({"text_nll": 6.0}, r"cost 6\.00 nats per token, 3\.00 before"),
        ({"text_nll": float("nan")}, r"cost nan nats"),
        ({"text_entropy": 0.2}, r"collapses from 3\.00 to 0\.20 nats"),
        ({"text_entropy": float("nan")}, r"collapses from 3\.00 to nan nats"),
    ):
        texts = change.keys() <= {"text_nll", "text_entropy"}
        figures, found = (sound, replace(after, **change)) if texts else (replace(sound, **change), after)
        (warning,) = find_warnings(figures, before, found)
        assert re.search(message, warning)
