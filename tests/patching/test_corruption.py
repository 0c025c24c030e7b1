"""Noise on the subject's embeddings: its scale, its source and its shape."""

import numpy as np
import pytest
import torch
from support.families import KINDS

from tl_rome.errors import InputError
from tl_rome.facts import Fact
from tl_rome.patching import (
    AddedNoise,
    GaussianNoise,
    HeavyTailedNoise,
    ReleasedNoise,
    TraceConfig,
    UniformNoise,
    attribution_trace,
    causal_trace,
    example_subjects,
    noise_scale,
    replaced_subject,
)
from tl_rome.sites import EMBED
from tl_rome.tokens import encode, encode_fact

each_kind = pytest.mark.parametrize("kind", KINDS)
EMBEDDINGS = torch.full((3, 400), 7.0)
SUBJECTS = ("The Eiffel Tower", "Łucja", "New York")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_gaussian_noise_is_independent_with_the_standard_deviation_asked_for():
    noise = GaussianNoise(0.3, samples=20)(EMBEDDINGS, seeded()) - EMBEDDINGS
    assert noise.shape == (20, 3, 400)
    assert noise.mean().abs() < 0.01
    assert noise.std() == pytest.approx(0.3, rel=0.03)
    assert torch.corrcoef(noise.flatten(0, 1)).fill_diagonal_(0).abs().max() < 0.25  # of 60 rows


