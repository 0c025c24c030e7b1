"""Mass editing and batches: what is scored is what the editor itself writes, and a run goes on where it ended."""

from dataclasses import replace

import pytest
import torch
from support.evaluation import RECORDS, RandomEdit
from support.families import KINDS, SENTENCES

from tl_rome.counterfact.experiments import many_facts
from tl_rome.counterfact.experiments.mass import mass_edits
from tl_rome.counterfact.experiments.sequential import sequential_edits
from tl_rome.editors import ALPHAEDIT, EMMET, MEMIT, MEMIT_SEQ, KeyMemory, MassEditor, SharedValues
from tl_rome.editors.covariance.estimation import estimate_covariances
from tl_rome.editors.edits.receipts.outcome import probe_model
from tl_rome.errors import InputError, StorageError
from tl_rome.running.matrices import w_out
from tl_rome.scoring import score_targets

KIND = KINDS[0]
LAYERS = (0, 1)
REQUESTS = [record.request for record in RECORDS]
SETTINGS = {"covariance_weight": 1.0, "max_evaluations": 4}
PRESETS = {
    "memit": replace(MEMIT, **SETTINGS),
    "memit_seq": replace(MEMIT_SEQ, **SETTINGS),
    "emmet": replace(EMMET, **SETTINGS),
    "alphaedit": replace(ALPHAEDIT, max_evaluations=4),
}


def editor_for(model, preset="memit", **more):
    found = estimate_covariances(model, LAYERS, SENTENCES, source="sentences", progress=False)
    return MassEditor(found, ("", "He said that. "), PRESETS[preset], **more)


def weights(model):
    return [w_out(model, layer).detach().clone() for layer in range(model.cfg.n_layers)]


def same(model, before):
    return all(torch.equal(old, new) for old, new in zip(before, weights(model), strict=True))


def seen(model, unedited, first):
    """By hand: NLL of plain sentences, growth of the weights, and ES of the first facts in the model as it stands."""
    changes = zip(weights(model), unedited, strict=True)
    hits = []
    for record in RECORDS[:first]:
        rewrite = record.requested_rewrite
        prompts, targets = [record.request.fact.prompt] * 2, [rewrite.target_new.str, rewrite.target_true.str]
        new, true = score_targets(model, prompts, targets).nll.tolist()
        hits.append(100.0 * (new < true))
    return (
        probe_model(model, REQUESTS[0]).text_nll,
        max(float((now - old).norm() / old.norm()) for now, old in changes),
        sum(hits) / first,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["memit", "emmet", "alphaedit"])
def test_each_number_is_a_batch_of_its_own(fresh_tiny, kind, preset):
    model = fresh_tiny("gpt2", kind)
    editor, before = editor_for(model, preset), weights(model)
    result = mass_edits(model, RECORDS, editor, (1, 3), progress=False)
    assert same(model, before)
    assert result.growth[0] == 0.0
    assert result.first is None
    for place, count in enumerate((1, 3)):
        with editor(model, REQUESTS[:count]).applied(model):
            nll, growth, es = seen(model, before, count)
        assert result.text_nll[1 + place] == pytest.approx(nll, rel=1e-4)
        assert result.growth[1 + place] == pytest.approx(growth, rel=1e-3)
        assert result.curve.rows[place]["ES"].mean == pytest.approx(es)
        assert result.curve.rows[place]["ES"].n == count
    assert result.growth[2] > 0.01


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", ["memit", "memit_seq"])
def test_batch_after_batch_with_the_memory_of_those_before(fresh_tiny, kind, preset):
    model = fresh_tiny("gpt2", kind)
    editor, before = editor_for(model, preset), weights(model)
    result = sequential_edits(model, RECORDS, editor, (2, 4), batch=2, progress=False)
    assert same(model, before)
    memory, made = KeyMemory.empty(model, LAYERS), []
    for place, start in enumerate((0, 2)):
        batch = REQUESTS[start : start + 2]
        if preset == "memit_seq":
            edit, memory = editor(model, batch, memory=memory)
        else:
            edit = editor(model, batch)
        edit.apply(model)
        made.append(edit)
        nll, growth, es = seen(model, before, 2)
        assert result.text_nll[1 + place] == pytest.approx(nll, rel=1e-4)
        assert result.growth[1 + place] == pytest.approx(growth, rel=1e-3)
        assert result.first is not None
        assert result.first.rows[place]["ES"].mean == pytest.approx(es)
        assert (result.first.rows[place]["ES"].n, result.curve.rows[place]["ES"].n) == (2, start + 2)
    for edit in reversed(made):
        edit.undo(model)
    grid = result.grid()
    assert grid.header[-4:] == ("first ES", "text NLL", "entropy", "|dW|/|W|")
    assert "first ES is ES of the first 2 facts" in grid.caption
    assert type(result).from_dict(result.to_dict()) == result


class Stopping:
    """Values are found a few times, then the run is interrupted."""

    def __init__(self, left):
        self.left, self.shared = left, SharedValues()

    def __call__(self, *arguments, **options):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.shared(*arguments, **options)


