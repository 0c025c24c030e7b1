"""An editor that leaves its edit in the model ends the run, and the model is as it was, bit for bit."""

from dataclasses import dataclass

import pytest
import torch
from support.evaluation import NUMBERS, RECORDS, RandomEdit, run
from support.families import KINDS

from tl_rome.counterfact import load_results, sequential_edits
from tl_rome.editors import FT, EditSequence, FineTune, compose
from tl_rome.errors import EditStateError, NumericsError
from tl_rome.running.matrices import w_out

LEFT = r"^the editor 'leaving' left the model's weights changed; the weights are put back. An editor returns its edit"


def applied(model, request):
    """Applies its edit and returns it."""
    edit = RandomEdit()(model, request)
    edit.apply(model)
    return edit


def composed(model, request):
    """The same with two edits."""
    edits = [RandomEdit(layer)(model, request) for layer in (0, 1)]
    for edit in edits:
        edit.apply(model)
    return compose(edits)


def written(model, request):
    """Writes W_out, of another layer than its edit's."""
    with torch.no_grad():
        w_out(model, 0).add_(0.5)
    return RandomEdit()(model, request)


def both(model, request):
    """Applies its edit and writes on top of it."""
    edit = applied(model, request)
    with torch.no_grad():
        w_out(model, 1).add_(0.5)
    return edit


def failing(model, request):
    """Fails with its edit in the model."""
    applied(model, request)
    raise NumericsError("no edit")


def replaced(model, request):
    """Returns nothing."""
    written(model, request)


EDITORS = (applied, composed, written, both, failing, replaced)


@dataclass(frozen=True)
class After:
    """Does its work from the fourth edit on."""

    editor: object
    calls: list

    def __call__(self, model, request):
        self.calls.append(request)
        return (self.editor if len(self.calls) > 3 else RandomEdit())(model, request)


def weights(model):
    return [w_out(model, layer).detach().clone() for layer in range(model.cfg.n_layers)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("editor", EDITORS, ids=lambda editor: editor.__name__)
def test_an_edit_that_is_left_in_the_model_ends_the_run(fresh_tiny, tmp_path, kind, editor):
    model = fresh_tiny("gpt2", kind)
    before, leaving = weights(model), After(editor, [])
    with pytest.raises(EditStateError, match=LEFT):
        run(model, {"leaving": leaving}, store=tmp_path)
    assert all(map(torch.equal, weights(model), before))
    assert [result.case_id for result in load_results(tmp_path)] == NUMBERS[:2], "nothing of its batch is stored"
    assert run(model, RandomEdit()) == run(fresh_tiny("gpt2", kind), RandomEdit())


@pytest.mark.parametrize("editor", EDITORS, ids=lambda editor: editor.__name__)
def test_so_it_does_among_sequential_edits(fresh_tiny, editor):
    model = fresh_tiny("gpt2", KINDS[0])
    before = weights(model)
    with pytest.raises(EditStateError, match=LEFT):
        sequential_edits(model, RECORDS, After(editor, []), (5,), name="leaving", progress=False)
    assert all(map(torch.equal, weights(model), before))


class Interrupted(FineTune):
    """An editor that is stopped with its edit in the model."""

    def each(self, model, requests, **options):
        written(model, requests[0])
        raise KeyboardInterrupt


def test_ctrl_c_in_such_an_editor_puts_the_weights_back(fresh_tiny):
    model = fresh_tiny("gpt2", KINDS[0])
    before = weights(model)
    with pytest.raises(KeyboardInterrupt):
        run(model, {"leaving": Interrupted(1, FT)})
    assert all(map(torch.equal, weights(model), before))


class Own(RandomEdit):
    """An editor of this package, as far as the guard can tell: no copy is kept."""

    __module__ = "tl_rome.editors.own"

    def __call__(self, model, request):  # type: ignore[override]
        made.append(composed(model, request))
        return made[-1]


made: list[EditSequence] = []


def test_edits_that_are_still_applied_are_undone_without_copies(fresh_tiny):
    model = fresh_tiny("gpt2", KINDS[0])
    before = weights(model)
    with pytest.raises(EditStateError, match=LEFT):
        run(model, {"leaving": Own()}, RECORDS[:1])
    assert all(map(torch.equal, weights(model), before))
    assert not any(edit.is_applied(model) for edit in made[-1].edits)


def test_no_weights_are_copied_for_editors_of_this_package(fresh_tiny, monkeypatch):
    monkeypatch.delattr("tl_rome.counterfact.evaluation.guard._copies")
    run(fresh_tiny("gpt2", KINDS[0]), {"ft": FineTune(1, FT)}, RECORDS[:1])
    with pytest.raises(NameError):
        run(fresh_tiny("gpt2", KINDS[0]), {"ft": FineTune(1, FT), "other": RandomEdit()}, RECORDS[:1])