def test_seeds_decide_the_draws_and_global_random_state_is_left_alone():
    state = torch.get_rng_state()
    first, again, other = (GaussianNoise(1.0)(EMBEDDINGS, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_do_not_depend_on_dtype_or_scale():
    noise = GaussianNoise(2.0)(EMBEDDINGS.double(), seeded()) - 7
    single = GaussianNoise(1.0)(EMBEDDINGS, seeded())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single - 7, (noise / 2).float(), rtol=0, atol=1e-6)
    assert GaussianNoise(1.0)(EMBEDDINGS.bfloat16(), seeded()).dtype == torch.bfloat16


@pytest.mark.parametrize(("sigma", "samples"), [(0.0, 10), (-1.0, 10), (float("nan"), 10), (1.0, 0)])
def test_noise_that_is_none_is_refused(sigma, samples):
    with pytest.raises(
        InputError, match=f"sigma is {sigma}; give a number above 0" if samples else "samples is 0; give"
    ):
        GaussianNoise(sigma, samples)


KINDS_OF_NOISE = (GaussianNoise, UniformNoise, HeavyTailedNoise, ReleasedNoise)


@pytest.mark.parametrize("noise", KINDS_OF_NOISE)
def test_noise_without_sigma_is_at_the_models_own_scale(tiny, noise):
    model, fact = tiny("gpt2", KINDS[0]), Fact("In {} is", "Paris")
    given, measured = (
        causal_trace(model, fact, generator=seeded(), corruption=corruption, progress=False)
        for corruption in (noise(noise_scale(model), samples=2), noise(samples=2))
    )
    assert torch.equal(given.scores, measured.scores)
    assert given.corruption == measured.corruption
    with pytest.raises(InputError, match="has no scale yet; give sigma"):
        noise(samples=2)(EMBEDDINGS, seeded())


@each_kind
def test_a_generator_is_needed_only_where_something_is_drawn(tiny, kind):
    model, fact = tiny("gpt2", kind), Fact("In {} is", "Paris")
    rome = replaced_subject(model, fact, "Rome")
    added = AddedNoise(torch.ones(2, 1, model.cfg.d_model))
    for corruption in (rome, added, ReleasedNoise(samples=2)):
        with_one = causal_trace(model, fact, generator=seeded(), corruption=corruption, progress=False)
        assert torch.equal(causal_trace(model, fact, corruption=corruption, progress=False).scores, with_one.scores)
    config = TraceConfig(corruption=rome)
    assert attribution_trace(model, fact, config=config).samples == 1
    for options in (
        {},
        {"corruption": UniformNoise(1.0)},
        {"corruption": lambda embeddings, generator: embeddings[None]},
    ):
        with pytest.raises(InputError, match=r"draws at random; give generator=torch.Generator\(\)"):
            causal_trace(model, fact, progress=False, **options)
    with pytest.raises(InputError, match="GaussianNoise draws at random"):
        attribution_trace(model, fact)


def test_added_noise_is_added_as_given():
    noise = torch.randn(2, 3, 400, generator=seeded(), dtype=torch.float64)
    corrupted = AddedNoise(noise)(EMBEDDINGS, seeded())
    assert torch.equal(corrupted, (EMBEDDINGS.double() + noise).float())


@pytest.mark.parametrize("shape", [(2, 4, 400), (2, 3, 399)])
def test_noise_of_another_shape_is_refused_with_both_shapes(shape):
    message = rf"noise is for \({shape[1]}, {shape[2]}\) \(tokens, d_model\), the subject has \(3, 400\)"
    with pytest.raises(InputError, match=message):
        AddedNoise(torch.zeros(shape))(EMBEDDINGS, seeded())


@each_kind
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_noise_scale_is_three_standard_deviations_of_subject_token_embeddings(tiny, family, kind):
    model = tiny(family, kind)
    ids = [token for subject in SUBJECTS for token in model.tokenizer(subject)["input_ids"]]
    expected = model.W_E[ids].double().std().item()
    assert noise_scale(model, SUBJECTS) == pytest.approx(3 * expected, rel=1e-9)
    assert noise_scale(model, iter(SUBJECTS), multiple=1.0) == pytest.approx(expected, rel=1e-9)


@each_kind
def test_noise_scale_does_not_count_bos(tiny, fresh_tiny, kind):
    model = fresh_tiny("gpt2", kind, prepend_bos=True)
    assert noise_scale(model, SUBJECTS) == noise_scale(tiny("gpt2", kind), SUBJECTS)


@pytest.mark.skipif(len(KINDS) < 2, reason="this TransformerLens has one class")
def test_noise_scale_is_the_same_in_both_classes_where_embeddings_are_multiplied(tiny):
    # Gemma multiplies embeddings by sqrt(d_model); the noise is added after that in both classes.
    hooked, bridge = (noise_scale(tiny("gemma2", kind), SUBJECTS) for kind in KINDS)
    assert hooked == pytest.approx(bridge, rel=1e-5)
    assert hooked > 4 * noise_scale(tiny("llama", "hooked"), SUBJECTS)


@each_kind
def test_noise_scale_without_subjects_is_refused(tiny, kind):
    with pytest.raises(InputError, match="no subjects to measure embeddings on"):
        noise_scale(tiny("gpt2", kind), [])


def test_example_subjects_ship_with_the_package(tiny):
    subjects = example_subjects()
    assert len(set(subjects)) == len(subjects) >= 50
    assert all(subject == subject.strip() != "" for subject in subjects)
    assert noise_scale(tiny("gpt2", KINDS[0])) == noise_scale(tiny("gpt2", KINDS[0]), subjects)


def test_uniform_noise_fills_its_interval():
    noise = UniformNoise(0.5, samples=20)(EMBEDDINGS, seeded()) - EMBEDDINGS
    assert noise.abs().max() <= 0.5 + 1e-6
    assert noise.std() == pytest.approx(0.5 / 3**0.5, rel=0.03)


def test_heavy_tails_come_from_whole_tokens():
    noise = HeavyTailedNoise(1.0, samples=4000, degrees=5)(EMBEDDINGS[:, :8].double(), seeded()) - 7
    norms = noise.norm(dim=-1)
    gaussian = GaussianNoise(1.0, samples=4000)(EMBEDDINGS[:, :8].double(), seeded()) - 7
    assert norms.max() > 2 * gaussian.norm(dim=-1).max()
    assert noise.var() == pytest.approx(5 / 3, rel=0.1)  # degrees / (degrees - 2)
    with pytest.raises(InputError, match="degrees is 0; give"):
        HeavyTailedNoise(1.0, degrees=0)


def test_released_noise_is_the_authors_own(shared_data):
    with np.load(shared_data / "golden" / "trace_2_hidden.npz") as golden:
        noise = torch.from_numpy(golden["noise"])
    sigma = (noise[0, 0, 0] / np.random.RandomState(1).randn(1)[0]).item()
    found = ReleasedNoise(sigma, samples=len(noise))(torch.zeros(noise.shape[1:]).double(), seeded())
    torch.testing.assert_close(found, noise)


@each_kind
def test_another_subject_takes_the_subjects_place(tiny, kind):
    model = tiny("gpt2", kind)
    fact = Fact("In {} is", "Paris")
    result = causal_trace(
        model, fact, generator=seeded(), corruption=replaced_subject(model, fact, "Rome"), progress=False
    )
    theirs = encode_fact(model, Fact("In {} is", "Rome")).tokens
    answer = int(model(encode_fact(model, fact).tokens[None])[0, -1].argmax())
    assert result.corrupted_score == pytest.approx(model(theirs[None])[0, -1].softmax(-1)[answer].item(), rel=1e-5)
    assert (result.samples, result.corruption) == (1, "ReplacedSubject('Rome')")


@each_kind
def test_a_subject_of_another_length_is_refused_with_both_shown(tiny, kind):
    model = tiny("gpt2", kind)
    fact = Fact("In {} is", "Eiffel Tower")
    with pytest.raises(
        InputError, match=r"'Eiffel Tower' is \[.*\] and 'Rome' is \[' Rome'\] \(2 and 1 tokens\); choose"
    ):
        replaced_subject(model, fact, "Rome")
    rome = replaced_subject(model, Fact("In {} is", "Paris"), "Rome")
    with pytest.raises(InputError, match="'Rome' has 1 tokens, the subject 2"):
        causal_trace(model, fact, generator=seeded(), corruption=rome, progress=False)


@each_kind
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])  # without and with a BOS token
def test_the_noise_scale_is_that_of_subjects_one_by_one(tiny, family, kind, monkeypatch):
    model = tiny(family, kind)
    bos = int(model.cfg.default_prepend_bos)
    rows = [model.run_with_cache(encode(model, name)[None])[1][EMBED][0, bos:] for name in SUBJECTS]
    assert len({len(row) for row in rows}) > 1
    expected = 3 * torch.cat(rows).double().std().item()
    for at_once in (1, 2, 128):
        monkeypatch.setattr("tl_rome.patching.corruption._NAMES", at_once)
        assert noise_scale(model, SUBJECTS) == pytest.approx(expected, rel=1e-12)
