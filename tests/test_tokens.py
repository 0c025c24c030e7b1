import json
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.families import KINDS
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tl_rome.errors import InputError, SubjectError, UnsupportedModelError
from tl_rome.facts import Fact
from tl_rome.tokens import Prompt, SubjectSpan, encode, encode_fact, encode_target, joiner_after, pad, token_labels

SENTENCES = [
    "The Eiffel Tower is located in the city of Paris, and the towers of Rome are old.",
    "Yahoo! was created by Jerry Yang; its needles and the Space Needle are in Seattle.",
    "Shaquille O'Neal plays the sport of basketball. Danielle's mother tongue is French.",
    "東京 is in Japan. Łódź, café, Zürich and São Paulo are names. 'Really!' she said.",
]
WORDS = "Danielle Rome The Tower Eiffel Yahoo! O'Neal Łódź café 東京 👩‍👩‍👧 naïve needle ﬁ C++ (a) Ω".split()
GAPS = [" ", " ", " ", "", "  ", "\n", "\t", ", ", "'s ", "s ", "! ", "-", "'"]


def byte_level(normalizer=None, trim_offsets=None):
    """GPT-2's kind; with NFC Qwen's; with trimmed offsets RoBERTa's."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    if normalizer is not None:
        bpe.normalizer = normalizer
    if trim_offsets is not None:
        bpe.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    # A small vocabulary splits names; the last sentence, rare, leaves its accents, CJK and emoji in single bytes.
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bpe.train_from_iterator(SENTENCES[:3] * 3 + SENTENCES[3:], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|end|>", eos_token="<|end|>")


def metaspace(prefix_space):
    """SentencePiece BPE with byte fallback: Llama's kind with a space put in front of the text, Gemma's without."""
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=["<unk>", "<s>", *byte_tokens])
    bpe.train_from_iterator(SENTENCES[:3] * 3, trainer)
    bpe.pre_tokenizer = None
    replace = normalizers.Replace(" ", "▁")
    bpe.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix_space else replace
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    bpe.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix_space else steps)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", unk_token="<unk>")


def unigram():
    """A lossy one: NFKC, lower case, unknown characters."""
    model = Tokenizer(models.Unigram())
    model.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>"]
    trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False)
    model.train_from_iterator(SENTENCES * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=model, bos_token="<s>", unk_token="<unk>")


BUILDERS = {
    "byte-level": byte_level,
    "byte-level NFC": lambda: byte_level(normalizers.NFC()),
    "byte-level trimmed": lambda: byte_level(trim_offsets=True),
    "llama": lambda: metaspace(prefix_space=True),
    "gemma": lambda: metaspace(prefix_space=False),
    "unigram": unigram,
}
LOSSLESS = [name for name in BUILDERS if name not in ("unigram", "byte-level NFC")]


@pytest.fixture(scope="module")
def tokenizers():
    return {name: build() for name, build in BUILDERS.items()}


@pytest.fixture
def model(tokenizers):
    def get(name="byte-level", bos=False, n_ctx=200):
        return SimpleNamespace(tokenizer=tokenizers[name], cfg=SimpleNamespace(default_prepend_bos=bos, n_ctx=n_ctx))

    return get


def decoded(model, tokens):
    return model.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def span_by_decoding(model, text, chars):
    """Find the span the slow way: decode every prefix of the tokens. None where no tokens fit."""
    tokens = encode(model, text)
    prefixes = [decoded(model, tokens[:n]).rstrip() for n in range(len(tokens) + 1)]
    starts = [n for n, prefix in enumerate(prefixes) if prefix == text[: chars[0]].rstrip()]
    ends = [n for n, prefix in enumerate(prefixes) if prefix == text[: chars[1]].rstrip()]
    return SubjectSpan(max(starts), min(ends)) if starts and ends else None


# --- where the subject is


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(
    ("template", "subject"),
    [
        ("{} is located in the city of", "The Eiffel Tower"),
        ("The mother tongue of {} is", "Danielle"),
        ("The mother tongue of {}", "Danielle"),
        ("{}", "Space Needle"),
        ("In {} people speak", "Łódź"),
        ("{} is in", "東京"),
        ("People like {} and", "東京"),
        ("The sign 👩‍👩‍👧 {} is", "👩‍👩‍👧"),
        ("{} was created by", "Yahoo!"),
        ("{}, created by", "Yahoo!"),
        ("{}'s towers are old", "Rome"),
        ("The city\n{} is", "Paris"),
        ("The city\t{} is", "Paris"),
        ("The city   {}   is", "Paris"),
        ("  {} is", "Paris"),
        ("({}) is", "Paris"),
        ('{"a": {}}', "Paris"),
        ("Paris is not {} is not Paris", "Paris"),
    ],
)
@pytest.mark.parametrize("bos", [False, True])
def test_the_span_holds_the_subject_and_nothing_else(model, name, template, subject, bos):
    fact = Fact(template, subject)
    prompt = encode_fact(model(name, bos), fact)
    tokens = prompt.tokens[prompt.subject.slice]
    assert len(tokens) == len(prompt.subject)
    if name in LOSSLESS:
        assert decoded(model(name), tokens).strip() == subject
        plain = span_by_decoding(model(name), fact.prompt, fact.subject_chars)
        assert prompt.subject == plain.shifted(int(bos))
    else:  # lower case and unknown tokens: what is left of the visible text must still divide in the same way
        outside = torch.cat([prompt.tokens[int(bos) : prompt.subject.start], prompt.tokens[prompt.subject.end :]])
        around = encode(model(name), template.replace("{}", " "))
        assert decoded(model(name), outside).replace(" ", "") == decoded(model(name), around).replace(" ", "")


@pytest.mark.parametrize("name", LOSSLESS)
def test_random_prompts_resolve_exactly_when_decoding_says_so(model, name):
    draw = random.Random(0)
    outcomes = {"resolved": 0, "refused": 0}
    for case in range(500):
        text = "".join(draw.choice(WORDS) + draw.choice(GAPS) for _ in range(draw.randint(1, 6)))
        cuts = [0, *(n for n, c in enumerate(text) if not c.isalnum()), len(text)] if case % 2 else range(len(text) + 1)
        start, end = sorted(draw.sample(sorted(set(cuts)), 2))  # at any character, or at the ends of words
        if text[start:end] != text[start:end].strip():
            continue
        fact = Fact(text[:start] + "{}" + text[end:], text[start:end])
        expected = span_by_decoding(model(name), text, (start, end))
        try:
            assert encode_fact(model(name), fact).subject == expected, fact
            outcomes["resolved"] += 1
        except SubjectError:
            assert expected is None, fact
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 40, outcomes


@pytest.mark.parametrize("name", BUILDERS)
def test_bos_and_a_prefix_shift_the_span_and_change_nothing_else(model, name):
    fact = Fact("The mother tongue of {} is", "Danielle")
    plain = encode_fact(model(name), fact)
    with_bos = encode_fact(model(name, bos=True), fact)
    assert with_bos.tokens.tolist() == [model(name).tokenizer.bos_token_id, *plain.tokens.tolist()]
    assert with_bos.subject == plain.subject.shifted(1)
    assert (plain.prepend_bos, with_bos.prepend_bos) == (False, True)
    assert len(with_bos.labels) == len(with_bos.tokens)

    prefix = "Danielle {} and Danielle, Danielle said. "
    prefixed = encode_fact(model(name, bos=True), fact, prefix=prefix)
    assert prefixed.text == prefix + fact.prompt
    assert prefixed.tokens.tolist() == encode(model(name, bos=True), prefix + fact.prompt).tolist()
    behind = len(prefixed.tokens) - prefixed.subject.end
    assert behind == len(plain.tokens) - plain.subject.end
    assert len(prefixed.subject) == len(plain.subject)


def test_bos_is_ours_whatever_the_tokenizer_would_add(model):
    tokenizer = metaspace(prefix_space=True)
    bos = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="$A $B", special_tokens=[("<s>", bos)]
    )
    tokenizer.init_kwargs.update(add_bos_token=True)
    assert tokenizer("Paris")["input_ids"][0] == bos
    stub = model("llama")
    stub.tokenizer = tokenizer
    assert bos not in encode(stub, "Paris")
    assert bos not in encode_target(stub, "Paris", "The city of")
    stub.cfg.default_prepend_bos = True
    assert encode(stub, "Paris").tolist().count(bos) == 1
    assert encode_fact(stub, Fact("{} is", "Paris")).subject.start == 1


@pytest.mark.parametrize("name", ["llama", "unigram"])
def test_the_space_marker_before_the_text_is_not_the_subject(model, name):
    """Metaspace writes `▁` before the first character and lets it claim that character's offsets."""
    prompt = encode_fact(model(name), Fact("{} is", "(a)"))
    assert prompt.labels[0] == " "
    assert prompt.subject.start == 1


