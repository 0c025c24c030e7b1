import pytest
from support.compare import same, weights
from support.edits import REQUEST, editor, random_edit
from support.families import KINDS

from tl_rome.editors import Edit, EditSequence, LowRankUpdate, compose
from tl_rome.errors import EditStateError, InputError, ModelMismatchError, NumericsError, StorageError
from tl_rome.facts import EditRequest
from tl_rome.scoring import score_targets

KIND = KINDS[0]


@pytest.fixture(scope="module")
def edits(tiny):
    first = editor(tiny("llama", KIND))(tiny("llama", KIND), REQUEST)
    return first, random_edit(first, 2, 1), random_edit(first, 1, 2)


def test_applying_is_one_edit_after_another_and_undoing_is_bit_exact(fresh_tiny, edits):
    model = fresh_tiny("llama", KIND)
    before = weights(model)
    for edit in edits:
        edit.apply(model)
    expected = weights(model)
    for edit in reversed(edits):
        edit.undo(model)
    with compose(edits).applied(model) as edited:
        assert same(weights(edited), expected)
    assert same(weights(model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_facts_written_on_top_of_each_other(fresh_tiny, kind):
    """A second fact, found with the first one in place, is kept together with it."""
    model = fresh_tiny("gpt2", kind)
    ready = editor(model)
    first = ready(model, REQUEST)
    other = EditRequest("{} is located in the city of", "Big Ben", "Paris")
    with first.applied(model):
        second = ready(model, other)
    prompts = [REQUEST.fact.prompt, other.fact.prompt]
    before = score_targets(model, prompts, ["Rome", "Paris"]).prob
    with compose([first, second]).applied(model):
        after = score_targets(model, prompts, ["Rome", "Paris"]).prob
    assert bool((after > 2 * before).all())


def test_a_failure_or_interruption_in_the_middle_leaves_the_weights(fresh_tiny, edits):
    model = fresh_tiny("llama", KIND)
    before = weights(model)
    first, second, _ = edits
    update = LowRankUpdate.rank_one(3, second.updates[0].left[:, 0], second.updates[0].right[:, 0].double() * 1e300)
    huge = Edit((update,), first.request, first.receipt, first.model, {})
    with pytest.raises(NumericsError, match="layer 3 is not finite"):
        compose([first, second, huge]).apply(model)
    assert same(weights(model), before)
    with pytest.raises(KeyboardInterrupt), compose(edits).applied(model):
        raise KeyboardInterrupt
    assert same(weights(model), before)


def test_undoing_all_or_none(fresh_tiny, edits):
    model = fresh_tiny("llama", KIND)
    sequence, later = compose(edits[:2]), edits[2]
    sequence.apply(model)
    later.apply(model)  # on the layer of the first
    applied = weights(model)
    with pytest.raises(EditStateError, match="reverse order"):
        sequence.undo(model)
    assert same(weights(model), applied)
    later.undo(model)
    sequence.undo(model)
    with pytest.raises(EditStateError, match="nothing to undo"):
        sequence.undo(model)


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(fresh_tiny, edits, tmp_path, kind):
    path = compose(edits).save(tmp_path / "three.safetensors")
    model = fresh_tiny("llama", kind)
    loaded = EditSequence.load(path, model)
    assert [edit.request for edit in loaded.edits if isinstance(edit, Edit)] == [edit.request for edit in edits]
    assert [update.layer for update in loaded.updates] == [1, 2, 1]
    with compose(edits).applied(model):
        expected = weights(model)
    with loaded.applied(model):
        assert same(weights(model), expected)
    with pytest.raises(StorageError, match=r"holds 'edit_sequence'.*use EditSequence\.load"):
        Edit.load(path)
    with pytest.raises(ModelMismatchError):
        EditSequence.load(path, fresh_tiny("qwen2", kind))


def test_a_sequence_is_named_in_one_line(edits):
    assert repr(compose(edits)).startswith(
        "<sequence of 3, layers 1, 2: 'The Eiffel Tower is located in the city of' -> "
    )
    assert repr(compose([*edits, edits[0]])).endswith(", ...>")
    assert "\n" not in repr(compose(edits))


def test_edits_that_do_not_make_a_sequence_are_refused(edits):
    with pytest.raises(InputError, match="0 edits of 0 models"):
        compose([])
    stranger = Edit(edits[0].updates, edits[0].request, edits[0].receipt, "0123456789abcdef", {})
    with pytest.raises(InputError, match="2 edits of 2 models"):
        compose([edits[0], stranger])


def test_one_edit_twice_is_refused_and_undone(fresh_tiny, edits):
    model = fresh_tiny("llama", KIND)
    before = weights(model)
    with pytest.raises(EditStateError, match="occurs twice in this sequence"):
        compose([edits[0], edits[0]]).apply(model)
    assert same(weights(model), before)
