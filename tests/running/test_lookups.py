"""Hook points are looked up once a call: a bridge walks all of its modules for that."""

import pytest
import torch
from support.edits import REQUEST, editor
from support.evaluation import QUICK, RECORDS
from support.families import KINDS
from support.traces import trace

from tl_rome.counterfact import evaluate
from tl_rome.facts import Fact

SHORT, LONG = Fact("In {} is", "Eiffel Tower"), Fact("In the summer of that year {} is in the city of", "Eiffel Tower")


@pytest.fixture
def lookups(monkeypatch):
    """Give `lookups(model, work)`: how often some work asks the model for its table of hook points."""

    def count(model, work):
        seen, own = [], type(model).hook_dict if hasattr(type(model), "hook_dict") else None
        table = model.hook_dict if own is None else None

        def asked(self):
            seen.append(self)
            return table if own is None else own.fget(self)

        with monkeypatch.context() as patched:
            patched.setattr(type(model), "hook_dict", property(asked, lambda self, value: None), raising=False)
            work()
            patched.setattr(type(model), "hooks", None)  # TransformerLens's own would look them up once more each
            work()
        return len(seen) / 2

    return count


@pytest.mark.parametrize("kind", KINDS)
def test_look_ups_do_not_grow_with_the_work(tiny, kind, lookups):
    model = tiny("gpt2", kind)
    rome = editor(model)

    def measured(records):
        return lambda: evaluate(model, records, rome, config=QUICK, progress=False, batch_size=len(records))

    pairs = [
        (lambda: trace(model, fact=SHORT), lambda: trace(model, fact=LONG)),
        (lambda: trace(model), lambda: trace(model, "mlp_out", window=3)),
        (lambda: rome(model, REQUEST), lambda: rome.each(model, [REQUEST, REQUEST], progress=False)),
        (measured(RECORDS[:1]), measured(RECORDS[:4])),
    ]
    for small, large in pairs:
        few = lookups(model, small)
        assert 1 <= few <= 8
        assert lookups(model, large) == few
    assert torch.is_grad_enabled()
