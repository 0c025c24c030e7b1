import pytest
import torch
from support.edits import CONTEXTS, LAYER, REQUEST
from support.families import KINDS, SENTENCES

from tl_rome.editors import Convergence, measure_convergence
from tl_rome.editors.covariance.estimation import estimate_covariance
from tl_rome.editors.rank_one.key import subject_keys
from tl_rome.errors import InputError, NumericsError

KIND = KINDS[0]


def test_points_are_those_of_statistics_of_that_many_tokens(tiny):
    model = tiny("llama", KIND)
    keys = subject_keys(model, LAYER, REQUEST.fact, CONTEXTS)
    found = measure_convergence(
        model, LAYER, SENTENCES, keys, max_tokens=700, points=3, max_batch_tokens=50, progress=False
    )
    assert [n // 100 for n in found.tokens] == [1, 3, 7]
    directions = []
    for n in found.tokens:
        statistics = estimate_covariance(model, LAYER, SENTENCES, source="x", max_tokens=n, progress=False)
        assert statistics.count == n
        directions.append(torch.stack([statistics.solve(key) for key in keys]))
    for i, then in enumerate(directions):
        expected = torch.cosine_similarity(then, directions[-1], dim=-1)
        torch.testing.assert_close(found.cosine[i], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.cosine[-1], torch.ones(3, dtype=torch.float64))
    assert bool((found.cosine[0] < found.cosine[1]).all())
    assert str(found).count("\n") == 3


def test_enough():
    cosine = torch.tensor([[0.5, 0.995], [0.991, 0.992], [0.97, 0.999], [0.992, 0.995], [1.0, 1.0]])
    found = Convergence((1, 2, 4, 8, 16), cosine, cosine)
    assert found.enough() == 8
    assert found.enough(0.9) == 2
    assert found.enough(0.999) is None


def test_singular_points_are_nan_and_the_last_must_not_be(tiny):
    model = tiny("llama", KIND)
    keys = subject_keys(model, LAYER, REQUEST.fact, ("",))
    settings = {"max_batch_tokens": 20, "progress": False}
    found = measure_convergence(model, LAYER, SENTENCES, keys, max_tokens=600, points=5, **settings)
    assert bool(found.cosine[0].isnan().all())
    assert found.enough(0.0) is not None
    with pytest.raises(NumericsError, match="still singular after"):
        measure_convergence(model, LAYER, SENTENCES, keys, max_tokens=40, points=2, **settings)
    with pytest.raises(InputError, match="before the second point; lower max_tokens"):
        measure_convergence(model, LAYER, SENTENCES[:3], keys, max_tokens=10_000, **settings)
