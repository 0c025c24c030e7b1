"""The layer loop against the releases' on a small residual network in float64."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tl_rome.editors import ALPHAEDIT, MEMIT, PMET, KeyCovariance
from tl_rome.editors.mass.closed_form import CovariancePrior, SubspacePrior
from tl_rome.editors.mass.layers import write_layers
from tl_rome.editors.mass.subspace import quiet_subspace
from tl_rome.running.matrices import key_hook


class Network(nn.Module):
    """k = tanh(s U), s <- s + k W_out + b_out, with the attributes by which W_out is found."""

    def __init__(self, arrays):
        super().__init__()
        layers, d_model, d_mlp = arrays["U_in"].shape
        self.cfg = SimpleNamespace(n_layers=layers, d_model=d_model, d_mlp=d_mlp)
        self.blocks = [SimpleNamespace(mlp=SimpleNamespace(W_out=weight.clone())) for weight in arrays["W_out"]]
        self.hook_dict = {key_hook(layer): None for layer in range(layers)}
        self.arrays, self.tokenizer = arrays, None

    def run(self, facts):
        """Keys of all layers, and the outputs of W_out and blocks, for the contexts of some facts."""
        keys, outputs, states, state = [], [], [], self.arrays["x"][facts]
        for block, inner, bias in zip(self.blocks, self.arrays["U_in"], self.arrays["b_out"], strict=True):
            keys.append(torch.tanh(state @ inner))
            outputs.append(keys[-1] @ block.mlp.W_out + bias)
            state = state + outputs[-1]
            states.append(state)
        return keys, outputs, states


class WholeRuns:
    """A sweep by the definition."""

    def __init__(self, network, facts, last, site):
        self.network, self.facts, self.last, self.site = network, facts, last, site

    def measure(self, layer):
        keys, outputs, states = self.network.run(self.facts)
        return keys[layer], (states if self.site == "resid_post" else outputs)[self.last][:, 0]

    def written(self, layer, change):
        pass

    def final(self):
        return self.measure(self.last)[1]

    def anew(self):
        return self.final()


def close(found, expected):
    assert float((found - expected).norm() / expected.norm()) <= 1e-9


@pytest.fixture
def arrays(shared_data):
    with np.load(shared_data / "golden" / "after_rome" / "toy_loop.npz") as file:
        return {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}


@pytest.fixture
def solve(arrays):
    statistics = {layer: KeyCovariance(arrays["C"][layer], layer, 10_000, "numbers", False, "") for layer in range(5)}

    def run(network, facts, config, prior_of):
        layers = arrays["layers"].tolist()
        sweep = WholeRuns(network, facts, layers[-1], config.value_site)
        groups = [(index,) for index in range(len(facts))]
        deltas = arrays["delta"][facts]
        return write_layers(network, sweep, layers, groups, deltas, config, prior_of(statistics), statistics), sweep

    return run


@pytest.mark.parametrize("config", [MEMIT, PMET], ids=lambda config: config.preset)
def test_the_loop_is_that_of_the_release(arrays, solve, config):
    network, name = Network(arrays), config.preset
    weight = float(arrays[f"{name}_lambda"])
    before = [block.mlp.W_out.clone() for block in network.blocks]
    solved, sweep = solve(
        network, [0, 1, 2, 3], config, lambda found: lambda layer, n: (CovariancePrior(found[layer], weight), None)
    )
    target = arrays["Z_resid_post" if name == "memit" else "Z_w_out"]
    wanted = sweep.final() + arrays["delta"]
    close(wanted, target)
    for index, update in enumerate(solved.updates):
        close(solved.keys[update.layer], arrays[f"{name}_K"][index])
        close(update.delta, arrays[f"{name}_delta_w_out"][index])
        receipt, keys = solved.layers[index], arrays[f"{name}_K"][index]
        asked = (arrays[f"{name}_targets"][index] / ((3 - index) if name == "memit" else (3 - index) ** 0.5)).T
        got = keys.T @ arrays[f"{name}_delta_w_out"][index]
        assert receipt.written == pytest.approx(float(((got * asked).sum(1) / asked.square().sum(1)).mean()))
        root = torch.linalg.cholesky(arrays["C"][update.layer])
        share = (root.T @ update.delta).norm() / (root.T @ before[update.layer]).norm()
        assert receipt.disturbance == pytest.approx(float(share), rel=1e-5)
        assert receipt.relative == pytest.approx(float(update.delta.norm() / before[update.layer].norm()))
    left = arrays[f"{name}_left"].norm(dim=0) / arrays["delta"].norm(dim=1)
    assert solved.residual_left == pytest.approx(left.tolist(), rel=1e-9)
    assert all(torch.equal(block.mlp.W_out, old) for block, old in zip(network.blocks, before, strict=True))


def test_alphaedit_in_two_batches_is_the_release(arrays, solve):
    network, cut, l2 = Network(arrays), float(arrays["alphaedit_threshold"]), float(arrays["alphaedit_L2"])
    memory = {layer: None for layer in range(5)}

    def prior_of(found):
        spaces = {layer: quiet_subspace(found[layer], absolute_cut=cut) for layer in arrays["layers"].tolist()}
        for projection, space in zip(arrays["alphaedit_P"], spaces.values(), strict=True):
            close(space.basis @ space.basis.T, projection)
        return lambda layer, n: (SubspacePrior(spaces[layer].basis, l2, memory[layer]), spaces[layer])

    for batch, facts in enumerate(([0, 1], [2, 3])):
        solved, _ = solve(network, facts, ALPHAEDIT, prior_of)
        for index, update in enumerate(solved.updates):
            close(solved.keys[update.layer], arrays[f"alphaedit_batch{batch}_K"][index])
            close(update.delta, arrays[f"alphaedit_batch{batch}_delta_w_out"][index])
            network.blocks[update.layer].mlp.W_out += update.delta
            keys = solved.keys[update.layer]
            memory[update.layer] = keys @ keys.T + (0 if memory[update.layer] is None else memory[update.layer])
            assert solved.layers[index].leakage == pytest.approx(solved.layers[index].disturbance ** 2)
    for layer, expected in zip(arrays["layers"].tolist(), arrays["alphaedit_cache_after"], strict=True):
        close(memory[layer], expected)
    close(torch.stack([block.mlp.W_out for block in network.blocks]), arrays["alphaedit_W_out_after"])
