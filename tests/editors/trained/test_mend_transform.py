"""The gradient transform is the released one, number for number; where it departs, it says so."""

import pytest
import torch
from support.golden import golden_arrays

from tl_rome.editors.trained.mend.statistics import RunningStatistics
from tl_rome.editors.trained.mend.transform import GradientTransform, LowRankLayer
from tl_rome.errors import NumericsError

pytestmark = pytest.mark.leg("3.9")
D_IN, D_OUT, RANK, MODES = 6, 4, 5, 3


@pytest.fixture(scope="module")
def golden(shared_data):
    return golden_arrays(shared_data, "mend_transform")


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def draws():
    return torch.Generator().manual_seed(0)


def filled(layer, golden, prefix):
    """A layer with golden parameters; unshared ones have neither scale nor shift."""
    state = {name: golden.get(f"{prefix}_{name}") for name in ("U", "V", "b", "scale", "shift")}
    layer.double().load_state_dict({name: value for name, value in state.items() if value is not None}, strict=False)
    return layer


def golden_transform(golden, case, modes=MODES):
    transform = GradientTransform(D_IN, D_OUT, RANK, modes, generator=draws()).double()
    for index, layer in enumerate(transform.layers):
        filled(layer, golden, f"{case}_mlp{index}")
    transform.count(golden["warm_x"], golden["warm_delta"])
    return transform


def kept(golden, rows=slice(None)):
    x, delta = golden["x"][rows], golden["delta"][rows]
    keep = (x != 0).any(-1) & (delta != 0).any(-1)
    return x[keep], delta[keep]


def at_mode(transform, golden, mode, rows=slice(None)):
    x, delta = kept(golden, rows)
    return transform(x, delta, torch.full((len(x),), mode))


def check_statistics(transform, golden, prefix):
    found, (x, delta) = transform.statistics, (slice(D_IN), slice(D_IN, None))
    for part, place in (("x", x), ("delta", delta)):
        close(found.mean[place], golden[f"{prefix}_{part}_mean"].double())
        close(found.squares[place], golden[f"{prefix}_{part}_s"].double())
        close(found.deviation()[place], golden[f"{prefix}_{part}_std"].double())
    assert int(found.rows) == int(golden[f"{prefix}_k"])


@pytest.mark.parametrize("mode", range(MODES))
def test_shared_transform_in_eval_mode(golden, mode):
    transform = golden_transform(golden, "A")
    check_statistics(transform, golden, "A_before")
    left, right = at_mode(transform, golden, mode)
    close(left, golden[f"A_eval_x_{mode}"])
    close(right, golden[f"A_eval_delta_{mode}"])
    close(golden["lrs"][mode] * left.T @ right, golden[f"A_update_{mode}"])
    check_statistics(transform, golden, "A_after_eval")


def test_gradients_of_its_parameters(golden):
    for case, mode in (("A", 1), ("E", 0)):
        transform = golden_transform(golden, case)
        left, right = at_mode(transform, golden, mode)
        value = (golden["A_probe"] * (left.T @ right)).sum()
        value.backward()
        if case == "A":
            close(value.detach(), golden["A_probe_value"])
        for index, layer in enumerate(transform.layers):
            for name, parameter in layer.named_parameters():
                close(parameter.grad, golden[f"{case}_grad_mlp{index}_{name}"])


def test_training_counts_these_rows_and_then_normalises_them(golden):
    transform = golden_transform(golden, "A")
    transform.count(*kept(golden))
    left, right = at_mode(transform, golden, 1)
    close(left, golden["A_train_x_1"])
    close(right, golden["A_train_delta_1"])
    check_statistics(transform, golden, "A_after_train")


def test_a_loaded_transform_keeps_its_statistics(golden):
    loaded = GradientTransform(D_IN, D_OUT, RANK, MODES, generator=draws()).double()
    loaded.load_state_dict(golden_transform(golden, "A").state_dict())
    left, _ = at_mode(loaded, golden, 1)
    close(left, golden["A_eval_x_1"])
    assert not torch.allclose(left, golden["A_trap_x_1"]), "the released one forgets them"


