"""What counts as an answer, by hand."""

import dataclasses
import math

import pytest
from support.results import REWRITE, case, measurement, scores

from tl_rome.counterfact import EvaluationConfig, summarize
from tl_rome.counterfact.metrics.free import contains, is_exact, natural_stop, normalized
from tl_rome.counterfact.results import Generation
from tl_rome.errors import InputError


@pytest.mark.parametrize(
    ("text", "stopped"),
    [
        (" Rome. It is old.", " Rome."),
        ("\n\n Rome\nParis", "\n\n Rome"),
        (" St. Louis, at 3.5 km. Then", " St. Louis, at 3.5 km."),
        (" Washington, D.C. and Paris. Then", " Washington, D.C. and Paris."),
        ("罗马。巴黎", "罗马。"),
        ("罗马！巴黎", "罗马！"),
        (" Rome! It is not Paris.", " Rome!"),
        (" Yahoo!com", " Yahoo!com"),
        (" Rome", " Rome"),
        ("", ""),
    ],
)
def test_an_answer_ends_at_its_full_stop_or_line(text, stopped):
    assert natural_stop(text) == stopped


@pytest.mark.parametrize(
    ("text", "target", "named", "exact"),
    [
        (" the city of Rome.", "Rome", True, False),
        (" rome.", "Rome", True, True),
        (" The  United States", "the United States", True, True),
        (" Ankara–Rome/Oslo", "Rome", True, False),
        (" Rolls-Royce", "Rolls Royce", True, True),
        (" Rome's largest square", "Rome", True, False),
        (" MCDONALD’S", "McDonald's", True, True),
        (" Romeo", "Rome", False, False),
        (" Jerome", "Rome", False, False),
        (" Washington DC", "Washington, D.C.", True, True),
        ("位于罗马。", "罗马", True, False),
        ("로마에 있다", "로마", True, False),
        ("مدينة روما القديمة", "روما", True, False),
        ("رومانيا", "روما", False, False),
        ("ברומא העיר", "רומא", False, False),
        ("रोमानिया", "रोम", False, False),
        (" 1999", "199", False, False),
        (" The The.", "The The", True, True),
        ("", "Rome", False, False),
    ],
)
def test_texts_are_compared_after_normalisation(text, target, named, exact):
    assert (contains(text, target), is_exact(text, target)) == (named, exact)


def test_normalisation():
    assert normalized(" The “Rome”, an  Old city!") == "rome old city"


AFTER = dataclasses.replace(
    measurement(True, [True, True], [True]),
    rewrite=dataclasses.replace(scores((1.0, 2.0)), argmax_new=(True,)),
    free_rewrite=(Generation("It is in", " Ankara, not in Paris."),),
    free_paraphrase=(Generation("a", " Glasgow."), Generation("b", " Glasgow and Paris.")),
)


def test_columns_and_gaps_by_hand():
    seen = []

    def judge(prompt, said, target):
        seen.append((prompt, said, target))
        return 0.5 if prompt == "a" else True

    found = summarize([case(1, AFTER)], judge=judge).rows["rome"]
    expected = {"free": 0, "exact": 0, "free P": 100, "exact P": 50, "judge": 100, "judge P": 75}
    expected |= {"ES-free": 100, "EA-free": 100, "PS-free": 0}
    assert {name: found[name].mean for name in expected} == expected
    assert math.isnan(found["PA-free"].mean)
    assert seen[0] == ("It is in", " Ankara, not in Paris.", REWRITE.target_new.str)
    assert summarize([case(1, AFTER)]).rows["rome"]["judge"].n == 0


def test_a_judge_that_returns_something_else_is_refused():
    with pytest.raises(InputError, match="the judge returned 'yes'; return True, False"):
        summarize([case(1, AFTER)], judge=lambda *_: "yes")


def test_settings_of_stores_made_without_free_answers_are_as_before():
    plain, free = EvaluationConfig().describe(), EvaluationConfig(free=True).describe()
    assert not {"free", "free_tokens"} & plain.keys()
    assert (free["free"], free["free_tokens"]) == (True, 20)
