"""Scores of lm-evaluation-harness are those of its own class for transformers on the same weights, however edited."""

import sys

import pytest
import torch
from support.compare import same, weights
from support.edits import REQUEST, editor
from support.families import FAMILY_KINDS, KINDS

from tl_rome.editors import compose, export_model
from tl_rome.errors import EditStateError, InputError, MissingPackageError, ModelMismatchError, UnsupportedModelError
from tl_rome.harness import evaluate_tasks, harness_model
from tl_rome.sites import hook_points

lm_eval = pytest.importorskip("lm_eval")
tasks = pytest.importorskip("support.harness_tasks")

KIND = KINDS[0]


def assert_close(found, expected):
    """To rounding: log-probabilities of up to 170 tokens differ in the fourth digit; greedy texts not at all."""
    logprobs, greedy = zip(*found["loglikelihood"], strict=True)
    expected_logprobs, expected_greedy = zip(*expected["loglikelihood"], strict=True)
    assert logprobs == pytest.approx(expected_logprobs, abs=2e-3)
    assert greedy == expected_greedy
    assert found["loglikelihood_rolling"] == pytest.approx(expected["loglikelihood_rolling"], abs=2e-3)
    assert found["generate_until"] == expected["generate_until"]


def scores(results):
    return {
        (task, name): float(value)
        for task, found in results["results"].items()
        for name, value in found.items()
        if name.endswith(",none") and "stderr" not in name
    }


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_answers_are_those_of_the_harness_own_class(tiny, family_dir, family, kind):
    model = tiny(family, kind)
    assert_close(
        tasks.answers(harness_model(model, batch_size=3, progress=False)),
        tasks.answers(tasks.plain_lm(family_dir(family))),
    )


def test_a_shorter_length_cuts_as_the_harness_does(tiny, family_dir):
    lm = harness_model(tiny("llama", KIND), max_length=32, batch_size=2, progress=False)
    assert_close(tasks.answers(lm), tasks.answers(tasks.plain_lm(family_dir("llama"), max_length=32)))


def test_an_end_of_text_ends_it(fresh_tiny, family_dir, tmp_path):
    """The model is made to say EOS after some texts and not others, in one batch."""
    model = fresh_tiny("llama", KIND)
    lm = harness_model(model, batch_size=8, progress=False)
    free = tasks.answers(lm)["generate_until"]
    token = model.tokenizer(free[1])["input_ids"][1]
    plain = tasks.plain_lm(family_dir("llama"), batch_size=8)
    plain.model.generation_config.eos_token_id = token
    for each in (lm, plain):
        each.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(token)
    found = tasks.answers(lm)["generate_until"]
    assert found == tasks.answers(plain)["generate_until"]
    assert found != free


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_scores_the_same_written_virtual_exported_and_as_an_adapter(tiny, family_dir, tmp_path, kind):
    peft = pytest.importorskip("peft")
    model, source = tiny("llama", kind), str(family_dir("llama"))
    edit = editor(model)(model, REQUEST)
    before = tasks.answers(harness_model(model, progress=False))
    with edit.applied(model):
        written = tasks.answers(harness_model(model, progress=False))
        export_model(model, source, tmp_path / "exported")
    edit.to_peft(tmp_path / "lora", model, source)
    adapted = tasks.plain_lm(source)
    adapted._model = peft.PeftModel.from_pretrained(adapted.model, str(tmp_path / "lora")).eval()
    composed = harness_model(model, compose([edit]), progress=False)
    for lm in (harness_model(model, edit, progress=False), composed, tasks.plain_lm(tmp_path / "exported"), adapted):
        assert_close(tasks.answers(lm), written)
    assert_close(tasks.answers(tasks.plain_lm(source)), before)
    assert written["loglikelihood_rolling"] != pytest.approx(before["loglikelihood_rolling"], abs=0.1)
    assert written["generate_until"] != before["generate_until"]
    assert composed.get_model_info()["edit"] == [edit.label]


