"""Edits found in models, with the base and without, and taken out again."""

import pytest
import torch
from support.compare import Found, same, weights
from support.edits import LAYER, REQUEST, editor
from support.families import FAMILY_KINDS, KINDS
from support.quantised import RoundedConfig

from tl_rome.audit import Repair, audit_model
from tl_rome.audit.likely import ENDINGS, candidates, raised_objects, standing_out, subject_shifts
from tl_rome.audit.spectrum import layer_spectra, threshold
from tl_rome.editors import DenseUpdate, LowRankUpdate
from tl_rome.editors.edits.written import updates_applied
from tl_rome.errors import EditStateError, SubjectError, UnsupportedModelError
from tl_rome.facts import Fact
from tl_rome.models.loading import load_model
from tl_rome.running.forward import read
from tl_rome.running.matrices import MlpMatrix, editable_matrices, key_hook, w_out
from tl_rome.tokens import encode, encode_fact, token_labels

KIND = KINDS[0]


def strong(model, layer, seed=0, size=4.0):
    """A rank-one update several times as large as anything in W_out."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.randn(n, generator=generator, dtype=torch.float64) for n in w_out(model, layer).shape)
    top = float(torch.linalg.matrix_norm(w_out(model, layer), 2))
    return LowRankUpdate.rank_one(layer, u / u.norm(), size * top * v / v.norm())


def moved(edited, base, subject):
    """How far W_out's value of a subject's last token, which is not the first of its text, is moved, relative to it."""
    key = read(edited, encode(edited, f"In fact, {subject}")[None], [key_hook(LAYER)])[key_hook(LAYER)][0, -1]
    value = key @ w_out(base, LAYER)
    return float((key @ w_out(edited, LAYER) - value).norm() / value.norm())


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_with_its_base_an_edit_is_found_and_taken_out_bit_for_bit(tiny, fresh_tiny, family, kind):
    base, edited = tiny(family, kind), fresh_tiny(family, kind)
    edit = editor(edited)(edited, REQUEST)
    with edit.applied(edited):
        before = Found(edited)
        found = audit_model(edited, base, prompts=[REQUEST.fact.prompt], new_tokens=1)
        before.check()
        (finding,) = found.findings
        assert (finding.place, finding.rank, found.others) == (MlpMatrix(LAYER), 1, ())
        subject, shift = finding.shifts[0]
        assert shift == pytest.approx(moved(edited, base, subject), rel=1e-4)
        assert found.answers[0].before.tokens != found.answers[0].after.tokens
        with found.repair.applied(edited):
            assert same(weights(edited), weights(base))
        before.check()
    assert audit_model(edited, base).is_clean


def test_a_repair_is_kept_and_used_as_an_edit_is(tiny, fresh_tiny, tmp_path):
    base, edited = tiny("llama", KIND), fresh_tiny("llama", KIND)
    with updates_applied(edited, [strong(edited, 1)]):
        repair = audit_model(edited, base).repair
        again = Repair.load(repair.save(tmp_path / "repair.safetensors"), edited)
        assert again.places == (MlpMatrix(1),)
        with again.applied(edited):
            assert same(weights(edited), weights(base))
    with pytest.raises(EditStateError, match=r"repair of W_out of layer 1 is already applied"):
        again.apply(edited)


def test_other_changes_are_reported_and_those_of_mlps_restored(tiny, fresh_tiny):
    base, edited = tiny("llama", KIND), fresh_tiny("llama", KIND)
    with torch.no_grad():
        next(p for n, p in edited.named_parameters() if "W_Q" in n or "q_proj" in n).mul_(1.01)
    dense = DenseUpdate(2, torch.randn(w_out(edited, 2).shape, generator=torch.Generator().manual_seed(0)))
    with updates_applied(edited, [dense]):
        found = audit_model(edited, base)
        assert not found.findings
        assert found.others[0].place == MlpMatrix(2)
        assert [change.place for change in found.others[1:]] == [None]
        with found.repair.applied(edited):
            assert same(weights(edited), weights(base))
    left = audit_model(edited, base)
    assert (len(left.others), left.repair, left.is_clean) == (1, None, False)
    assert "1 other weights differ" in left.verdict


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_without_a_base_a_strong_edit_is_found_and_an_unedited_model_is_clean(fresh_tiny, family, kind):
    model = fresh_tiny(family, kind)
    clean = audit_model(model)
    assert (clean.is_clean, clean.repair, len(clean.scores)) == (True, None, 4)
    before, update = weights(model), strong(model, 2)
    with updates_applied(model, [update]):
        changed = weights(model)
        found = audit_model(model, prompts=["Big Ben is"], new_tokens=1)
        assert same(weights(model), changed)
        (finding,) = found.findings
        assert (finding.place, finding.rank) == (MlpMatrix(2), 1)
        assert found.scores[2] == finding.score == max(found.scores) > found.threshold
        with found.repair.applied(model):
            left = (w_out(model, 2) - before[2]).norm() / update.delta.norm()
            assert left < 0.7  # of 32 directions, those that neighbours share are left
            assert found.answers[0].before.tokens != found.answers[0].after.tokens


def test_the_score_is_that_of_plain_svds(tiny):
    model = tiny("gpt2", KIND)
    first = [torch.linalg.svd(w_out(model, layer).double())[2][0] for layer in range(4)]
    for layer, spectrum in enumerate(layer_spectra(model)):
        near = torch.stack([first[n] for n in range(max(0, layer - 2), min(4, layer + 3)) if n != layer])
        weight = w_out(model, layer).double()
        values = torch.linalg.svdvals(weight - weight @ torch.linalg.pinv(near) @ near)
        assert spectrum.score == pytest.approx(float(values[0] / values[1]))
        torch.testing.assert_close(spectrum.ratios, values[:16] / values[1])


def test_the_threshold_follows_the_model_but_not_below_the_calibrated_one(tiny):
    spectra = layer_spectra(tiny("gpt2", KIND))
    assert threshold(spectra[:1]) == max(1.4, spectra[0].score)
    for n, spectrum in enumerate(spectra):
        spectrum.ratios[0] = 1.0 + n
    assert threshold(spectra) == pytest.approx(2.0 + 5 * 1.4826 * 1.0)


def test_subjects_and_objects_that_stand_out():
    assert standing_out({"a": 2.0, "b": 1.1, "c": 0.9, "d": 0.2, "e": 0.2, "f": 0.1, "g": 0.1}) == ("a", "b")
    assert standing_out({"a": 0.9, "b": 0.8, "c": 0.5}) == standing_out({"a": 0.4, "b": 0.05, "c": 0.01}) == ()
    assert standing_out({}) == ()


def test_objects_are_those_that_a_change_makes_likely(tiny):
    model = tiny("gpt2", KIND)
    before = torch.full((2, model.cfg.d_vocab), 1 / model.cfg.d_vocab)
    after = before.clone()
    after[0, 300], after[1, 301], after[:, 302] = 0.5, 0.4, 0.0
    assert raised_objects(model, before, after, 2) == token_labels(model, torch.tensor([300, 301]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_subject_of_one_token_is_named(smollm2, kind):
    """As the first token of a text it would have a key of its own, which this change hardly moves."""
    model, prompt = smollm2(kind), encode_fact(smollm2(kind), Fact("The national language of {} is", "Argentina"))
    assert prompt.subject.end - prompt.subject.start == 1
    key = read(model, prompt.tokens[None], [key_hook(5)])[key_hook(5)][0, prompt.subject.start].double()
    update = LowRankUpdate.rank_one(5, key / (key @ key), -2 * key @ w_out(model, 5).double())
    with updates_applied(model, [update]):
        shifts = subject_shifts(model, MlpMatrix(5), update.delta, candidates(["Argentina"]))
    assert standing_out(shifts) == ("Argentina",)


def change_for(model, subject):
    """A rank-one update that gives a subject, within a text, another value."""
    key = read(model, encode(model, f"In fact, {subject}")[None], [key_hook(LAYER)])[key_hook(LAYER)][0, -1].double()
    return LowRankUpdate.rank_one(LAYER, key / (key @ key), strong(model, LAYER).right[:, 0])


def test_objects_are_asked_for_within_a_text(tiny, fresh_tiny):
    """Against the model's own logits: for each subject that is named, the tokens that the change raises."""
    base, edited = tiny("llama", KIND), fresh_tiny("llama", KIND)
    with updates_applied(edited, [change_for(edited, "Big Ben")]):
        found = audit_model(edited, base, subjects=["Big Ben"])
        texts = [encode(edited, f"In fact, Big Ben{ending}")[None] for ending in ENDINGS]
        before, after = (torch.cat([model(text)[:, -1] for text in texts]).softmax(-1) for model in (base, edited))
    assert found.objects["Big Ben"] == raised_objects(edited, before, after)


