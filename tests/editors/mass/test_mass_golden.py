"""The closed form against arrays of the releases' operations in float64, and what holds for any keys."""

import numpy as np
import pytest
import torch

from tl_rome.editors import EMMET, KeyCovariance
from tl_rome.editors.mass.closed_form import CovariancePrior, SubspacePrior, key_directions
from tl_rome.editors.mass.subspace import quiet_subspace
from tl_rome.errors import InputError, NumericsError

KINDS_OF_PRIOR = ("covariance", "ridge", "subspace")


@pytest.fixture(scope="module")
def golden(shared_data):
    def get(name):
        with np.load(shared_data / "golden" / "after_rome" / f"{name}.npz") as file:
            return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}

    return get


def statistics(moment):
    return KeyCovariance(moment, 0, 10_000, "numbers", False, "no model")


def close(found, expected, tolerance=1e-9):
    assert float((found - expected).norm() / expected.norm()) <= tolerance


def random_keys(seed, d_mlp=24, n=6, d_model=10):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    root = draw(d_mlp, 3 * d_mlp)
    return statistics(root @ root.T / (3 * d_mlp)), draw(d_mlp, n), draw(d_model, n), draw(d_mlp, 8)


def prior_of(kind, covariance, earlier=None):
    if kind == "subspace":
        return SubspacePrior(quiet_subspace(covariance, energy_share=0.3).basis, 2.0, earlier)
    return CovariancePrior(covariance, 3.0, 0.5 if kind == "ridge" else 0.0, earlier)


def change(prior, keys, asked):
    return key_directions(prior, keys) @ asked.T


def test_memit_is_the_release_with_and_without_memory(golden):
    arrays = golden("memit_layer")
    covariance, weight = statistics(arrays["C"]), float(arrays["weight_lambda"])
    asked = arrays["targets"] / int(arrays["remaining_layers"])
    close(asked, arrays["resid"])
    found = key_directions(CovariancePrior(covariance, weight), arrays["K"])
    close(found, arrays["adj_k"])
    close(found @ asked.T, arrays["delta_w_out"])
    close((found @ asked.T).T @ arrays["K"], arrays["written_at_keys"])
    remembering = CovariancePrior(covariance, weight, earlier=arrays["memory"])
    close(key_directions(remembering, arrays["K"]), arrays["adj_k_memory"])
    close(change(remembering, arrays["K"], asked), arrays["delta_w_out_memory"])


def test_memit_with_memory_is_one_solve_over_all_batches(golden):
    arrays = golden("memit_memory")
    covariance, weight, earlier = statistics(arrays["C"]), arrays["W_out_0"].clone(), None
    batches = [name.removeprefix("K_") for name in sorted(arrays) if name.startswith("K_") and name[2:].isdigit()]
    assert len(batches) == 3
    scale = float(next(value for name, value in arrays.items() if "lambda" in name))
    for batch in batches:
        keys = arrays[f"K_{batch}"]
        prior = CovariancePrior(covariance, scale, earlier=earlier)
        delta = change(prior, keys, arrays[f"wanted_{batch}"] - weight.T @ keys)
        close(delta, arrays[f"delta_w_out_{batch}"])
        weight, earlier = weight + delta, keys @ keys.T + (0 if earlier is None else earlier)
    close(weight, arrays["W_out_final"])
    keys = torch.cat([arrays[f"K_{batch}"] for batch in batches], 1)
    wanted = torch.cat([arrays[f"wanted_{batch}"] for batch in batches], 1)
    asked = wanted - arrays["W_out_0"].T @ keys
    close(change(CovariancePrior(covariance, scale), keys, asked), arrays["delta_one_time"])


def test_emmet_is_memit_with_its_ridge_times_its_weight(golden):
    arrays = golden("emmet_layer")
    covariance, keys, targets = statistics(arrays["C"]), arrays["K"], arrays["targets"]
    exact = change(CovariancePrior(covariance, 0.0), keys, targets)
    close(exact, arrays["delta_w_out_l0"])
    close(keys.T @ exact, targets.T)
    weight = float(arrays["memit_weight_equivalent"])
    assert weight == pytest.approx(float(arrays["mom2_update_weight"]) * float(arrays["emmet_lambda"]))
    close(change(CovariancePrior(covariance, weight), keys, targets), arrays["delta_w_out_l01"])
    close(change(CovariancePrior(covariance, 0.0), keys[:, :1], targets[:, :1]), arrays["delta_w_out_single"])
    assert (EMMET.weight_for(1, 24), EMMET.weight_for(6, 24)) == (0.0, 0.1)


