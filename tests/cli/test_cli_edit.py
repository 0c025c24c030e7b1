"""`tl-rome edit`: the library's edit, its receipt, and what the model says before and after."""

import json
import re

import pytest
import torch
from support.cli import fail, run, succeed, written
from support.families import KINDS, SENTENCES

from tl_rome import Edit, Fact, FineTune, KeyCovariance, rome
from tl_rome.cli.demo_run import FACT, NEW, ask
from tl_rome.cli.editor_options import EditorName
from tl_rome.editors import FT, FT_L, PRESETS, BatchEdit, Receipt, estimate_covariances, sample_contexts
from tl_rome.editors.by_name import EDITOR_NAMES, ROME_CONFIGS, TRAINED_NAMES
from tl_rome.facts import EditRequest

TEMPLATE, SUBJECT = FACT.template, FACT.subject


def edited(*arguments):
    """What `tl-rome edit` prints, whether the edit took in the random model (exit code 0) or not (3)."""
    return succeed(*arguments, codes=(0, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_edit_writes_the_librarys_edit_and_shows_what_it_did(folder, tiny, statistics, tmp_path, kind):
    out = tmp_path / "edit.safetensors"
    asked = ["The [red]Eiffel Tower[/] stands in [", "Big Ben is in"]
    printed = edited(
        *("edit", TEMPLATE, SUBJECT, NEW, "--target-true", "Paris", "--ask", asked[0], "--ask", asked[1]),
        *("--covariance", statistics, "--seed", 1, "--model", folder, "--model-class", kind, "--out", out),
    )
    assert written(tmp_path) == {"edit.safetensors"}
    model, covariance = tiny("gpt2", kind), KeyCovariance.load(statistics)
    found = Edit.load(out, model)
    expected = rome(model, TEMPLATE, SUBJECT, NEW, target_true="Paris", covariance=covariance, seed=1, progress=False)
    torch.testing.assert_close(found.updates[0].delta, expected.updates[0].delta, rtol=1e-4, atol=1e-7)
    prompts = [Fact(TEMPLATE, SUBJECT).prompt, *asked]
    before = ask(model, prompts, [NEW])
    with found.applied(model):
        after = ask(model, prompts, [NEW])
    for prompt, one, two in zip(prompts, before, after, strict=True):
        assert prompt in printed
        assert f"{one.probs[0]:.2f} → {two.probs[0]:.2f}" in printed
    assert after[0].probs[0] > before[0].probs[0]
    assert f"layer {expected.receipt.layers[0]} (that of the covariance)" in printed


def test_names_are_those_of_the_library():
    assert set(EditorName) == set(EDITOR_NAMES)
    assert {name for name in EditorName if name.is_rome} == ROME_CONFIGS.keys()
    assert {name for name in EditorName if name.is_trained} == {*TRAINED_NAMES}


@pytest.mark.parametrize("preset", ["draft", "p_rome"])
def test_editor(folder, tiny, statistics, tmp_path, preset):
    out = tmp_path / "edit.safetensors"
    arguments = ("edit", TEMPLATE, SUBJECT, NEW, "--editor", preset, "--covariance", statistics)
    printed = edited(*arguments, "--model", folder, "--out", out)
    model, covariance = tiny("gpt2", KINDS[0]), KeyCovariance.load(statistics)
    expected = rome(model, TEMPLATE, SUBJECT, NEW, covariance=covariance, config=PRESETS[preset], progress=False)
    found = Edit.load(out, model)
    torch.testing.assert_close(found.updates[0].delta, expected.updates[0].delta, rtol=1e-4, atol=1e-7)
    assert f"preset {preset}" in printed


@pytest.mark.parametrize(("config", "layer"), [(FT, None), (FT_L, 2)])
def test_fine_tuning(folder, tiny, tmp_path, config, layer):
    out = tmp_path / "edit.safetensors"
    options = ("--editor", config.preset, *(() if layer is None else ("--layer", layer)))
    printed = edited("edit", TEMPLATE, SUBJECT, NEW, *options, "--model", folder, "--out", out)
    model = tiny("gpt2", KINDS[0])
    expected = FineTune(layer or 0, config)(model, EditRequest(TEMPLATE, SUBJECT, NEW))
    torch.testing.assert_close(Edit.load(out).updates[0].delta, expected.updates[0].delta, rtol=1e-3, atol=1e-6)
    assert f"layer {layer or 0} ({'given' if layer else 'the default of fine-tuning'})" in printed
    assert "divisor" not in printed


@pytest.mark.parametrize("editor", ["rome", "ft"])
def test_layer_that_tracing_finds(folder, statistics, tmp_path, monkeypatch, editor):
    class Found:
        layer = 1

        def __str__(self):
            return "layer 1, traced"

    monkeypatch.setattr("tl_rome.patching.find_layer", lambda model, **_: Found())
    options = ("--covariance", statistics) if editor == "rome" else ()
    arguments = ("edit", TEMPLATE, SUBJECT, NEW, "--editor", editor, "--layer", "auto", *options, "--model", folder)
    assert "layer 1 (suggested: layer 1, traced)" in edited(*arguments, "--out", tmp_path / "edit")


def test_fine_tuning_takes_no_statistics(statistics, tmp_path):
    arguments = ("edit", TEMPLATE, SUBJECT, NEW, "--editor", "ft", "--model", "./nowhere", "--out", tmp_path / "edit")
    for option in (("--covariance", statistics), ("--contexts", "recipe")):
        assert "ft reads the prompt alone; leave out --covariance" in fail(*arguments, *option)


def test_everything_in_the_receipt_is_shown(folder, statistics, tmp_path):
    out = tmp_path / "edit.safetensors"
    arguments = ("edit", TEMPLATE, SUBJECT, NEW, "--target-true", "Paris", "--covariance", statistics)
    printed = edited(*arguments, "--model", folder, "--out", out)
    receipt = Edit.load(out).receipt
    assert receipt.rank_new is not None
    assert receipt.rank_true is not None
    assert receipt.disturbance is not None
    for before, after in (receipt.rank_new, receipt.rank_true):
        assert f"rank {before} → {after}" in printed
    assert f"contexts {receipt.contexts} ({receipt.contexts_choice})" in printed
    assert f"disturbance {receipt.disturbance:.1%}" in printed
    assert f"{receipt.final_loss:.3f} after {receipt.evaluations} evaluations" in printed


def test_warnings_of_an_edit_that_disables_the_model_are_shown(folder, statistics, tmp_path, monkeypatch):
    monkeypatch.setattr("tl_rome.editors.edits.receipts.safety.MAX_DISTURBANCE", 0.0)
    arguments = ("edit", TEMPLATE, SUBJECT, NEW, "--covariance", statistics, "--model", folder)
    assert "WARNING the layer's output on ordinary text changes by" in edited(*arguments, "--out", tmp_path / "edit")


@pytest.mark.parametrize(("verdict", "code"), [("took", 0), ("partly", 0), ("did not take", 3)])
def test_exit_code_of_an_edit_that_did_not_take(folder, statistics, tmp_path, monkeypatch, verdict, code):
    stated = property(lambda receipt: verdict, lambda receipt, found: None)  # whatever was found
    monkeypatch.setattr(Receipt, "verdict", stated, raising=False)
    arguments = ("edit", TEMPLATE, SUBJECT, NEW, "--covariance", statistics, "--model", folder)
    result = run(*arguments, "--out", tmp_path / "edit")
    assert result.exit_code == code
    assert ("the edit did not take" in result.stderr) == (code == 3)
    assert Edit.load(tmp_path / "edit").request.target_new == NEW
    assert "exit code is 3" in edited("edit", "--help")


def test_contexts_of_the_recipe(folder, tiny, statistics, tmp_path, monkeypatch):
    monkeypatch.setattr("tl_rome.editors.rank_one.contexts.are_junk", lambda contexts: True)
    arguments = ("edit", TEMPLATE, SUBJECT, NEW, "--covariance", statistics, "--seed", 1, "--model", folder)
    assert "the start token gives junk" in edited(*arguments, "--out", tmp_path / "auto")
    printed = edited(*arguments, "--contexts", "recipe", "--out", tmp_path / "recipe")
    assert "(sampled from the start token, top-k 5)" in printed
    recipe = sample_contexts(tiny("gpt2", KINDS[0]), PRESETS["released"], generator=torch.Generator().manual_seed(1))
    assert Edit.load(tmp_path / "recipe").provenance["contexts"] == list(recipe)


@pytest.fixture(scope="session")
def several(tiny, tmp_path_factory):
    """A folder of statistics of two layers, as `tl-rome covariance --layers` writes it."""
    folder = tmp_path_factory.mktemp("several")
    options = {"source": "sentences", "progress": False}
    for each in estimate_covariances(tiny("gpt2", KINDS[0]), [1, 2], SENTENCES, **options).values():
        each.save(folder)
    return folder


def test_many_facts_of_a_file_become_one_edit(folder, tiny, several, tmp_path):
    facts, out = tmp_path / "facts.jsonl", tmp_path / "edit.safetensors"
    rows = [(TEMPLATE, SUBJECT, NEW), ("{} works as a", "Ada Lovelace", "cook")]
    names = ("template", "subject", "target_new")
    facts.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n\n" for row in rows))
    common = ("--covariance", several, "--model", folder, "--out", out)
    printed = edited("edit", "--requests", facts, "--editor", "memit", "--ask", "Ada Lovelace works as a", *common)
    assert "of 2 took" in printed
    assert "1, 2 (those of the statistics)" in printed
    assert "Ada Lovelace works as a" in printed
    made = BatchEdit.load(out, tiny("gpt2", KINDS[0]))
    assert made.requests == tuple(EditRequest(*row) for row in rows)
    silent = edited("edit", "--requests", facts, "--editor", "memit", *common)
    assert "of 2 took" in silent
    assert BatchEdit.load(out).requests == made.requests
    one = edited("edit", TEMPLATE, SUBJECT, NEW, "--layer", 2, *common)  # the file of its layer
    assert "sentences" in one
    assert Edit.load(out).updates[0].layer == 2
    assert "has no statistics of layer 3 (only of 1, 2)" in fail("edit", *rows[0], "--layer", 3, *common)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TEMPLATE, SUBJECT), "or give --requests FILE"),
        (("--requests", "TWICE", "--editor", "memit", "--model", "no/model"), "occurs twice; leave one of them out"),
        (("--requests", "FACTS"), "rome writes one fact, and .* has 2; use a mass editor"),
        ((TEMPLATE, SUBJECT, NEW, "--requests", "FACTS"), "a fact and --requests are both given"),
        (("--requests", "EMPTY", "--editor", "memit"), "has no line"),
        (("--requests", "FACTS", "--editor", "memit", "--layer", 1), "memit edits several layers"),
        (("--requests", "FACTS", "--editor", "memit", "--covariance", "ONE"), "has statistics of one layer, and mass"),
        (("--requests", "FACTS", "--editor", "memit", "--covariance", "EMPTY_FOLDER"), "has 0 files"),
        (("--requests", "BROKEN", "--editor", "memit"), "line 1 of .* does not have the text fields"),
    ],
)
def test_requests_that_cannot_be_edited(statistics, tmp_path, arguments, message):
    fact = {"template": TEMPLATE, "subject": SUBJECT, "target_new": NEW}
    facts = [fact, {**fact, "subject": "Big Ben"}]
    files = {"FACTS": facts, "TWICE": [fact, fact], "EMPTY": [], "BROKEN": [{"template": TEMPLATE}]}
    for name, rows in files.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "EMPTY_FOLDER").mkdir()
    places = {name: tmp_path / name for name in (*files, "EMPTY_FOLDER")} | {"ONE": statistics}
    assert re.search(message, fail("edit", *(places.get(part, part) for part in arguments)))


@pytest.mark.slow
@pytest.mark.leg("4")
def test_edit_without_statistics_samples_its_own(folder, tmp_path):
    out = tmp_path / "edit.safetensors"
    assert "own samples" in edited("edit", TEMPLATE, SUBJECT, NEW, "--layer", 2, "--model", folder, "--out", out)
    assert Edit.load(out).updates[0].layer == 2