def test_a_change_of_rank_one_names_one_subject(tiny, fresh_tiny):
    """Two that end alike stand out."""
    base, edited, update = tiny("llama", KIND), fresh_tiny("llama", KIND), change_for(tiny("llama", KIND), "Big Ben")
    names = ["Big Ben", "In fact, Big Ben"]
    with updates_applied(edited, [update]):
        assert len(standing_out(subject_shifts(edited, update.place, update.delta, candidates(names)))) > 1
        (finding,) = audit_model(edited, base, subjects=names).findings
    assert (finding.rank, finding.subjects) == (1, ("Big Ben",))


def test_an_empty_subject_is_refused(tiny):
    with pytest.raises(SubjectError, match="subject is empty"):
        audit_model(tiny("llama", KIND), subjects=["Big Ben", " "])


@pytest.mark.parametrize("kind", KINDS)
def test_the_real_model_is_clean_and_an_edit_in_it_is_not(smollm2, kind):
    model = smollm2(kind)
    clean = audit_model(model)
    assert clean.is_clean
    assert max(clean.scores) < 1.31
    with updates_applied(model, [strong(model, 12, size=0.8)]):
        found = audit_model(model)
        assert [finding.place for finding in found.findings] == [MlpMatrix(12)]


def test_a_model_of_which_nothing_can_be_read_is_not_called_clean(tiny, family_dir, monkeypatch):
    model = load_model(str(family_dir("llama")), quantization_config=RoundedConfig(), progress=False)
    with pytest.raises(UnsupportedModelError, match="the weights alone say nothing"):
        audit_model(model)
    plain, but_one = tiny("llama", KIND), lambda of: dict([*editable_matrices(of).items()][3:])
    monkeypatch.setattr("tl_rome.audit.spectrum.editable_matrices", but_one)
    found = audit_model(plain)
    assert (found.unread, len(found.scores)) == (1, plain.cfg.n_layers - 1)
    assert "1 layers were not looked at" in found.verdict
