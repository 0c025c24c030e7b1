from dataclasses import replace

import pytest
from support.edits import CONTEXTS, REQUEST, covariance
from support.families import KINDS

from tl_rome.editors import P_ROME, R_ROME, RELEASED, Rome, SharedValues
from tl_rome.editors.rank_one import value as value_module
from tl_rome.facts import EditRequest

KIND = KINDS[0]
OTHER = EditRequest("{} was founded in", "The Space Needle", "Rome")


@pytest.fixture
def steps(monkeypatch):
    """How many facts each optimisation was asked for."""
    asked, optimise = [], value_module.Rewrite.make
    monkeypatch.setattr(value_module.Rewrite, "make", lambda *args: (asked.append(args[1]), optimise(*args))[1])
    return asked


def test_editors_that_differ_in_keys_share_v_and_give_the_edits_that_they_give_alone(tiny, steps):
    model, shared = tiny("llama", KIND), SharedValues()
    for config in (RELEASED, R_ROME, P_ROME):
        editor = Rome(covariance(model), CONTEXTS, config)
        found = replace(editor, find_values=shared)(model, REQUEST)
        assert len(steps) == 1
        assert found.updates[0].delta.equal(editor(model, REQUEST).updates[0].delta)
        del steps[1:]


def test_what_v_depends_on_is_kept_apart(tiny, steps):
    model, shared = tiny("llama", KIND), SharedValues()
    editor = Rome(covariance(model), CONTEXTS, RELEASED, find_values=shared)
    for changed in (
        editor,
        replace(editor, config=replace(RELEASED, norm_penalty=0.1)),
        replace(editor, contexts=("",)),
        replace(editor, covariance=covariance(model, 2)),
    ):
        before = len(steps)
        changed.each(model, [REQUEST, OTHER, REQUEST])
        assert len(steps) == before + 2
    with editor(model, REQUEST).applied(model):
        before = len(steps)
        shared(model, editor.layer, [REQUEST.fact], CONTEXTS, RELEASED)
        assert len(steps) == before + 1, "v* of the edited model is another"
