"""`tl-rome covariance`: statistics of one layer or several, from files, data sets or the model's own samples."""

import json

import pytest
import torch
from support.cli import fail, misuse, run, succeed, written
from support.families import KINDS, N_LAYERS, SENTENCES

from tl_rome import Fact, KeyCovariance
from tl_rome.cli.options import integers
from tl_rome.editors import estimate_covariances, measure_convergence
from tl_rome.editors.covariance.estimation import covariance_from_samples, estimate_covariance
from tl_rome.editors.rank_one.key import subject_keys
from tl_rome.generation import sample_tokens
from tl_rome.patching import load_sample_facts

KIND = KINDS[0]


@pytest.fixture
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text("\n".join(SENTENCES), encoding="utf-8")
    return file


@pytest.fixture
def data(tmp_path_factory):
    """A folder that `datasets` reads: the sentences in a column of another name."""
    place = tmp_path_factory.mktemp("data")
    rows = [json.dumps({"sentence": sentence}) for sentence in SENTENCES]
    (place / "train.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return place


def moments(out):
    """What was written to a folder, by layer."""
    found = [KeyCovariance.load(path) for path in out.iterdir()]
    return {statistics.layer: statistics for statistics in found}


def test_covariance_of_text_files(folder, tiny, tmp_path):
    texts = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for file, half in zip(texts, (SENTENCES[:30], SENTENCES[30:]), strict=True):
        file.write_text("\n\n".join(half), encoding="utf-8")
    out = tmp_path / "cov.safetensors"
    options = ("--text", texts[0], "--text", texts[1], "--layer", 1, "--model", folder, "--out", out)
    printed = succeed("covariance", *options)
    found, model = KeyCovariance.load(out), tiny("gpt2", KIND)
    expected = estimate_covariance(model, 1, SENTENCES, source="", progress=False)
    torch.testing.assert_close(found.second_moment, expected.second_moment.float().double(), rtol=1e-5, atol=1e-6)
    assert (found.layer, found.count, found.source) == (1, expected.count, "one.txt, two.txt")
    assert f"{found.count} tokens from one.txt, two.txt, digest {found.digest}" in printed


def test_covariance_of_own_samples_follows_the_seed(folder, tiny, tmp_path):
    out = tmp_path / "cov.safetensors"
    succeed("covariance", "--tokens", 1000, "--seed", 1, "--model", folder, "--out", out)
    found, rng = KeyCovariance.load(out), torch.Generator().manual_seed(1)
    model = tiny("gpt2", KIND)
    expected = covariance_from_samples(model, N_LAYERS // 4, generator=rng, tokens=1000, progress=False)
    assert (found.layer, found.count, found.digest) == (expected.layer, expected.count, expected.digest)
    assert found.count >= 1000


def test_several_layers_in_one_pass(folder, tiny, text, tmp_path):
    out = tmp_path / "all"
    printed = succeed("covariance", "--layers", "3,1", "--text", text, "--model", folder, "--out", out)
    expected = estimate_covariances(tiny("gpt2", KIND), [1, 3], SENTENCES, source="", progress=False)
    found = moments(out)
    assert sorted(found) == [1, 3]
    for layer, statistics in expected.items():
        moment = statistics.second_moment.float().double()
        torch.testing.assert_close(found[layer].second_moment, moment, rtol=1e-5, atol=1e-6)
        assert f"layer {layer}: {statistics.count} tokens from text.txt" in printed


def test_ranges_of_layers_include_both_ends():
    assert integers("7,1-3,2") == (1, 2, 3, 7)
    assert integers("4-4") == (4,)


def test_several_layers_of_own_samples_are_those_of_each_alone(folder, tmp_path):
    options = ("--tokens", 1000, "--seed", 1, "--model", folder, "--out")
    succeed("covariance", "--layers", "0,2", *options, tmp_path / "all")
    succeed("covariance", "--layers", "2", *options, tmp_path / "two")
    assert moments(tmp_path / "all")[2].digest == KeyCovariance.load(tmp_path / "two").digest


def test_own_samples_are_drawn_once_for_all_layers(folder, tmp_path, monkeypatch):
    drawn = []

    def draw(*arguments, **options):
        drawn.append(arguments)
        return sample_tokens(*arguments, **options)

    monkeypatch.setattr("tl_rome.editors.covariance.estimation.sample_tokens", draw)
    succeed("covariance", "--layers", "0,2", "--tokens", 1000, "--model", folder, "--out", tmp_path / "all")
    assert len(drawn) == 1


def test_interrupted_with_a_checkpoint_says_how_to_go_on(folder, text, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    options = ("covariance", "--layer", 1, "--text", text, "--model", folder, "--out", tmp_path / "cov")
    kept = (*options, "--checkpoint", tmp_path / "unfinished")
    succeed(*kept, "--tokens", 200)
    monkeypatch.setattr("tl_rome.editors.covariance.moments._add", interrupt)
    for arguments, hint in (
        (kept, f"; run the same command again to go on from {tmp_path / 'unfinished'}"),
        (options, ""),
    ):
        result = run(*arguments)
        assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, f"interrupted{hint}")


def test_data_set(folder, tiny, data, tmp_path):
    out = tmp_path / "cov.safetensors"
    options = ("--layers", 1, "--dataset", data, "--tokens", 300, "--model", folder, "--out", out)
    printed = succeed("covariance", *options, "--column", "sentence")
    expected = estimate_covariance(tiny("gpt2", KIND), 1, SENTENCES, source="", max_tokens=300, progress=False)
    found = KeyCovariance.load(out)
    assert (found.digest, found.count) == (expected.digest, expected.count)
    assert found.source == f"{data}, train"
    assert f"{found.count} tokens from {data}, train" in printed
    assert "has no column 'text', only ['sentence']; say text_column=" in fail("covariance", *options)
    for wrong in (("--split", "dev"), ("--subset", "german")):
        assert f"cannot read the data set '{data}" in fail("covariance", *options, *wrong)
    assert written(tmp_path) == {"cov.safetensors"}


def test_interrupted_work_goes_on_where_it_was(folder, text, tmp_path):
    options = ("--layers", "0,1", "--text", text, "--model", folder)
    succeed("covariance", *options, "--out", tmp_path / "whole")
    resumed = ("covariance", *options, "--checkpoint", tmp_path / "unfinished")
    succeed(*resumed, "--tokens", 200, "--out", tmp_path / "part")
    text.write_text("\n".join(["Never read again."] * 5 + text.read_text(encoding="utf-8").splitlines()[5:]))
    succeed(*resumed, "--out", tmp_path / "rest")
    whole, rest, part = (moments(tmp_path / name) for name in ("whole", "rest", "part"))
    for layer in (0, 1):
        assert part[layer].count < whole[layer].count == rest[layer].count
        torch.testing.assert_close(rest[layer].second_moment, whole[layer].second_moment, rtol=1e-5, atol=1e-6)
    assert "holds sums of" in fail(*resumed, "--layers", "2", "--out", tmp_path / "other")


def test_convergence_report(folder, tiny, text, tmp_path):
    options = ("--layers", "1,2", "--text", text, "--seed", 3, "--model", folder, "--out", tmp_path / "cov")
    printed = succeed("covariance", *options, "--convergence")
    model, facts = tiny("gpt2", KIND), load_sample_facts()
    subjects = sorted({fact.subject for fact in facts})
    drawn = torch.randperm(len(subjects), generator=torch.Generator().manual_seed(3))[:8].tolist()
    keys = torch.cat([subject_keys(model, 2, Fact("{}", subjects[index]), ("",)) for index in drawn])
    total = moments(tmp_path / "cov")[2].count
    expected = measure_convergence(model, 2, SENTENCES, keys, max_tokens=total, progress=False)
    assert "C^-1 k* of 8 subjects at layer 1" in printed
    shown = printed[printed.index("at layer 2") :]
    for tokens, cosine in zip(expected.tokens, expected.cosine, strict=True):
        singular = bool(cosine.isnan().any())
        assert f"{tokens} {'C is singular' if singular else f'{cosine.min():.4f} {cosine.mean():.4f}'}" in shown


def test_options_that_do_not_go_together(folder, text, data, tmp_path):
    arguments = ("covariance", "--model", "./nowhere", "--out", tmp_path / "cov")
    assert "--text and --dataset are both given" in fail(*arguments, "--text", text, "--dataset", data)
    for option in (("--checkpoint", tmp_path / "unfinished"), ("--convergence",)):
        assert "give --text or --dataset" in fail(*arguments, *option)
    assert "is not a folder" in fail(*arguments[:3], "--layers", "1,2", "--text", text, "--out", text)
    assert "it is a folder; name a file" in fail(*arguments, "--text", text, "--checkpoint", tmp_path)
    assert "'1;2' is not a list of numbers such as 1,2,3" in misuse(*arguments, "--layers", "1;2")
    assert "7-3 is not a range such as 3-7" in misuse(*arguments, "--layers", "7-3")
    assert not written(tmp_path)
