import inspect

import pytest
from support.families import KINDS

from tl_rome.errors import InputError, SubjectError
from tl_rome.facts import EditRequest, Fact, check_fact
from tl_rome.patching import collect_known_facts, trace_facts
from tl_rome.tokens import encode_fact


@pytest.mark.parametrize(
    ("template", "subject", "prompt"),
    [
        ("{} is in", "The Louvre", "The Louvre is in"),
        ("The mother tongue of {} is", "Łucja", "The mother tongue of Łucja is"),
        ("{}", "東京", "東京"),
        ('{"a": {}}', "b", '{"a": b}'),
        ("{0} and {} and {name}", "x", "{0} and x and {name}"),
        ("The {} is", "a{}b", "The a{}b is"),
    ],
)
def test_the_subject_is_where_the_template_has_its_braces(template, subject, prompt):
    fact = Fact(template, subject)
    start, end = fact.subject_chars
    assert fact.prompt == prompt
    assert prompt[start:end] == subject


def test_a_repeated_subject_is_the_one_in_the_template():
    fact = Fact("Paris, Texas is not {}, France", "Paris")
    assert fact.prompt == "Paris, Texas is not Paris, France"
    assert fact.subject_chars == (20, 25)


@pytest.mark.parametrize(("template", "count"), [("The tower is in", 0), ("{} is near {}", 2), ("{ } is", 0)])
def test_a_template_has_exactly_one_pair_of_braces(template, count):
    with pytest.raises(InputError, match=rf"contains '{{}}' {count} times; write it exactly once"):
        Fact(template, "x")


@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_empty_texts_are_refused_by_name(empty):
    with pytest.raises(SubjectError, match="subject is empty"):
        Fact("{} is", empty)
    with pytest.raises(SubjectError, match="subject is empty"):
        Fact.from_prompt("Rome is", empty)
    with pytest.raises(InputError, match="target is empty"):
        Fact("{} is", "Rome", empty)
    with pytest.raises(InputError, match="target_new is empty"):
        EditRequest("{} is", "Rome", empty)
    with pytest.raises(InputError, match="target_true is empty"):
        EditRequest("{} is", "Rome", "big", empty)


def test_from_prompt_takes_the_first_occurrence():
    fact = Fact.from_prompt("Rome is Rome is", "Rome", "old")
    assert fact == Fact("{} is Rome is", "Rome", "old")
    assert fact.prompt == "Rome is Rome is"


def test_from_prompt_names_an_absent_subject_and_its_prompt():
    with pytest.raises(SubjectError) as caught:
        Fact.from_prompt("The Space Needle is in", "Space needle")
    message = "subject 'Space needle' does not occur in 'The Space Needle is in' (matching is case-sensitive)"
    assert str(caught.value) == message
    assert isinstance(caught.value, ValueError)


def test_from_prompt_refuses_braces_that_would_hide_the_subject():
    with pytest.raises(InputError, match=r"contains '{}' 2 times"):
        Fact.from_prompt("dict() or {} in Python", "Python")


def test_an_edit_request_is_a_fact_with_the_new_object():
    request = EditRequest("{} is in", "The Louvre", "Rome", "Paris")
    assert request.fact == Fact("{} is in", "The Louvre", "Rome")
    assert Fact("{} is in", "The Louvre", "Paris").rewrite("Rome") == request
    assert Fact("{} is in", "The Louvre").rewrite("Rome").target_true is None
    with pytest.raises(InputError, match="exactly once"):
        EditRequest("is in", "The Louvre", "Rome")
    with pytest.raises(SubjectError, match="subject is empty"):
        EditRequest("{} is in", " ", "Rome")


def test_a_prompt_in_place_of_a_fact_is_an_error_that_says_how_to_make_one():
    assert check_fact(Fact("{} is in", "Paris")) == Fact("{} is in", "Paris")
    with pytest.raises(InputError, match=r"'Paris is in' is a str, not a Fact; make one with tl_rome.Fact.from_prompt"):
        check_fact("Paris is in")


@pytest.mark.parametrize(
    "call",
    [
        lambda model, path: inspect.unwrap(encode_fact)(model, "Paris is in"),
        lambda model, path: collect_known_facts(model, iter(["Paris is in"]), progress=False),
        lambda model, path: trace_facts(model, iter(["Paris is in"]), ["mlp_out"], store=path),
    ],
    ids=["one", "known", "many"],
)
def test_every_function_that_takes_facts_says_so(tiny, tmp_path, call):
    with pytest.raises(InputError, match=r"Fact\.from_prompt"):
        call(tiny("gpt2", KINDS[0]), tmp_path / "store")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Fact("{} \ud83d is", "Rome"), "template"),
        (lambda: Fact("{} is", "Rome\udfff"), "subject"),
        (lambda: Fact("{} is", "Rome", "\ud83d"), "target"),
        (lambda: EditRequest("{} is", "Rome", "Paris\ud83d"), "target_new"),
        (lambda: EditRequest("{} is", "Rome", "Paris", "Rome\ud83d"), "target_true"),
    ],
    ids=["template", "subject", "target", "target_new", "target_true"],
)
def test_half_a_character_is_refused(make, name):
    with pytest.raises(InputError, match=rf"^{name} .*\\ud.*holds half a character"):
        make()


def test_a_whole_character_beyond_the_first_plane_is_text():
    assert Fact("{} is", "\N{ROOSTER}").prompt == "\N{ROOSTER} is"
