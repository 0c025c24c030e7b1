"""Entropy and reference score against values worked out by hand, and against scikit-learn's own product."""

import math

import pytest
from support.results import REWRITE

from tl_rome.counterfact.dataset.references import ReferenceText, ReferenceTexts
from tl_rome.counterfact.metrics.texts import (
    generation_entropy,
    mention_rate,
    ngram_entropy,
    reference_score,
    word_tokenizer,
)


def test_ngram_entropy_in_bits():
    # Bigrams of "a b a b a": ab ab ba ba; trigrams: aba aba bab.
    words = "a b a b a".split()
    assert ngram_entropy(words, 2) == pytest.approx(1.0)
    assert ngram_entropy(words, 3) == pytest.approx(2 / 3 * math.log2(3 / 2) + 1 / 3 * math.log2(3))
    assert ngram_entropy(words, 6) == 0
    assert ngram_entropy(["a"] * 9, 2) == 0


def test_generation_entropy_weighs_trigrams_twice_and_averages_texts():
    # Six different words: log2(5) bits of bigrams, log2(4) of trigrams.
    fluent = (2 / 3 * math.log2(5) + 4 / 3 * math.log2(4)) / 2
    assert generation_entropy(["a b c d e f"], str.split) == pytest.approx(fluent)
    assert generation_entropy(["a b c d e f", "a a a a"], str.split) == pytest.approx(fluent / 2)
    assert math.isnan(generation_entropy([], str.split))


def test_words_are_nltks_without_a_download():
    words = word_tokenizer()
    assert words("Mr. Smith can't go. It's late") == ["Mr.", "Smith", "ca", "n't", "go", ".", "It", "'s", "late"]
    assert words('He paid $3.50 (in the U.S. alone). "So what?" she said.') == [
        *("He", "paid", "$", "3.50", "(", "in", "the", "U.S.", "alone", ")", ".", "``", "So", "what", "?", "''"),
        *("she", "said", "."),
    ]


def references(**texts):
    return ReferenceTexts({("P159", name): tuple(ReferenceText("", x) for x in each) for name, each in texts.items()})


def test_reference_score_is_the_cosine_of_tf_idf_vectors():
    known = references(Glasgow=["rome colosseum", "rome forum"], Paris=["paris louvre"])
    # Smoothed idf: log((1 + 3) / (1 + df)) + 1; "rome" is in two of three texts.
    rome, other = math.log(4 / 3) + 1, math.log(4 / 2) + 1
    generated, wanted = {"rome": rome, "louvre": other}, {"rome": 2 * rome, "colosseum": other, "forum": other}
    norm = [math.sqrt(sum(x * x for x in vector.values())) for vector in (generated, wanted)]
    expected = generated["rome"] * wanted["rome"] / (norm[0] * norm[1])
    assert reference_score(["Rome,", "the Louvre!"], REWRITE, known) == pytest.approx(expected)
    assert reference_score(["forum rome", "rome colosseum"], REWRITE, known) == pytest.approx(1)
    assert reference_score(["paris"], REWRITE, known) == 0


@pytest.mark.parametrize(
    ("texts", "known"),
    [([], references(Glasgow=["rome"])), (["rome"], references(Paris=["rome"])), (["x"], references(Glasgow=["rome"]))],
)
def test_reference_score_without_texts_or_known_words_is_nan(texts, known):
    assert math.isnan(reference_score(texts, REWRITE, known))


def test_mention_rate_takes_whole_words_in_any_case():
    assert mention_rate([" in Rome.", " romeo", " in ROME and Paris", ""], "Rome") == 2 / 4
    assert mention_rate([" C++ is", " C+"], "C++") == 1 / 2