def test_alphaedit_is_the_release(golden):
    arrays = golden("alphaedit")
    covariance = statistics(arrays["C"])
    subspace = quiet_subspace(covariance, absolute_cut=2e-2)
    close(subspace.basis @ subspace.basis.T, arrays["P"])
    weight, earlier, l2 = arrays["W_out_0"].clone(), None, 10.0
    for batch in range(3):
        keys = arrays[f"K_{batch}"]
        delta = change(SubspacePrior(subspace.basis, l2, earlier), keys, arrays[f"resid_{batch}"])
        close(delta, arrays[f"delta_w_out_{batch}"])
        close(arrays["P"] @ delta, delta)
        weight, earlier = weight + delta, keys @ keys.T + (0 if earlier is None else earlier)
        close(earlier, arrays[f"cache_{batch}"])
    close(weight, arrays["W_out_final"])
    keys, wanted = (torch.cat([arrays[f"{name}_{i}"] for i in range(3)], 1) for name in ("K", "wanted"))
    asked = wanted - arrays["W_out_0"].T @ keys
    close(change(SubspacePrior(subspace.basis, l2), keys, asked), arrays["delta_one_time"])
    root, total = torch.linalg.cholesky(arrays["C"]), weight - arrays["W_out_0"]
    leakage = (root.T @ total).norm() ** 2 / (root.T @ arrays["W_out_0"]).norm() ** 2
    assert float(leakage) == pytest.approx(float(arrays["leakage"]), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS_OF_PRIOR)
def test_batches_with_memory_are_one_solve(kind):
    covariance, keys, wanted, _ = random_keys(1)
    weight, earlier = torch.zeros(24, 10).double(), None
    for part in ([0, 1], [2], [3, 4, 5]):
        batch = keys[:, part]
        weight = weight + change(prior_of(kind, covariance, earlier), batch, wanted[:, part] - weight.T @ batch)
        earlier = batch @ batch.T + (0 if earlier is None else earlier)
    close(weight, change(prior_of(kind, covariance), keys, wanted))


@pytest.mark.parametrize("kind", KINDS_OF_PRIOR)
def test_both_forms_agree_with_the_normal_equations_and_permuting_changes_nothing(kind):
    covariance, keys, asked, old = random_keys(2, n=40)
    prior = prior_of(kind, covariance, old @ old.T)
    if isinstance(prior, SubspacePrior):
        assert prior.earlier is not None
        basis = prior.basis
        kept = basis.T @ prior.earlier @ basis + prior.l2 * torch.eye(basis.shape[1])
    else:
        basis = torch.eye(24).double()
        kept = prior.matrix(keys.device)
    for count in (5, 24, 40):  # n x n, its limit, d x d
        some, part = keys[:, :count], asked[:, :count]
        inside = basis.T @ some
        expected = basis @ torch.linalg.inv(kept + inside @ inside.T) @ inside @ part.T
        close(change(prior, some, part), expected)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
        close(change(prior, some[:, order], part[:, order]), expected)


def test_the_weight_goes_from_exact_to_nothing():
    covariance, keys, asked, _ = random_keys(3)
    close(keys.T @ change(CovariancePrior(covariance, 1e-10), keys, asked), asked.T, 1e-7)
    assert change(CovariancePrior(covariance, 1e12), keys, asked).norm() < 1e-8


def test_what_cannot_be_solved_is_refused():
    covariance, keys, _, old = random_keys(4, n=40)
    with pytest.raises(InputError, match="cannot be stored exactly in 24 dimensions"):
        key_directions(CovariancePrior(covariance, 0.0), keys)
    with pytest.raises(InputError, match="no key memory with it"):
        CovariancePrior(covariance, 0.0, earlier=old @ old.T)
    with pytest.raises(NumericsError, match="keys repeat each other"):
        key_directions(CovariancePrior(covariance, 0.0), keys[:, [0, 0]])
    with pytest.raises(InputError, match="no direction of layer 0 is below absolute_cut=1e-09"):
        quiet_subspace(covariance, absolute_cut=1e-9)
