"""`tl-rome train`: what it trains on, what it refuses, and how it goes on after an interrupt."""

import json
from dataclasses import replace

import pytest
from support.cli import fail, misuse, run, succeed, written
from support.families import KINDS, SENTENCES
from support.records import GAZI

from tl_rome import editors
from tl_rome.counterfact import load_counterfact
from tl_rome.counterfact.dataset.sample import load_sample_relations
from tl_rome.editors import MEND_CF, Edit, Ke, Mend
from tl_rome.editors.trained.data.parts import subject_key
from tl_rome.editors.trained.training import Training

KIND = KINDS[0]
CODES = (0, 3)
"""On a tiny model nobody asks whether a training of few steps converged."""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [" ".join(SENTENCES[first : first + 12]) for first in range(0, 48, 3)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def options(folder, text):
    return ("--text", text, "--examples", 12, "--steps", 2, "--model", folder)


@pytest.mark.parametrize(("method", "more"), [("ke-cf", ()), ("mend-cf", ("--rank", 4))])
def test_an_editor_of_facts(tiny, options, tmp_path, method, more):
    out = tmp_path / "trained"
    printed = succeed("train", method, *options, *more, "--out", out, codes=CODES)
    editor = (Ke if method == "ke-cf" else Mend).load(out, tiny("gpt2", KIND))
    assert editor.config.preset == method.replace("-", "_")
    assert (editor.config.max_steps, editor.log.steps) == (2, 2)
    assert "12 examples, " in printed
    assert f"{editor.log.best.loss:.4f}" in printed
    assert f"wrote {out}" in printed
    numbers = {fact.number: fact.subject for relation in load_sample_relations() for fact in relation.facts}
    subjects = {subject_key(numbers[int(name.split()[1])]) for name in editor.log.data["records"]}
    assert len(subjects) > 12
    assert not subjects & {subject_key(record.requested_rewrite.subject) for record in load_counterfact()}


@pytest.mark.parametrize(("method", "more"), [("ke", ()), ("mend", ("--rank", 4))])
def test_an_editor_of_passages(tiny, options, tmp_path, method, more):
    out = tmp_path / "trained"
    succeed("train", method, *options, *more, "--out", out, codes=CODES)
    editor = (Ke if method == "ke" else Mend).load(out, tiny("gpt2", KIND))
    assert all(name.startswith("text ") for name in editor.log.data["records"])


def test_seeds_decide_and_own_samples_stand_in_for_text(folder, tiny, tmp_path):
    found = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        options = ("--examples", 8, "--steps", 1, "--seed", seed, "--model", folder, "--out", tmp_path / name)
        succeed("train", "mend-cf", "--rank", 2, *options, codes=CODES)
        found.append(Mend.load(tmp_path / name, tiny("gpt2", KIND)).digest)
    assert found[0] == found[1] != found[2]


def test_a_training_that_did_not_converge_is_saved_and_said(options, tmp_path):
    result = run("train", "ke-cf", *options, "--out", tmp_path / "trained")
    assert result.exit_code == 3
    assert "the training did not converge: its validation loss went from" in result.stderr
    assert written(tmp_path) == {"trained"}


def test_an_interrupted_training_goes_on(options, tiny, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(editors, "MEND_CF", replace(MEND_CF, validate_every=2))
    command = ("train", "mend-cf", "--rank", 2, *options, "--steps", 5)
    whole, rest, kept = tmp_path / "whole", tmp_path / "rest", tmp_path / "unfinished"
    succeed(*command, "--out", whole, codes=CODES)
    step = Training._step
    monkeypatch.setattr(Training, "_step", lambda self: interrupt() if self.state.step == 3 else step(self))
    result = run(*command, "--checkpoint", kept, "--out", rest)
    said = f"interrupted; run the same command again to go on from {kept}"
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, said)
    result = run(*command, "--out", rest)
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "interrupted")
    assert not rest.exists()
    monkeypatch.setattr(Training, "_step", step)
    succeed(*command, "--checkpoint", kept, "--out", rest, codes=CODES)
    model = tiny("gpt2", KIND)
    assert Mend.load(rest, model).digest == Mend.load(whole, model).digest


