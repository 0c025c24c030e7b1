from dataclasses import replace

import pytest
import torch
from support.edits import covariance
from support.families import KINDS

from tl_rome.editors import KeyCovariance, null_space, null_space_leak
from tl_rome.errors import InputError

CPU = torch.device("cpu")
SIZE = 24


def of_keys(keys):
    return KeyCovariance(keys.T @ keys / len(keys), 1, len(keys), "made up", False, "model")


def drawn(count, seed):
    """Keys whose energy falls from direction to direction."""
    generator = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(9)).double()).Q
    scales = torch.logspace(0, -2, SIZE, dtype=torch.float64)
    return of_keys((torch.randn(count, SIZE, generator=generator).double() * scales) @ turned)


def test_eigenvectors_are_those_of_the_matrix_and_made_once(tiny):
    found = covariance(tiny("llama", KINDS[0]))
    values, vectors = found.eigen(CPU)
    torch.testing.assert_close(vectors * values @ vectors.T, found.second_moment, rtol=1e-10, atol=1e-12)
    assert bool((values.diff() >= 0).all())
    assert found.eigen(CPU)[1] is vectors


def test_the_null_space_holds_at_most_its_share_and_one_direction_more_would_not():
    found = drawn(5000, 0)
    basis = null_space(found, 0.05)
    rank = basis.shape[1]
    torch.testing.assert_close(basis.T @ basis, torch.eye(rank, dtype=torch.float64), rtol=0, atol=1e-12)
    total = found.second_moment.trace()
    assert (basis.T @ found.second_moment @ basis).trace() <= 0.05 * total
    assert found.eigen(CPU)[0][: rank + 1].sum() > 0.05 * total


def test_a_share_does_not_depend_on_the_units():
    found = drawn(5000, 0)
    larger = replace(found, second_moment=100 * found.second_moment)
    assert null_space(found, 0.1).shape == null_space(larger, 0.1).shape


def test_leak_is_near_the_share_when_well_known_and_above_it_from_few_tokens():
    held_out = drawn(2000, 1)
    assert null_space_leak(drawn(20_000, 0), held_out, 0.05) == pytest.approx(0.05, rel=0.25)
    assert null_space_leak(drawn(30, 0), held_out, 0.05) > 0.075


def test_leak_is_the_energy_of_projected_keys():
    first, generator = drawn(5000, 0), torch.Generator().manual_seed(3)
    keys = torch.randn(40, SIZE, generator=generator, dtype=torch.float64)
    basis = null_space(first, 0.1)
    expected = (keys @ basis @ basis.T).square().sum() / keys.square().sum()
    assert null_space_leak(first, of_keys(keys), 0.1) == pytest.approx(float(expected), rel=1e-12)


def test_bad_input():
    found = drawn(5000, 0)
    with pytest.raises(InputError, match=r"energy_share is 1e-09, and the smallest eigenvalue alone holds"):
        null_space(found, 1e-9)
    with pytest.raises(InputError, match="are not of one layer of one model"):
        null_space_leak(found, replace(found, layer=2), 0.1)
