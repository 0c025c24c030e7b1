from dataclasses import replace

import pytest
import torch
from support.edits import LAYER, covariance
from support.families import FAMILY_KINDS, KINDS, SENTENCES

from tl_rome.editors import KeyCovariance
from tl_rome.editors.covariance.estimation import covariance_from_samples, estimate_covariance
from tl_rome.errors import InputError, ModelMismatchError, NumericsError, StorageError
from tl_rome.running.matrices import key_hook
from tl_rome.storage.files import load, save
from tl_rome.tokens import encode

KIND = KINDS[0]


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_streaming_equals_one_text_at_a_time(tiny, family, kind):
    model = tiny(family, kind)
    seen = []
    for sentence in SENTENCES:
        model.run_with_hooks(
            encode(model, sentence)[None],
            fwd_hooks=[(key_hook(LAYER), lambda value, hook: seen.append(value[0].double()))],
        )
    keys = torch.cat(seen)
    found = estimate_covariance(model, LAYER, SENTENCES, source="x", max_batch_tokens=100, progress=False)
    assert found.count == len(keys)
    expected = keys.T @ keys / len(keys)
    assert (found.second_moment - expected).norm() < 1e-6 * expected.norm()
    assert torch.equal(found.second_moment, found.second_moment.T)
    torch.testing.assert_close(found.mean, keys.mean(0), rtol=1e-5, atol=1e-6)