@pytest.mark.parametrize("kind", KINDS)
def test_tasks_have_the_same_scores_virtual_and_exported(tiny, family_dir, tmp_path, monkeypatch, kind):
    for slow in ("add_env_info", "get_git_commit_hash"):
        monkeypatch.setattr(f"lm_eval.evaluator.{slow}", lambda *args: None)
    model, manager = tiny("llama", kind), tasks.task_manager(tmp_path / "tasks")
    edit = editor(model)(model, REQUEST)
    with edit.applied(model):
        export_model(model, str(family_dir("llama")), tmp_path / "exported")
    options = {"task_manager": manager, "bootstrap_iters": 0}
    found = evaluate_tasks(model, tasks.TASKS, edit=edit, progress=False, **options)
    expected = lm_eval.simple_evaluate(model=tasks.plain_lm(tmp_path / "exported"), tasks=list(tasks.TASKS), **options)
    assert len(scores(found)) == 4
    assert scores(found) == pytest.approx(scores(expected), rel=1e-4)
    assert (found["config"]["model"], found["config"]["edit"]) == ("tiny-llama", [edit.label])


def test_everything_is_left_as_found(tiny, tmp_path):
    model = tiny("gpt2", KIND)
    edit, manager, before = editor(model)(model, REQUEST), tasks.task_manager(tmp_path / "tasks"), weights(model)
    pad, side = model.tokenizer.pad_token, model.tokenizer.padding_side
    state = torch.get_rng_state().tolist()
    model.train()
    evaluate_tasks(model, ["texts"], edit=edit, task_manager=manager, bootstrap_iters=0, progress=False)
    assert model.training
    model.eval()
    assert torch.get_rng_state().tolist() == state
    assert same(weights(model), before)
    assert not any(point.fwd_hooks for point in hook_points(model).values())
    assert (model.tokenizer.pad_token, model.tokenizer.padding_side) == (pad, side)


def test_bos_follows_the_model(fresh_tiny, family_dir):
    """Gemma 2's tokenizer adds BOS; a model that is not to have it is one whose tokenizer is told so."""
    model = fresh_tiny("gemma2", KIND, prepend_bos=False)
    expected = tasks.answers(tasks.plain_lm(family_dir("gemma2"), add_bos_token=False))
    assert_close(tasks.answers(harness_model(model, batch_size=3, progress=False)), expected)
    model = fresh_tiny("gpt2", KIND, prepend_bos=True)
    bos, other = model.tokenizer.bos_token_id, model.tokenizer("a")["input_ids"]
    assert harness_model(model, progress=False).tok_encode("a") == [bos, *other]


def test_what_cannot_be_scored_is_refused(fresh_tiny, tmp_path):
    model, other = fresh_tiny("gpt2", KIND), fresh_tiny("llama", KIND)
    edit, manager = editor(model)(model, REQUEST), tasks.task_manager(tmp_path / "tasks")
    with pytest.raises(ModelMismatchError):
        harness_model(other, edit)
    lm = harness_model(model, edit, progress=False)
    with edit.applied(model):
        with pytest.raises(EditStateError, match="already applied"):
            harness_model(model, edit)
        with pytest.raises(EditStateError, match="already applied"):
            tasks.answers(lm)
    with pytest.raises(InputError, match="knows no task 'nowhere'"):
        evaluate_tasks(model, ["nowhere"], task_manager=manager)
    with pytest.raises(InputError, match="only greedy texts"):
        evaluate_tasks(model, ["continued"], task_manager=manager, gen_kwargs={"do_sample": True}, progress=False)
    with pytest.raises(InputError, match="max_length is 129, but the model's context 128"):
        harness_model(model, max_length=129)
    model.tokenizer = None
    with pytest.raises(UnsupportedModelError, match="needs a tokenizer"):
        harness_model(model)


def test_the_harness_is_named_with_its_extra(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MissingPackageError, match=r'lm_eval cannot .*; pip install "tl-rome\[harness\]"'):
        harness_model(tiny("gpt2", KIND))
