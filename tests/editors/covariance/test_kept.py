import logging
import threading
from functools import partial

import pytest
import torch
from support.edits import covariance
from support.families import KINDS, SENTENCES

from tl_rome.editors import KeyCovariance, covariances_for, covariances_from_samples, estimate_covariances
from tl_rome.editors.covariance import kept
from tl_rome.errors import InputError
from tl_rome.running.matrices import w_out

KIND = KINDS[0]


class Asked:
    """How layers are found, with some sentences for what the model would sample, and the layers of each estimate."""

    def __init__(self, cache_dir, monkeypatch):
        self.estimates, self._options = [], {"tokens": 300, "cache_dir": cache_dir, "progress": False}
        monkeypatch.setattr(kept, "covariances_from_samples", self._estimate)

    def _estimate(self, model, layers, *, generator, tokens, progress):
        self.estimates.append(list(layers))
        texts = [SENTENCES[n] for n in torch.randperm(len(SENTENCES), generator=generator)]
        return estimate_covariances(model, layers, texts, source="x", max_tokens=tokens, progress=progress)

    def __call__(self, model, layers, **options):
        return covariances_for(model, layers, **self._options | options)


@pytest.fixture
def asked(tmp_path, monkeypatch):
    return Asked(tmp_path, monkeypatch)


def files(folder):
    return sorted((folder / "covariances").glob("*.safetensors"))


def test_layers_are_made_in_one_pass_once_and_are_those_of_each_alone(tiny, asked, tmp_path):
    model = tiny("llama", KIND)
    found = asked(model, [2, 0])
    assert list(found) == [2, 0]
    assert asked.estimates == [[2, 0]]
    again = asked(model, [0, 1, 2])
    assert asked.estimates == [[2, 0], [1]]
    assert torch.equal(again[2].second_moment, found[2].second_moment)
    assert len(files(tmp_path)) == 3
    assert KeyCovariance.load(files(tmp_path)[1]).layer == 1


def test_what_is_made_are_the_statistics_of_own_samples(tiny, tmp_path, monkeypatch):
    model, options = tiny("llama", KIND), {"tokens": 64, "progress": False}
    monkeypatch.setattr(kept, "covariances_from_samples", partial(covariances_from_samples, batch_size=2))
    found = covariances_for(model, [2, 1], seed=3, cache_dir=tmp_path, **options)[1]
    expected = covariances_from_samples(
        model, [1], generator=torch.Generator().manual_seed(3), batch_size=2, **options
    )[1]
    assert (found.digest, found.count, found.source) == (expected.digest, expected.count, "own samples")


def test_both_classes_share_what_is_kept(tiny, asked):
    for kind in KINDS:
        asked(tiny("llama", kind), [1])
    assert len(asked.estimates) == 1


def test_other_tokens_seeds_models_and_edited_weights_have_their_own(tiny, fresh_tiny, asked):
    model = fresh_tiny("llama", KIND)
    first = asked(model, [1])[1]
    assert asked(model, [1], tokens=500)[1].count >= 500
    assert asked(model, [1], seed=1)[1].digest != first.digest
    asked(tiny("qwen2", KIND), [1])
    with torch.no_grad():
        before = w_out(model, 0).clone()
        w_out(model, 0).add_(1)
    assert asked(model, [1])[1].digest != first.digest
    assert len(asked.estimates) == 5
    with torch.no_grad():
        w_out(model, 0).copy_(before)
    assert asked(model, [1])[1].digest == first.digest
    assert len(asked.estimates) == 5


@pytest.mark.parametrize("damage", ["cut", "of another layer"])
def test_a_damaged_file_is_made_again_with_a_warning(tiny, asked, tmp_path, caplog, damage):
    model = tiny("llama", KIND)
    found = asked(model, [0, 1])
    zero, one = files(tmp_path)
    one.write_bytes(one.read_bytes()[:-9] if damage == "cut" else zero.read_bytes())
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger=kept.__name__):
        again = asked(model, [0, 1])
    assert asked.estimates == [[0, 1], [1]]
    assert [again[n].digest for n in (0, 1)] == [found[n].digest for n in (0, 1)]
    [record] = [each for each in caplog.records if each.name == kept.__name__]
    assert "kept key statistics cannot be used" in record.message
    assert "making them again" in record.message
    assert KeyCovariance.load(one).digest == found[1].digest


def test_work_that_cannot_be_kept_is_given_with_a_warning(tiny, tmp_path, monkeypatch, caplog):
    (tmp_path / "covariances").write_text("in the way")
    found = Asked(tmp_path, monkeypatch)(tiny("llama", KIND), [1])
    assert found[1].count >= 300
    assert "not kept for the next time" in caplog.text
    assert "TL_ROME_CACHE" in caplog.text


def test_what_another_process_is_making_is_waited_for(tiny, asked):
    model, found = tiny("llama", KIND), []
    threads = [threading.Thread(target=lambda: found.append(asked(model, [1])[1].digest)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(asked.estimates) == 1
    assert found[0] == found[1]


def test_an_interrupted_estimate_leaves_nothing_behind(tiny, asked, tmp_path, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kept, "covariances_from_samples", interrupt)
        with pytest.raises(KeyboardInterrupt):
            asked(tiny("llama", KIND), [1])
    assert not files(tmp_path)
    assert asked(tiny("llama", KIND), [1])[1].count >= 300


def test_shipped_statistics_are_taken_where_they_are_enough(tiny, asked, monkeypatch):
    model = tiny("llama", KIND)
    shipped = covariance(model, 1)
    monkeypatch.setattr(KeyCovariance, "shipped", classmethod(lambda cls, model: shipped))
    assert asked(model, [1, 2])[1] is shipped
    assert asked.estimates == [[2]]
    assert asked(model, [1], tokens=shipped.count + 1)[1] is not shipped


def test_no_layers_and_layers_out_of_range_are_refused_before_any_work(tiny, asked):
    with pytest.raises(InputError, match="no layers to find key statistics of"):
        asked(tiny("llama", KIND), [])
    with pytest.raises(InputError, match="layer 9 is out of range"):
        asked(tiny("llama", KIND), [1, 9])
    assert not asked.estimates