def test_solve_inverts_the_second_moment(tiny):
    found = covariance(tiny("llama", KIND))
    key = torch.randn(len(found.second_moment), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(found.second_moment @ found.solve(key), key, rtol=1e-7, atol=1e-9)
    with pytest.raises(InputError, match=f"key has 3 numbers, the covariance is of {len(key)}"):
        found.solve(key[:3])


def test_batches_do_not_matter_and_max_tokens_stops_the_stream(tiny):
    model, read = tiny("gpt2", KIND), []

    def texts():
        for sentence in SENTENCES:
            read.append(sentence)
            yield sentence

    one = estimate_covariance(model, LAYER, texts(), source="x", max_batch_tokens=1, progress=False)
    assert len(read) == len(SENTENCES)
    torch.testing.assert_close(one.second_moment, covariance(model).second_moment, rtol=1e-5, atol=1e-6)
    read.clear()
    some = estimate_covariance(model, LAYER, texts(), source="x", max_batch_tokens=1, max_tokens=50, progress=False)
    assert 50 <= some.count < 50 + 40
    assert len(read) < len(SENTENCES)


def test_long_texts_are_cut_at_the_context(tiny):
    model = tiny("gpt2", KIND)
    found = estimate_covariance(model, LAYER, [" ".join(SENTENCES)], source="x", progress=False)
    assert found.count == model.cfg.n_ctx


def test_own_samples_follow_the_seed_and_leave_the_global_one(tiny):
    model = tiny("llama", KIND)
    before = torch.random.get_rng_state()
    first, again, other = (
        covariance_from_samples(
            model, LAYER, generator=torch.Generator().manual_seed(seed), tokens=300, batch_size=2, progress=False
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.digest == again.digest != other.digest
    assert first.count >= 300
    assert first.source == "own samples"


def test_round_trip_in_half_the_size(tiny, tmp_path):
    found = covariance(tiny("llama", KIND))
    path = found.save(tmp_path / "c.safetensors")
    loaded = KeyCovariance.load(path)
    size = len(found.second_moment)
    assert path.stat().st_size < size * (size + 1) / 2 * 4 + 1000
    torch.testing.assert_close(loaded.second_moment, found.second_moment, rtol=1e-6, atol=1e-7)
    assert loaded.digest == found.digest
    torch.testing.assert_close(loaded.mean, found.mean, rtol=1e-6, atol=1e-7)
    assert (loaded.dtype, loaded.prepend_bos) == ("float32", False)
    assert (loaded.layer, loaded.count, loaded.source, loaded.model) == (LAYER, found.count, found.source, found.model)


def test_statistics_of_another_layer_or_model_are_refused(tiny):
    found = covariance(tiny("llama", KIND))
    with pytest.raises(InputError, match="covariance is of layer 1, the edit is at layer 2"):
        found.check(tiny("llama", KIND), 2)
    with pytest.raises(ModelMismatchError, match="key covariance belongs to"):
        found.check(tiny("qwen2", KIND), LAYER)


def test_another_bos_policy_is_refused(fresh_tiny):
    model = fresh_tiny("llama", KIND, prepend_bos=True)
    found = covariance(model)
    assert found.prepend_bos
    found.check(model, LAYER)
    model.cfg.default_prepend_bos = False
    with pytest.raises(InputError, match="estimated with prepend_bos=True, this model has False"):
        found.check(model, LAYER)


def test_files_are_named_by_their_content(tiny, tmp_path):
    found, other = covariance(tiny("llama", KIND)), covariance(tiny("llama", KIND), 2)
    paths = {found.save(tmp_path), other.save(tmp_path), found.save(tmp_path)}
    assert {path.name for path in paths} == {path.name for path in tmp_path.iterdir()}
    assert len(paths) == 2
    assert all(KeyCovariance.load(path).digest in path.name for path in paths)


@pytest.mark.parametrize("missing", ["layer", "source", "model", "d_mlp", "upper_triangle"])
def test_files_with_missing_parts_are_refused(tiny, tmp_path, missing):
    path = covariance(tiny("llama", KIND)).save(tmp_path / "c.safetensors")
    rewrite(path, lambda tensors, header: (tensors.pop(missing, None), header.pop(missing, None)))
    with pytest.raises(StorageError, match=f"lacks part of the key statistics .*{missing}"):
        KeyCovariance.load(path)


def test_changed_numbers_are_noticed(tiny, tmp_path):
    path = covariance(tiny("llama", KIND)).save(tmp_path / "c.safetensors")
    rewrite(path, lambda tensors, header: tensors["upper_triangle"].mul_(1.001))
    with pytest.raises(StorageError, match="does not hold what its digest"):
        KeyCovariance.load(path)


def rewrite(path, change):
    tensors, header = load(path, "key_covariance")
    change(tensors, header)
    save(path, "key_covariance", tensors, header)


def test_too_little_text_says_how_much_is_needed(tiny):
    found = estimate_covariance(tiny("llama", KIND), LAYER, ["Rome."], source="x", progress=False)
    with pytest.raises(NumericsError, match=r"singular after .* at least 256 tokens"):
        found.solve(found.second_moment[0])


def test_units_that_are_never_active_are_named(tiny):
    found = covariance(tiny("llama", KIND))
    moment = found.second_moment.clone()
    moment[[3, 7]] = moment[:, [3, 7]] = 0
    with pytest.raises(NumericsError, match="2 units were never active in that text; edit another layer, or"):
        replace(found, second_moment=moment).solve(moment[0])


def test_statistics_are_shown_in_one_line(tiny):
    found = covariance(tiny("llama", KIND))
    size = len(found.second_moment)
    assert repr(found) == (f"<key covariance of layer {LAYER}, {size} x {size}, {found.count} tokens, test sentences>")


def test_bad_input(tiny, fresh_tiny, tmp_path):
    with pytest.raises(InputError, match="no text"):
        estimate_covariance(tiny("llama", KIND), LAYER, ["  "], source="x", progress=False)
    with pytest.raises(InputError, match="layer 4 is out of range: this model has layers 0 to 3"):
        estimate_covariance(tiny("llama", KIND), 4, SENTENCES, source="x", progress=False)
    broken = fresh_tiny("llama", KIND)
    overflow = (key_hook(LAYER), lambda keys, hook: keys * torch.inf if keys.shape[1] > 2 else keys)
    with broken.hooks(fwd_hooks=[overflow]), pytest.raises(NumericsError, match="keys of layer 1 are not finite"):
        covariance(broken)
    with torch.no_grad():
        next(broken.blocks[0].parameters()).fill_(float("nan"))
    with pytest.raises(NumericsError, match="logits of 'tiny-llama' are not finite"):
        covariance(broken)
    (tmp_path / "c.safetensors").write_bytes(b"junk")
    with pytest.raises(StorageError, match="damaged"):
        KeyCovariance.load(tmp_path / "c.safetensors")


def test_no_statistics_are_shipped_for_an_unknown_model(tiny):
    assert KeyCovariance.shipped(tiny("llama", KIND)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_shipped_statistics_fit_the_embedded_model(smollm2, kind):
    found = KeyCovariance.shipped(smollm2(kind))
    assert found is not None
    assert found.layer == 5
    assert found.count > 50_000
    assert torch.linalg.eigvalsh(found.second_moment)[0] > 0
