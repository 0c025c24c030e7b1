"""`tl-rome generate`: texts on the screen and in files, of one fact or of a record."""

import json

import pytest
from support.cli import fail, succeed, written
from support.families import KINDS

from tl_rome.counterfact import load_counterfact

FACT = ("--template", "{} is located in the city of", "--subject", "The Eiffel Tower", "--target-new", "Rome")
SHORT = ("--editors", "ft, ft_l", "--new-tokens", "6", "--model-class", KINDS[0])


def test_texts_of_all_models_are_printed_and_written(folder, tmp_path):
    prompts = ("The Louvre is", "The Eiffel Tower stands in")
    printed = succeed(
        "generate", *FACT, *SHORT, "--model", folder, "--out", tmp_path, *(x for p in prompts for x in ("--prompt", p))
    )
    assert written(tmp_path) == {"generate.json", "generate.md"}
    saved = json.loads((tmp_path / "generate.json").read_text())
    assert saved["prompts"] == list(prompts)
    assert list(saved["texts"]) == ["unedited", "ft", "ft_l"]
    assert {len(texts) for texts in saved["texts"].values()} == {2}
    assert (saved["target_new"], saved["seed"]) == ("Rome", 0)
    page = (tmp_path / "generate.md").read_text()
    assert all(f"| prompt | {prompt} |" in page and prompt in printed for prompt in prompts)
    assert page.startswith("# The Eiffel Tower is located in the city of Rome\n")


def test_a_record_has_its_own_prompts(folder, tmp_path):
    record = load_counterfact("sample")[3]
    succeed("generate", "--record", record.case_id, *SHORT, "--model", folder, "--out", tmp_path)
    saved = json.loads((tmp_path / "generate.json").read_text())
    assert saved["prompts"] == list(dict.fromkeys(record.generation_prompts))
    assert saved["prompt"] == record.request.fact.prompt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FACT[:4], "say what to rewrite: give --template, --subject and --target-new, or --record"),
        ((*FACT, "--record", "1"), "a record has its own rewrite"),
        (("--record", "-1"), "sample has no record -1; it has"),
    ],
)
def test_what_is_refused_leaves_nothing(folder, tmp_path, options, message):
    arguments = ("--model", folder, "--model-class", KINDS[0], "--out", tmp_path / "out")
    assert message in fail("generate", *options, *arguments)
    assert not list(tmp_path.iterdir())