def test_rows_of_several_sequences_go_one_after_the_other(golden):
    transform = golden_transform(golden, "A")
    parts = [at_mode(transform, golden, 2, rows) for rows in (slice(0, 4), slice(4, 8))]
    close(torch.cat([left for left, _ in parts]), golden["A_batched_x_2"])
    close(torch.cat([right for _, right in parts]), golden["A_batched_delta_2"])


def test_one_matrix_alone_needs_no_modes(golden):
    transform = golden_transform(golden, "B", modes=1)
    check_statistics(transform, golden, "B_before")
    left, right = at_mode(transform, golden, 0)
    close(left, golden["B_eval_x"])
    close(right, golden["B_eval_delta"])
    close(golden["lrs"][0] * left.T @ right, golden["B_update"])


def test_the_layers_alone_make_the_variant_of_two_networks(golden):
    transform, (x, delta) = golden_transform(golden, "A"), kept(golden)
    rows = transform.statistics.normalise(torch.cat([x, delta], 1), transform.sizes)
    modes = torch.full((len(rows),), 1)
    for part, found in zip(("x", "delta"), rows.split(transform.sizes, 1), strict=True):
        for index in range(2):
            width = found.shape[1]
            layer = LowRankLayer(width, min(RANK, width), MODES, draws())
            found = filled(layer, golden, f"C_{part}{index}")(found, modes)
        close(found, golden[f"C_eval_{part}_1"])


def test_it_begins_as_the_identity_on_what_is_normalised_or_not(golden):
    new = GradientTransform(D_IN, D_OUT, RANK, MODES, generator=draws()).double()
    assert all(layer.V.std() > 0.5 and not layer.U.any() for layer in new.layers)
    new.count(golden["warm_x"], golden["warm_delta"])
    left, right = at_mode(new, golden, 0)
    close(left, golden["E_eval_x_0"])
    close(right, golden["E_eval_delta_0"])
    x, delta = kept(golden)
    close(golden["D_eval_x_1"], x)
    modes = torch.zeros(len(x), dtype=torch.long)
    close(new.layers[1](new.layers[0](torch.cat([x, delta], 1), modes), modes), torch.cat([x, delta], 1))


def test_statistics_of_many_rows_equal_the_recursion_and_do_not_stop_counting():
    rows = torch.randn(50, 3, generator=draws()) + 100
    merged, mean, squares = RunningStatistics(3), torch.zeros(3).double(), torch.zeros(3).double()
    for part in rows.split([1, 2, 0, 40, 7]):
        merged.count(part)
    for number, row in enumerate(rows.double(), start=1):
        before, mean = mean, mean + (row - mean) / number
        squares = squares + (row - before) * (row - mean)
    close(merged.mean, mean)
    close(merged.squares, squares)
    merged.rows += 2**24
    merged.count(rows[:1])
    assert int(merged.rows) == 2**24 + 51, "in float32 it would stay where it is"


def test_a_coordinate_that_never_varied_is_floored_if_asked():
    statistics, sizes = RunningStatistics(6), (3, 3)
    statistics.count(torch.tensor([[1.0, 0, 0, 5, 5, 0], [1, 2, 2, 5, 5, 0], [1, 4, 4, 5, 5, 9]]))
    row = torch.full((1, 6), 6.0)
    assert statistics.normalise(row, sizes)[0, 0] == pytest.approx(5e7)
    floored = statistics.normalise(row, sizes, floor=0.5)[0]
    assert floored[0] == pytest.approx(5), "half the median of its own part"
    assert floored[3] == pytest.approx(1e7), "the other part has a median of 0, so that there is no measure"
    single = RunningStatistics(6)
    single.count(row)
    with pytest.raises(NumericsError, match="spread cannot be taken of 1 rows; train the editor"):
        single.normalise(row, sizes)
