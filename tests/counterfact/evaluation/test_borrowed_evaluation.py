"""A model in train mode gives the results of one in eval mode, and is in train mode afterwards."""

from dataclasses import replace

import pytest
import torch
from support.evaluation import RECORDS, SHORT, RandomEdit

from tl_rome.counterfact import continue_side_by_side, evaluate, sequential_edits, sweep_editors
from tl_rome.counterfact.evaluation import evaluate as module
from tl_rome.editors import FT, FineTune
from tl_rome.running.borrowed import borrowed

TUNED = FineTune(0, replace(FT, max_steps=2, learning_rate=0.02))


def evaluated(model):
    results = evaluate(model, RECORDS[:3], {"ft": TUNED}, config=SHORT, batch_size=2, progress=False)
    return [replace(result, seconds=0.0).to_dict() for result in results]


def sequential(model):
    return sequential_edits(model, RECORDS[:3], TUNED, (1, 3), progress=False).to_dict()


def swept(model):
    return sweep_editors(model, RECORDS[:3], {0: TUNED}, progress=False).to_dict()


def side_by_side(model):
    edits = {"edit": RandomEdit()(model, RECORDS[0].request)}
    generator = torch.Generator().manual_seed(0)
    return continue_side_by_side(
        model, ["The Louvre"], edits, new_tokens=9, generator=generator, progress=False
    ).to_dict()


@pytest.mark.parametrize("call", [evaluated, sequential, swept, side_by_side])
def test_train_mode_changes_nothing(fresh_tiny, call):
    model = fresh_tiny("gpt2", "bridge")
    expected = call(model)
    model.original_model.train()
    dropouts = [part for part in model.original_model.modules() if isinstance(part, torch.nn.Dropout) and part.p > 0]
    assert dropouts, "a model that drops nothing shows nothing"
    assert repr(call(model)) == repr(expected)
    assert all(part.training for part in dropouts)


def test_a_model_is_borrowed_once_for_each_batch(fresh_tiny, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "borrowed", lambda model: calls.append(model) or borrowed(model))
    evaluate(fresh_tiny("gpt2", "bridge"), RECORDS, RandomEdit(), config=SHORT, batch_size=2, progress=False)
    assert len(calls) == 6, "three batches of the unedited model, and three of the edited one"
