"""Parts of training data share no subject, nor do they with what is kept for testing."""

from collections import Counter

import pytest
import torch

from tl_rome.editors.trained.data.parts import refuse_subjects, split_examples, subject_key, without_subjects
from tl_rome.editors.trained.examples import TrainingExample
from tl_rome.errors import InputError


def example(subject, record=""):
    return TrainingExample(f"{subject or 'text'} is in", "Rome", "It is in", subject, record=record)


EXAMPLES = [example(f"City {i % 8}") for i in range(20)] + [example("", f"text {i % 4}") for i in range(8)]


def split(seed=0, **sizes):
    options = {"train": 12, "validation": 5, "check": 4, **sizes}
    return split_examples(EXAMPLES, generator=torch.Generator().manual_seed(seed), **options)


def test_parts_share_neither_subjects_nor_texts():
    parts = split()
    found = [parts.train, parts.validation, parts.check]
    assert [len(part) for part in found] == [12, 5, 4]
    named = Counter(name for part in found for name in {each.subject or each.record for each in part})
    assert max(named.values()) == 1
    assert all(each in EXAMPLES for part in found for each in part)


def test_parts_follow_the_generator():
    assert split() == split()
    assert split() != split(seed=1)


def test_too_few_examples_are_refused():
    with pytest.raises(InputError, match="28 examples of 12 subjects or texts are too few to train on some"):
        split(validation=26)
    assert len(split(train=30).train) < 28 - 5 - 4 + 1


def test_a_subject_is_known_whatever_its_case_and_spaces():
    assert subject_key("  Saint  PETERSBURG\n") == subject_key("saint petersburg")
    assert subject_key("Straße") == subject_key("STRASSE")
    rest = without_subjects(EXAMPLES, ["city  3", "CITY 5", ""])
    assert {each.subject for each in EXAMPLES} - {each.subject for each in rest} == {"City 3", "City 5"}
    refuse_subjects(rest, ["city  3", "CITY 5", ""])


def test_subjects_kept_for_testing_are_refused_by_name():
    with pytest.raises(InputError, match=r"share 2 subjects .* 'City 3', 'City 5'; leave them out"):
        refuse_subjects(EXAMPLES, ["Berlin", "city  3", "CITY 5"])
    with pytest.raises(InputError, match="'City 4' and 3 more"):
        refuse_subjects(EXAMPLES, [f"City {i}" for i in range(8)])