def test_a_composed_accent_belongs_to_its_letter(model):
    qwen = model("byte-level NFC")
    decomposed = "cafe\u0301"
    prompt = encode_fact(qwen, Fact("The {} is", decomposed))
    assert decoded(qwen, prompt.tokens[prompt.subject.slice]).strip() == "café"
    with pytest.raises(SubjectError, match="subject 'cafe' ends inside the token"):
        encode_fact(qwen, Fact("The {}\u0301 is", "cafe"))


def test_space_around_the_subject_is_not_part_of_it(model):
    bare = encode_fact(model(), Fact("The {} is", "Tower"))
    assert encode_fact(model(), Fact("The{}is", " Tower ")).subject == bare.subject


# --- what is refused


def test_a_subject_that_ends_inside_a_token_is_refused_with_the_tokens(model):
    stub = model()
    with pytest.raises(SubjectError) as caught:
        encode_fact(stub, Fact("The {}er is in", "Tow"))
    labels = list(token_labels(stub, encode(stub, "The Tower is in")))
    assert str(caught.value) == (
        f"subject 'Tow' ends inside the token ' Tower' of {labels}; "
        "choose a subject and template that meet at a token boundary"
    )


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("bos", [False, True])
def test_a_subject_that_starts_inside_a_token_is_refused(model, name, bos):
    fact = Fact("The Tow{} is in", "er")
    with pytest.raises(SubjectError, match=r"subject 'er' starts inside the token '.*er' of \["):
        encode_fact(model(name, bos), fact)


