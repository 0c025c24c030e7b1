import pytest
import torch

from tl_rome.editors import KeyCovariance
from tl_rome.editors.rank_one.closed_form import Memory
from tl_rome.errors import NumericsError

D_MLP, D_MODEL = 12, 5


@pytest.fixture
def system():
    """A random float64 problem in the paper's orientation: keys K as columns, W the least-squares map to values."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    keys = draw(D_MLP, D_MLP) @ draw(D_MLP, 200)
    values = draw(D_MODEL, 200)
    W = values @ torch.linalg.pinv(keys)
    C = keys @ keys.T / 200
    statistics = KeyCovariance((C + C.T) / 2, 0, 200, "random", False, "none")
    return statistics, keys, values, W, draw(D_MLP), draw(D_MODEL), draw(D_MODEL)


def solved(system):
    statistics, _, _, W, key, value, bias = system
    return Memory(W.T, bias, statistics).insert(key, key, value + bias)


def new_weight(system):
    found = solved(system)
    return system[3] + torch.outer(found.v, found.u)


def test_two_lines_equal_the_block_system_of_the_draft(system):
    statistics, _, _, W, key, value, _ = system
    u = torch.linalg.solve(statistics.second_moment, key)
    block = torch.zeros(D_MLP + 1, D_MLP + 1, dtype=torch.float64)
    block[:D_MLP, :D_MLP], block[:D_MLP, D_MLP], block[D_MLP, :D_MLP] = torch.eye(D_MLP), key, -u
    right = torch.cat([W, value[:, None]], dim=1)
    both = torch.linalg.solve(block.T, right.T).T  # [W' | v] block = [W | v*]
    torch.testing.assert_close(new_weight(system), both[:, :D_MLP], rtol=1e-9, atol=1e-9)
    found = solved(system)
    torch.testing.assert_close(torch.outer(found.v, found.u), torch.outer(both[:, D_MLP], u), rtol=1e-9, atol=1e-9)


def test_two_lines_solve_the_lagrange_conditions(system):
    _, keys, values, _, key, value, _ = system
    new = new_weight(system)
    torch.testing.assert_close(new @ key, value, rtol=1e-10, atol=1e-10)
    gradient = new @ keys @ keys.T - values @ keys.T  # must be Lambda k*^T: every row parallel to k*
    multiplier = gradient @ key / (key @ key)
    torch.testing.assert_close(gradient, torch.outer(multiplier, key), rtol=1e-7, atol=1e-7)


def test_no_other_weight_that_stores_the_value_is_nearer(system):
    statistics, _, _, W, key, value, _ = system
    root = torch.linalg.cholesky(statistics.second_moment)
    new = new_weight(system)
    least = ((new - W) @ root).norm()
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        other = torch.randn(D_MODEL, D_MLP, generator=generator, dtype=torch.float64)
        other -= torch.outer(other @ key, key) / (key @ key)  # leaves k* alone
        step = 1e-2 * other
        torch.testing.assert_close((new + step) @ key, value, rtol=1e-9, atol=1e-9)
        assert ((new + step - W) @ root).norm() > least


def test_released_keys_store_the_value_under_the_second_key(system):
    statistics, _, _, W, key, value, bias = system
    other = key + 0.3 * key.roll(1)
    found = Memory(W.T, bias, statistics).insert(direction=other, key=key, value=value + bias)
    torch.testing.assert_close((W + torch.outer(found.v, found.u)) @ key, value, rtol=1e-9, atol=1e-9)
    assert found.u.norm().item() == pytest.approx(1)
    assert found.divisor == pytest.approx((key @ found.u).item())
    assert found.divisor_ratio == pytest.approx((key @ found.u / (other @ found.u)).item())
    assert solved(system).divisor_ratio == pytest.approx(1)


def test_disturbance_is_what_the_keys_behind_c_see(system):
    _, keys, _, W, _, _, _ = system
    found = solved(system)
    added = torch.outer(found.v, found.u) @ keys
    assert found.disturbance == pytest.approx((added.norm() / (W @ keys).norm()).item(), rel=1e-5)


def test_orthogonal_keys_are_refused(system):
    statistics, _, _, W, key, value, bias = system
    u = statistics.solve(key)
    across = torch.randn(D_MLP, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    across -= (across @ u) / (u @ u) * u
    with pytest.raises(NumericsError, match="orthogonal"):
        Memory(W.T, bias, statistics).insert(direction=key, key=across, value=value)
