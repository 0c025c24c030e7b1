"""The training loop: goes on after a kill as if nothing had been, leaves out what is not finite, refuses bad input."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from support.families import KINDS
from support.state import changed, model_state, process_state
from support.training import EXAMPLES, LOCALITY, SMALL, trained

from tl_rome.editors.trained import training
from tl_rome.editors.trained.passes import outer, streams
from tl_rome.errors import InputError, NumericsError, StorageError, UnsupportedModelError

KIND = KINDS[0]
TWO = replace(SMALL, max_steps=4)


class Stopped(Exception):
    """An interruption."""


def same(first, second):
    states = first.network.state_dict(), second.network.state_dict()
    assert first.log == second.log
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.fixture(scope="module")
def whole(tiny):
    return trained(tiny("llama", KIND))


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_an_interrupted_training_ends_like_an_uninterrupted_one(tiny, tmp_path, monkeypatch, whole, stop):
    model, checkpoint, step = tiny("llama", KIND), tmp_path / "training.safetensors", training.Training._step

    def stopping(self):
        if self.state.step == stop:
            raise Stopped
        step(self)

    before = model_state(model)
    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_step", stopping)
        with pytest.raises(Stopped):
            trained(model, checkpoint=checkpoint)
    assert not changed(before, model_state(model))
    assert checkpoint.exists() == (stop >= SMALL.validate_every)
    same(trained(model, checkpoint=checkpoint), whole)
    monkeypatch.setattr(training.Training, "_step", None)
    same(trained(model, checkpoint=checkpoint), whole)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks where there are threads
def test_a_kill_while_a_checkpoint_is_written_loses_nothing(tiny, tmp_path, monkeypatch, whole):
    model, checkpoint, replacing = tiny("llama", KIND), tmp_path / "training.safetensors", os.replace

    def killed(source, target):
        if checkpoint.exists():  # at the second one
            os.kill(os.getpid(), signal.SIGKILL)
        replacing(source, target)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(os, "replace", killed)
        trained(model, checkpoint=checkpoint)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    same(trained(model, checkpoint=checkpoint), whole)


def test_more_steps_go_on_from_a_finished_training(tiny, tmp_path, whole):
    model, checkpoint = tiny("llama", KIND), tmp_path / "training.safetensors"
    short = trained(model, TWO, checkpoint=checkpoint)
    assert short.log.steps == 4
    same(trained(model, checkpoint=checkpoint), whole)


def test_a_checkpoint_of_something_else_is_refused(tiny, tmp_path):
    model, checkpoint = tiny("llama", KIND), tmp_path / "training.safetensors"
    trained(model, TWO, checkpoint=checkpoint)
    with pytest.raises(InputError, match="another training: settings differ; name another file"):
        trained(model, replace(TWO, clip=1.0), checkpoint=checkpoint)
    with pytest.raises(InputError, match="another training: generator differ"):
        trained(model, TWO, checkpoint=checkpoint, generator=torch.Generator().manual_seed(1))
    with pytest.raises(InputError, match="another training: data differ"):
        trained(model, TWO, checkpoint=checkpoint, locality=LOCALITY[::-1])
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9] + b"123456789")
    with pytest.raises(StorageError, match=r"training\.safetensors is damaged"):
        trained(model, TWO, checkpoint=checkpoint)


@pytest.fixture
def unreadable(fresh_tiny):
    """A model that makes NaN of texts with " coffee" in them, and of no other."""
    model = fresh_tiny("llama", KIND)
    (token,) = model.tokenizer(" sells", add_special_tokens=False)["input_ids"]
    embeddings = next(p for p in model.parameters() if p.shape == (model.cfg.d_vocab, model.cfg.d_model))
    with torch.no_grad():
        embeddings[token] = float("nan")
    return model


def test_what_is_not_finite_is_left_out_and_counted(unreadable):
    bad = replace(EXAMPLES[0], outer_prompt="A café in Paris sells"), replace(EXAMPLES[1], prompt="It sells in")
    editor = trained(unreadable, TWO, examples=[*EXAMPLES[2:6], *bad])
    assert editor.log.steps == 4
    assert editor.log.skipped == 4, "both of the bad ones, in two rounds of six"
    assert all(bool(value.isfinite().all()) for value in editor.network.state_dict().values())


def test_training_on_nothing_finite_ends_with_an_error(unreadable):
    before = model_state(unreadable)
    with pytest.raises(NumericsError, match="none of the 3 edits of step 0 has a finite loss and gradient; look for"):
        trained(unreadable, locality=["It sells coffee."] * 4 + ["The sun"])
    assert not changed(before, model_state(unreadable))


def test_it_ends_early_and_keeps_the_best(tiny):
    config = replace(SMALL, rates_learning_rate=1.0, validate_every=1, patience=2)
    editor = trained(tiny("llama", KIND), config)
    assert editor.log.ended == "no better validation in 2 steps"
    assert (editor.log.best_step, editor.log.steps) == (0, 2)
    assert editor.network.rates.tolist() == pytest.approx([SMALL.start_rate] * 9)


def test_nothing_but_the_generator_decides(fresh_tiny, whole):
    model = fresh_tiny("llama", KIND)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    before, process = model_state(model), process_state()
    with torch.inference_mode():
        again = trained(model)
    assert not changed(before, model_state(model))
    assert not changed(process, process_state())
    same(again, whole)
    other = trained(model, generator=torch.Generator().manual_seed(1))
    assert other.digest != whole.digest


def test_fewer_locality_positions_are_drawn_anew(tiny, whole):
    some = trained(tiny("llama", KIND), replace(SMALL, locality_positions=3))
    assert some.log.curve[0] == whole.log.curve[0]
    assert some.log.curve[1] != whole.log.curve[1]


def test_bounds_of_memory_change_nothing(tiny, whole, monkeypatch):
    monkeypatch.setattr(streams, "_MOST_BYTES", 1)
    same(trained(tiny("llama", KIND)), whole)
    monkeypatch.setattr(outer, "_MOST_LOGITS", 20_000)
    split = trained(tiny("llama", KIND))
    assert split.log.best.loss == pytest.approx(whole.log.best.loss, rel=1e-4)
    assert split.network.rates.tolist() == pytest.approx(whole.network.rates.tolist(), rel=1e-3)


def test_bad_input_is_refused(tiny):
    model = tiny("llama", KIND)
    with pytest.raises(InputError, match="0 examples, 2 for validation and 20 locality texts are too few"):
        trained(model, examples=[])
    with pytest.raises(InputError, match=r"1 subjects are in both .* 'acropolis' among them; split them by subject"):
        trained(model, validation=[replace(EXAMPLES[5], subject=" ACROPOLIS ")])
    with pytest.raises(InputError, match="the model's context only 128"):
        trained(model, examples=[replace(EXAMPLES[0], prompt="In Paris " * 100)])


def test_a_model_of_experts_is_refused(fresh_tiny):
    with pytest.raises(UnsupportedModelError, match="layer 1 has no plain MLP"):
        trained(fresh_tiny("mixtral", "bridge"))