def test_records_that_are_kept_for_testing_are_refused_or_left_out(options, tiny, tmp_path):
    records = [
        {**GAZI, **NO_TESTS, "case_id": i, "pararel_idx": i, "requested_rewrite": _about(f"Gazi {i}")}
        for i in range(10)
    ]
    training, testing = tmp_path / "training.json", tmp_path / "testing.json"
    training.write_text(json.dumps(records))
    testing.write_text(json.dumps([{**records[0], "requested_rewrite": _about("gazi  3")}]))
    out = tmp_path / "out"
    command = ("train", "ke-cf", *options, "--records", training, "--out", out)
    assert "training data share 1 subjects with the records kept for testing: 'Gazi 3'" in fail(
        *command, "--exclude", testing
    )
    assert not out.exists()
    succeed(*command, codes=CODES)
    assert len(Ke.load(out, tiny("gpt2", KIND)).log.data["records"]) == 10


NO_TESTS = {"paraphrase_prompts": [], "generation_prompts": []}


def _about(subject):
    return {**GAZI["requested_rewrite"], "entity": subject}


def test_options_that_do_not_go_together(text, tmp_path):
    arguments = ("--model", "./nowhere", "--out", tmp_path / "out")
    assert "ke learns from passages of text" in fail("train", "ke", "--relations", tmp_path, *arguments)
    assert "leave out --relations, --records and --exclude" in fail("train", "mend", "--exclude", "sample", *arguments)
    both = ("--relations", tmp_path, "--records", "sample")
    assert "training records come from one of them" in fail("train", "mend-cf", *both, *arguments)
    assert "ke-cf has no layers of low rank" in fail("train", "ke-cf", "--rank", 8, *arguments)
    assert "is a folder; name a file" in fail("train", "ke-cf", "--checkpoint", tmp_path, *arguments)
    assert "'rome' is not one of" in misuse("train", "rome", *arguments)
    assert not written(tmp_path)


def test_too_little_text_is_refused(options, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Rome.\n")
    assert "give more text" in fail("train", "ke", "--text", short, *options[2:], "--out", tmp_path / "out")
    assert written(tmp_path) == {"short.txt"}


def test_a_trained_editor_is_used_by_every_command_that_takes_editors(options, folder, tmp_path):
    file = tmp_path / "trained"
    succeed("train", "mend-cf", *options, "--rank", 4, "--out", file, codes=CODES)
    on_model = ("--model", folder, "--trained", file)
    fact = ("{} is located in the city of", "The Eiffel Tower", "Rome")
    printed = succeed("edit", *fact, "--editor", "mend_cf", *on_model, "--out", tmp_path / "edit", codes=CODES)
    assert "1, 2, 3 (W_in, W_out) (as trained)" in printed
    assert len(Edit.load(tmp_path / "edit").updates) == 6
    few = ("--limit", 2, "--generation-length", 0, "--workers", 1)
    succeed("compare", "--editors", "kn,mend_cf", *few, *on_model, "--out", tmp_path / "compared")
    rows = json.loads((tmp_path / "compared" / "compare.json").read_text())["rows"]
    assert list(rows) == ["unedited", "kn", "mend_cf (not converged)"]
    assert rows["mend_cf (not converged)"]["s/edit"]["mean"] > 0
    sequential = ("sequential", "--editors", "mend_cf", "--counts", "1,2", "--limit", 2)
    succeed(*sequential, *on_model, "--out", tmp_path / "sequence")
    said = fail("edit", *fact, "--editor", "ke_cf", *on_model, "--out", tmp_path / "edit")
    assert "holds 'mend_cf'; name that as --editor, or another file" in said
    for wrong in (("--editor", "mend_cf"), ("--editor", "ft", "--trained", file)):
        fail("edit", *fact, *wrong, "--model", folder, "--out", tmp_path / "edit")
    assert "'mend_cf' is trained first" in fail("compare", "--editors", "mend_cf", "--model", folder, *few)