def test_half_of_a_character_never_counts_as_a_boundary(model):
    """A vocabulary may merge the last byte of one character with the first of the next."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merge = "¬", "ä"  # 京 is e4 ba ac, and 亜 begins with e4
    vocabulary = {piece: n for n, piece in enumerate([*alphabet, "".join(merge)])}
    bpe.model = models.BPE(vocab=vocabulary, merges=[merge])
    stub = model()
    stub.tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    assert len(encode_fact(stub, Fact("{} 亜", "京")).subject) == 3
    with pytest.raises(SubjectError, match="ends inside the token"):
        encode_fact(stub, Fact("{}亜", "京"))
    with pytest.raises(SubjectError, match="starts inside the token"):
        encode_fact(stub, Fact("京{}", "亜"))
    assert len(encode_fact(stub, Fact("{}", "京亜")).subject) == 5


def test_a_subject_that_the_tokenizer_drops_is_refused(model):
    stub = model()
    stub.tokenizer = byte_level(normalizers.Replace("Paris", ""))
    with pytest.raises(SubjectError, match="subject 'Paris' has no token of its own in"):
        encode_fact(stub, Fact("The city of {} is", "Paris"))


@pytest.mark.parametrize("offsets", [[(0, 0), (3, 3), (6, 6)], [(0, 3), (6, 8), (3, 6)]])
def test_offsets_that_make_no_sense_are_refused(model, offsets):
    """Zero-width offsets came from real Llama 3 tokenizers once."""

    class Broken:
        is_fast, bos_token_id = True, None
        pieces = ("The", " city", " is")

        def __call__(self, text, **options):
            return {"input_ids": [0, 1, 2], "offset_mapping": offsets}

        def convert_ids_to_tokens(self, token):
            return self.pieces[token]

        def decode(self, tokens, **options):
            return self.pieces[tokens[0]]

    stub = model()
    stub.tokenizer = Broken()
    with pytest.raises(UnsupportedModelError, match="do not describe its tokens"):
        encode_fact(stub, Fact("The {} is", "city"))


def test_tokenizers_that_cannot_do_it_are_named(model):
    stub = model(bos=True)
    stub.tokenizer = None
    for call in (
        lambda: encode(stub, "x"),
        lambda: encode_fact(stub, Fact("{}", "x")),
        lambda: encode_target(stub, "x"),
    ):
        with pytest.raises(UnsupportedModelError, match="no tokenizer"):
            call()
    stub.tokenizer = SimpleNamespace(is_fast=False)
    with pytest.raises(
        UnsupportedModelError, match=r"SimpleNamespace gives no character offsets .* use a fast tokenizer"
    ):
        encode_fact(stub, Fact("{}", "x"))
    stub.tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level().backend_tokenizer)
    with pytest.raises(
        UnsupportedModelError, match=r"no BOS token; set one, or model\.cfg.default_prepend_bos = False"
    ):
        encode(stub, "x")
    stub.cfg.default_prepend_bos = False
    assert len(encode(stub, "x")) == 1


def test_a_prompt_must_fit_the_context(model):
    text = "The Tower is in"
    count = len(encode(model(), text))
    assert len(encode(model(n_ctx=count), text)) == count
    with pytest.raises(InputError, match=f"'The Tower is in' has {count + 1} tokens, the model's context only {count}"):
        encode(model(n_ctx=count, bos=True), text)
    with pytest.raises(InputError, match=f"has {count} tokens, the model's context only {count - 1}"):
        encode_fact(model(n_ctx=count - 1), Fact("The {} is in", "Tower"))
    cut = encode(model(n_ctx=count, bos=True), text, truncate=True)
    assert cut.tolist() == encode(model(bos=True), text)[:count].tolist()
    target = encode_target(model(n_ctx=count + 1), "Paris", text)
    assert len(target) == 1
    with pytest.raises(InputError, match=f"'The Tower is in Paris' has {count + 1} tokens, the model's context only"):
        encode_target(model(n_ctx=count), "Paris", text)


def test_a_long_prompt_is_cut_short_in_the_message(model):
    with pytest.raises(InputError) as caught:
        encode(model(), "needle " * 500)
    assert len(str(caught.value)) < 200


def test_an_empty_prompt_needs_bos(model):
    with pytest.raises(InputError, match="'' has no tokens and the model's policy is to prepend no BOS"):
        encode(model(), "")
    with pytest.raises(InputError, match="has no tokens"):
        encode_target(model(), "Paris", "")
    assert encode(model(bos=True), "").tolist() == [model().tokenizer.bos_token_id]
    assert encode_target(model(bos=True), "Paris", "").tolist() == encode_target(model(), "Paris").tolist()


# --- targets


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("prompt", ["The Tower is in", "She said:", "Yahoo!", "서울", "👩‍👩‍👧", "in the 'café'"])
@pytest.mark.parametrize("target", ["Paris", "the city of Rome", "東京", "O'Neal", "(a)", "'s", "Łódź, Japan"])
def test_a_target_continues_the_prompt(model, name, bos, prompt, target):
    stub = model(name, bos)
    joined = torch.cat([encode(stub, prompt), encode_target(stub, target, prompt)])
    assert joined.tolist() == encode(stub, f"{prompt} {target}").tolist()
    assert encode_target(stub, target).tolist() == encode_target(stub, target, prompt).tolist()


@pytest.mark.parametrize(
    ("prompt", "joiner"),
    [
        ("The Tower is in", " "), ("She said:", " "), ("100%", " "), ("(see there)", " "), ("the 'café'", " "),
        ("called “so”", " "), ("In 1889,", " "), ("one - ", ""), ("서울은", " "), ("👩", " "), ("", " "),
        ("ten –", " "), ('is called "', ""), ("is called “", ""), ("it said ('", ""), ("costs $", ""), ("costs €", ""),
        ("tower (", ""),
        ("line\n", ""), ("the twenty-", ""), ("see #", ""), ("and/", ""), ("snake_", ""), ("中国的首都是", ""),
        ("日本の首都は", ""), ("首都：", ""), ("「", ""), ("ーー", ""), ("เมืองหลวงคือ", ""),
    ],
)  # fmt: skip
def test_the_prompts_end_decides_on_the_joiner(prompt, joiner):
    assert joiner_after(prompt) == joiner


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "unigram"])  # it joins what it does not know
@pytest.mark.parametrize(
    ("prompt", "target"), [('She called it "', "Paris"), ("It costs $", "20"), ("東京は", "日本"), ("(", "Rome")]
)
def test_no_space_where_the_prompt_leaves_no_room_for_one(model, name, prompt, target):
    stub = model(name)
    joined = torch.cat([encode(stub, prompt), encode_target(stub, target, prompt)]).tolist()
    assert joined == encode(stub, prompt + target).tolist()
    spaced = torch.cat([encode(stub, prompt), encode_target(stub, target, prompt, " ")]).tolist()
    assert spaced == encode(stub, f"{prompt} {target}").tolist()
    assert spaced != joined


def test_bos_is_not_put_twice(model):
    stub = model(bos=True)
    bos = stub.tokenizer.bos_token
    fact = Fact(f"{bos}Where is {{}}? In", "the Tower")
    found = encode_fact(stub, fact)
    assert found.tokens.tolist() == encode(stub, f"{bos}Where is the Tower? In").tolist()
    assert found.tokens.tolist() == encode(stub, "Where is the Tower? In").tolist()
    assert found.tokens.tolist().count(stub.tokenizer.bos_token_id) == 1
    assert found.prepend_bos
    subject = stub.tokenizer.decode(found.tokens[found.subject.slice].tolist())
    assert subject.strip() == "the Tower"


@pytest.mark.parametrize("name", BUILDERS)
def test_space_around_a_target_is_not_part_of_it(model, name):
    stub = model(name)
    assert (
        encode_target(stub, " Paris\n", "The city of").tolist() == encode_target(stub, "Paris", "The city of").tolist()
    )


@pytest.mark.parametrize("name", ["byte-level", "byte-level trimmed"])
@pytest.mark.parametrize("target", ["Paris", "the city of Rome", "Łódź"])
def test_byte_level_targets_alone_are_those_of_the_released_code(model, name, target):
    stub = model(name)
    assert encode_target(stub, target).tolist() == encode(stub, f" {target}").tolist()


def test_a_prompt_may_end_in_a_newline_but_not_in_the_targets_own_space(model):
    stub = model()
    target = encode_target(stub, "Paris", "The city:\n")
    assert torch.cat([encode(stub, "The city:\n"), target]).tolist() == encode(stub, "The city:\nParis").tolist()
    with pytest.raises(InputError, match="prompt 'The city of ' ends in a space that belongs to the token of 'Paris'"):
        encode_target(stub, "Paris", "The city of ")


def test_a_tokenizer_that_merges_over_the_boundary_leaves_the_prompt_as_it_is(model):
    """One without pre-tokenisation may have learnt "of Paris" as one piece."""
    bpe = Tokenizer(models.BPE())
    merges = [("o", "f"), ("of", " "), ("P", "a"), ("of ", "Pa"), (" ", "Pa")]
    vocabulary = {piece: n for n, piece in enumerate([*"ofPa :", *("".join(merge) for merge in merges)])}
    bpe.model = models.BPE(vocab=vocabulary, merges=merges)
    stub = model()
    stub.tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    assert token_labels(stub, encode(stub, "of Pa")) == ("of Pa",)
    assert token_labels(stub, encode_target(stub, "Pa", "of")) == (" Pa",)
    assert token_labels(stub, encode(stub, "of Pa:")) == ("of Pa", ":")
    assert token_labels(stub, encode_target(stub, "Pa:", "of")) == (" Pa", ":")


@pytest.mark.parametrize("empty", ["", "  ", "\n"])
def test_an_empty_target_is_refused(model, empty):
    with pytest.raises(InputError, match="target is empty"):
        encode_target(model(), empty, "The city of")


# --- labels


@pytest.mark.parametrize("name", BUILDERS)
def test_labels_are_printable_and_keep_leading_spaces(model, name):
    stub = model(name, bos=True)
    prompt = encode_fact(stub, Fact("The tower of {}\n東京\tis 👩‍👩‍👧 \u200b", "Paris"))
    assert len(prompt.labels) == len(prompt.tokens)
    assert all(label and label.isprintable() for label in prompt.labels)
    assert prompt.labels[0] == stub.tokenizer.bos_token
    joined = "".join(prompt.labels[prompt.subject.slice])
    assert joined == (" paris" if name == "unigram" else " Paris")


def test_parts_of_a_character_have_a_label(model):
    assert set("".join(token_labels(model(), encode(model(), "京")))) == {"\ufffd"}
    assert token_labels(model("gemma"), encode(model("gemma"), "京")) == ("<0xE4>", "<0xBA>", "<0xAC>")
    assert token_labels(model(), torch.tensor([100_000])) == ("<100000>",)


# --- spans and batches


def test_a_span_is_a_half_open_range():
    span = SubjectSpan(2, 5)
    assert (len(span), span.last) == (3, 4)
    assert list(range(10))[span.slice] == [2, 3, 4]
    assert span.shifted(2) == SubjectSpan(4, 7)
    assert span.shifted(2).shifted(-2) == span
    for start, end in [(3, 3), (4, 3), (-1, 2)]:
        with pytest.raises(InputError, match=rf"span \[{start}, {end}\) is not a range of positions"):
            SubjectSpan(start, end)
    with pytest.raises(InputError, match="span"):
        span.shifted(-3)


def test_another_subject_of_the_same_length_can_take_the_place(model):
    stub = model(bos=True)
    one, other = (encode_fact(stub, Fact("The city of {} is old", name)) for name in ("Paris", "Rome"))
    assert one.subject == other.subject
    replaced = one.tokens.clone()
    replaced[one.subject.slice] = other.tokens[other.subject.slice]
    assert replaced.tolist() == other.tokens.tolist()


def test_padding_is_on_the_right():
    sequences = [torch.tensor(row) for row in ([5, 6, 7], [8], [9, 4])]
    batch = pad(sequences, pad_token=1)
    assert batch.tokens.tolist() == [[5, 6, 7], [8, 1, 1], [9, 4, 1]]
    assert batch.lengths.tolist() == [3, 1, 2]
    assert batch.tokens[torch.arange(3), batch.last].tolist() == [7, 8, 4]
    assert batch.tokens.dtype == batch.lengths.dtype == torch.int64
    assert pad(sequences).tokens[1].tolist() == [8, 0, 0]


@pytest.mark.parametrize("lengths", [[], [0], [2, 0]])
def test_nothing_to_pad_is_refused(lengths):
    with pytest.raises(InputError, match="cannot pad sequences of lengths"):
        pad([torch.zeros(n, dtype=torch.long) for n in lengths])


# --- with models and real prompts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_loaded_model_is_given_the_tokens_transformerlens_would_make(tiny, family, kind):
    tiny_model = tiny(family, kind)
    prompt = encode_fact(tiny_model, Fact("{} is located in the city of", "The Eiffel Tower", "Paris"))
    assert isinstance(prompt, Prompt)
    assert prompt.prepend_bos == tiny_model.cfg.default_prepend_bos
    assert prompt.tokens.tolist() == tiny_model.to_tokens(prompt.text)[0].tolist()
    assert "".join(prompt.labels[prompt.subject.slice]).strip() == "The Eiffel Tower"


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_logits(tiny, kind):
    tiny_model = tiny("llama", kind)
    sequences = [encode(tiny_model, text) for text in ("The tower is in Paris", "Rome", "The city of")]
    batch = pad(sequences)
    with torch.no_grad():
        logits = tiny_model(batch.tokens)
        for row, sequence in enumerate(sequences):
            alone = tiny_model(sequence[None])[0]
            torch.testing.assert_close(logits[row, : batch.lengths[row]], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.leg("3.9")
def test_the_golden_prompts_are_tokenised_as_the_authors_code_did(shared_data, smollm2):
    real = smollm2(KINDS[-1])
    stub = SimpleNamespace(tokenizer=real.tokenizer, cfg=SimpleNamespace(default_prepend_bos=False, n_ctx=2048))
    for path in sorted((shared_data / "golden").glob("trace_*_hidden.npz")):
        golden = np.load(path)
        start, end = golden["subject_range"].tolist()
        text = real.tokenizer.decode(golden["input_ids"].ravel())
        subject = real.tokenizer.decode(golden["input_ids"].ravel()[start:end]).strip()
        prompt = encode_fact(stub, Fact.from_prompt(text, subject))
        assert prompt.tokens.tolist() == golden["input_ids"].ravel().tolist()
        assert prompt.subject == SubjectSpan(start, end)


@pytest.mark.leg("3.9")
def test_real_prompts_resolve_or_are_refused_for_a_merged_edge(shared_data, smollm2):
    real = smollm2(KINDS[-1])
    records = json.loads((shared_data / "data" / "counterfact" / "records_400.json").read_text(encoding="utf-8"))
    known = json.loads((shared_data / "data" / "known_facts.json").read_text(encoding="utf-8"))
    rewrites = [record["requested_rewrite"] for record in records]
    facts = [Fact(r["prompt"], r["subject"], r["target_new"]["str"]) for r in rewrites]
    facts += [
        Fact.from_prompt(prompt, r["subject"], r["target_true"]["str"])
        for record, r in zip(records, rewrites, strict=True)
        for prompt in record["paraphrase_prompts"] + record["generation_prompts"]
    ]
    facts += [Fact.from_prompt(k["prompt"], k["subject"], k["attribute"]) for k in known]
    refused = set()
    for fact in facts:
        try:
            prompt = encode_fact(real, fact)
        except SubjectError as error:
            refused.add(str(error).partition(" of [")[0])
            continue
        assert decoded(real, prompt.tokens[prompt.subject.slice]).strip() == fact.subject
        whole = torch.cat([prompt.tokens[int(prompt.prepend_bos) :], encode_target(real, fact.target, prompt.text)])
        assert decoded(real, whole) == f"{prompt.text} {fact.target}"
    assert refused == {
        "subject 'Re!' ends inside the token \"!'\"",
        "subject 'Co-operative Commonwealth Federation (Ontario Section)' ends inside the token \")'\"",
    }