def test_an_interrupted_run_of_batches_goes_on_with_its_memory(fresh_tiny, tmp_path, monkeypatch):
    model = fresh_tiny("gpt2", KIND)
    editor, before = editor_for(model, "memit_seq"), weights(model)
    options = {"batch": 1, "name": "seq", "progress": False}
    whole = sequential_edits(model, RECORDS, editor, (1, 2, 4), **options)
    finder = Stopping(2)
    monkeypatch.setattr("tl_rome.counterfact.experiments.sequential.optimise_values", finder)
    with pytest.raises(KeyboardInterrupt):
        sequential_edits(model, RECORDS, editor, (1, 2, 4), store=tmp_path, **options)
    assert same(model, before)
    assert [path.name for path in (tmp_path / "keys").iterdir()] == ["2.safetensors"]
    finder.left = 2
    again = sequential_edits(model, RECORDS, editor, (1, 2, 4), store=tmp_path, **options)
    assert again == whole
    assert finder.left == 0
    with pytest.raises(StorageError, match="made with batch"):
        sequential_edits(model, RECORDS, editor, (2, 4), store=tmp_path, **{**options, "batch": 2})


def test_an_interrupted_mass_run_goes_on_and_finds_each_value_once(fresh_tiny, tmp_path):
    model, finder = fresh_tiny("gpt2", KIND), Stopping(1)
    editor = editor_for(model, find_values=finder)
    with pytest.raises(KeyboardInterrupt):
        mass_edits(model, RECORDS, editor, (1, 3), name="memit", store=tmp_path, progress=False)
    finder.left = 1
    found = mass_edits(model, RECORDS, editor, (1, 3), name="memit", store=tmp_path, progress=False)
    assert found == mass_edits(model, RECORDS, editor, (1, 3), name="memit", store=tmp_path, progress=False)
    assert len(finder.shared._found) == 3


class Worse(RandomEdit):
    """The second edit is far stronger."""

    def __call__(self, model, request):
        strength = self.strength if request.subject == REQUESTS[1].subject else 0.01
        return RandomEdit(strength=strength)(model, request)


def test_other_editors_stand_beside_one_after_another(fresh_tiny):
    model = fresh_tiny("gpt2", KIND)
    both = [run(model, RECORDS, RandomEdit(), (1, 3), progress=False) for run in (mass_edits, sequential_edits)]
    assert both[0] == both[1]


def test_a_broken_model_ends_the_run_and_what_is_done_is_kept(fresh_tiny, tmp_path, caplog):
    model = fresh_tiny("gpt2", KIND)
    options = {"name": "strong", "store": tmp_path, "progress": False}
    before, strong = weights(model), Worse(strength=300.0)
    whole = sequential_edits(model, RECORDS, strong, (1, 2, 3), max_nll_rise=None, name="strong", progress=False)
    rises = [nll - whole.text_nll[0] for nll in whole.text_nll[1:]]
    assert rises[0] < rises[1]
    bound = (rises[0] + rises[1]) / 2
    found, again = (
        sequential_edits(model, RECORDS, strong, (1, 2, 3), max_nll_rise=bound, **options) for _ in range(2)
    )
    assert again == found, "from the store"
    assert found.curve.x == (1, 2)
    assert found.text_nll == whole.text_nll[:3]
    assert found.stopped is not None
    assert found.stopped.startswith("stopped after 2 facts: the NLL of plain sentences has risen from")
    assert found.stopped in found.grid().caption
    assert f"strong: {found.stopped}" in caplog.text
    assert same(model, before)
    further = sequential_edits(model, RECORDS, strong, (1, 2, 3), max_nll_rise=None, **options)
    assert (further.text_nll, further.stopped) == (whole.text_nll, None)


def test_scores_that_are_not_finite_end_the_run_after_the_first_number(fresh_tiny):
    editor = Worse(strength=1e38)
    found = sequential_edits(fresh_tiny("gpt2", KIND), RECORDS, editor, (1, 3), name="worse", progress=False)
    assert found.curve.x == (1,)
    assert found.stopped is not None
    assert found.stopped.startswith("stopped before 3 facts: ")


def test_what_is_refused(fresh_tiny, monkeypatch):
    def score(*_):
        raise AssertionError("nothing is scored before all facts are looked at")

    monkeypatch.setattr(many_facts, "measured_line", score)
    model = fresh_tiny("gpt2", KIND)
    twice = [RECORDS[0], replace(RECORDS[0], case_id=99)]
    with pytest.raises(InputError, match="occurs twice"):
        mass_edits(model, twice, editor_for(model), (1, 2), progress=False)
    with pytest.raises(InputError, match="counts 3 are no multiples of batch 2"):
        sequential_edits(model, RECORDS, editor_for(model), (2, 3), batch=2, progress=False)
    within = replace(RECORDS[1].requested_rewrite, prompt="{}le is in", subject="The Space Need")
    odd = [RECORDS[0], replace(RECORDS[1], requested_rewrite=within)]
    with pytest.raises(InputError, match="ends inside the token"):
        mass_edits(model, odd, editor_for(model), (2,), progress=False)
    with pytest.raises(InputError, match="numbers of facts from 1 to 5"):
        mass_edits(model, RECORDS, editor_for(model), (1, 6), progress=False)
