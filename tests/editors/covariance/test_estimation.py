import pytest
import torch
from support.families import KINDS, SENTENCES

from tl_rome.editors import estimate_covariances
from tl_rome.editors.covariance.estimation import estimate_covariance
from tl_rome.editors.covariance.moments import KeyMoments, stream_moments
from tl_rome.errors import InputError, StorageError
from tl_rome.running.matrices import key_hook
from tl_rome.tokens import encode

KIND = KINDS[0]
TEXTS = SENTENCES[:24]
SETTINGS = {"source": "sentences", "max_batch_tokens": 20, "progress": False}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_layers_in_one_pass_equal_one_pass_each(tiny, kind, dtype):
    model = tiny("mistral", kind, dtype)
    found = estimate_covariances(model, [2, 0], TEXTS, **SETTINGS)
    assert list(found) == [2, 0]
    for layer, statistics in found.items():
        single = estimate_covariance(model, layer, TEXTS, **SETTINGS)
        assert torch.equal(statistics.second_moment, single.second_moment)
        assert (statistics.layer, statistics.count) == (layer, single.count)
        assert statistics.dtype == str(dtype).removeprefix("torch.")
    assert not torch.allclose(found[0].second_moment, found[2].second_moment)


def test_the_pass_ends_at_the_highest_layer(tiny):
    model, reached = tiny("llama", KIND), []
    hooks = [(key_hook(layer), lambda value, hook, layer=layer: reached.append(layer)) for layer in range(4)]
    with model.hooks(fwd_hooks=hooks):
        estimate_covariances(model, [0, 2], SENTENCES[:3], **SETTINGS)
    assert 3 not in reached
    assert 2 in reached


def test_sums_are_float64(tiny):
    """A key that is much smaller than the sum it is added to still counts."""
    model = tiny("llama", KIND)
    moments = KeyMoments.zeros(model, [0])
    moments.add(0, torch.full((1, 64), 1e4))
    moments.add(0, torch.full((1, 64), 1e-2))
    moments.count = 1
    assert moments.moment(0)[0, 0].item() == pytest.approx(1e8 + 1e-4, rel=1e-14)


def test_a_dataset_gives_what_its_texts_give(tiny):
    datasets = pytest.importorskip("datasets")
    model = tiny("llama", KIND)
    rows = datasets.Dataset.from_dict({"id": list(range(len(TEXTS))), "text": list(TEXTS)})
    plain = estimate_covariances(model, [1], TEXTS, **SETTINGS)[1]
    assert estimate_covariances(model, [1], rows, **SETTINGS)[1].digest == plain.digest
    streamed = rows.rename_column("text", "body").to_iterable_dataset()
    assert estimate_covariances(model, [1], streamed, text_column="body", **SETTINGS)[1].digest == plain.digest
    with pytest.raises(InputError, match=r"no column 'text', only \['body', 'id'\]"):
        estimate_covariances(model, [1], streamed, **SETTINGS)
    with pytest.raises(InputError, match="not a string"):
        estimate_covariances(model, [1], [7], **SETTINGS)


def interrupted(texts, after):
    for index, text in enumerate(texts):
        if index == after:
            raise KeyboardInterrupt
        yield text


@pytest.mark.parametrize("after", [5, 40, 46])
def test_interrupted_work_goes_on_to_the_same_result(tiny, tmp_path, after):
    model, path = tiny("llama", KIND), tmp_path / "moments.safetensors"
    texts = [" ", *TEXTS, "\n", *TEXTS]
    whole = estimate_covariances(model, [1, 2], texts, **SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        estimate_covariances(
            model, [1, 2], interrupted(texts, after), checkpoint=path, checkpoint_tokens=100, **SETTINGS
        )
    assert path.exists() == (after > 20)
    again = estimate_covariances(model, [1, 2], texts, checkpoint=path, **SETTINGS)
    assert [again[n].digest for n in (1, 2)] == [whole[n].digest for n in (1, 2)]
    assert again[1].count == whole[1].count


def test_finished_work_is_not_done_again_and_can_be_extended(tiny, tmp_path):
    model, path, read = tiny("llama", KIND), tmp_path / "moments.safetensors", []

    def spy(module, args):
        read.append(1)

    first = estimate_covariances(model, [1], SENTENCES, max_tokens=200, checkpoint=path, **SETTINGS)[1]
    handle = model.blocks[0].register_forward_pre_hook(spy)
    try:
        again = estimate_covariances(model, [1], SENTENCES, max_tokens=200, checkpoint=path, **SETTINGS)[1]
        assert read == [1]  # two tokens, on which the logits of a borrowed model are checked
        more = estimate_covariances(model, [1], SENTENCES, max_tokens=400, checkpoint=path, **SETTINGS)[1]
        assert len(read) > 2
    finally:
        handle.remove()
    assert again.digest == first.digest
    assert 200 <= first.count < 240
    assert 400 <= more.count < 440


def test_checkpoints_of_something_else_are_refused(tiny, tmp_path):
    model, path = tiny("llama", KIND), tmp_path / "moments.safetensors"
    estimate_covariances(model, [1], SENTENCES, checkpoint=path, **SETTINGS)
    for other, layers, source in (
        (tiny("qwen2", KIND), [1], "sentences"),
        (model, [2], "sentences"),
        (model, [1], "x"),
    ):
        with pytest.raises(StorageError, match="name another file"):
            estimate_covariances(other, layers, SENTENCES, checkpoint=path, **(SETTINGS | {"source": source}))
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StorageError, match="damaged"):
        estimate_covariances(model, [1], SENTENCES, checkpoint=path, **SETTINGS)


def test_memory_is_bounded_by_windows(tiny):
    """The stream is read a window at a time, and every batch keeps within its bound."""
    model, ahead, shapes = tiny("llama", KIND), [], []
    taken = [0]

    def texts():
        for sentence in SENTENCES * 4:
            taken[0] += 1
            yield encode(model, sentence)

    def spy(module, args, kwargs):
        shapes.append((args or tuple(kwargs.values()))[0].shape)

    moments = KeyMoments.zeros(model, [1])
    handle = model.blocks[0].register_forward_pre_hook(spy, with_kwargs=True)
    try:
        for _ in stream_moments(model, moments, texts(), max_batch_tokens=50, progress=False):
            ahead.append(taken[0] - moments.texts)
    finally:
        handle.remove()
    assert len(ahead) > 3
    assert max(ahead) <= 1
    assert max(rows * length for rows, length, *_ in shapes) <= 50
    assert moments.count == 4 * sum(len(encode(model, sentence)) for sentence in SENTENCES)
