"""MEND end to end on the reference's tiny GPT-2: gradients, edits, losses, and the gradients of all that is learnt."""

import pytest
import torch
from support.families import KINDS
from support.golden import MATRICES, golden_arrays, golden_gpt2

from tl_rome.editors.gradients import borrowed_for_gradients
from tl_rome.editors.trained.mend.config import MEND_RELEASED
from tl_rome.editors.trained.mend.network import MendNetwork
from tl_rome.editors.trained.mend.transform import LowRankLayer
from tl_rome.editors.trained.passes.inner import inner_gradients
from tl_rome.editors.trained.passes.outer import EditedModels
from tl_rome.editors.trained.passes.texts import TargetText
from tl_rome.editors.trained.passes.upper import UpperBlocks
from tl_rome.running.matrices import MlpMatrix

NAMES = ("h.1.mlp.c_proj", "h.1.mlp.c_fc", "h.2.mlp.c_proj", "h.2.mlp.c_fc")
"""The edited matrices, in the order of the golden rates."""
TRANSFORMS = {"fc": "8x32", "proj": "32x8"}


def matrix_of(name):
    _, layer, _, part = name.split(".")
    return MlpMatrix(int(layer), MATRICES[part])


@pytest.fixture(scope="module")
def golden(shared_data):
    return golden_arrays(shared_data, "mend_gpt2")


@pytest.fixture(scope="module", params=KINDS)
def model(request, golden, tmp_path_factory):
    return golden_gpt2(golden, request.param, tmp_path_factory.mktemp("golden"))


def text_of(golden, name, size="n_target"):
    tokens, target = golden[f"{name}_ids"][0], int(golden[size])
    return TargetText(tokens[:-target], tokens[-target:])


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@pytest.fixture(scope="module")
def edit(golden, model):
    """The upper blocks, the network after its warm-up, and the inner gradients of the edit."""
    matrices = [matrix_of(name) for name in NAMES]
    shapes = [tuple(matrix.weight(model).shape) for matrix in matrices]
    network = MendNetwork(shapes, MEND_RELEASED, torch.Generator()).double()
    state = {"rates": golden["lrs"]}
    for short, name in TRANSFORMS.items():
        for index in range(2):
            for part in ("U", "V", "b", "scale", "shift"):
                state[f"transforms.{name}.layers.{index}.{part}"] = golden[f"P.{short}{index}.{part}"]
    for layer in [part for part in network.modules() if isinstance(part, LowRankLayer)]:
        layer.U.data, layer.V.data = layer.U.data[:, :6], layer.V.data[:6]
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("statistics" in name for name in missing)
    with borrowed_for_gradients(model):
        upper = UpperBlocks(model, 1)

        def gradients(text):
            return inner_gradients(upper, matrices, [text], upper.enter([text.read]))

        network.count(gradients(text_of(golden, "warm", "n_target_warm"))[0])
        found, nll = gradients(text_of(golden, "edit"))
    close(nll[0], golden["inner_nll"])
    return upper, matrices, network, found


def test_running_statistics(golden, edit):
    for short, name in TRANSFORMS.items():
        transform = edit[2].transforms[name]
        found = transform.statistics
        for part, mean, squares in zip(
            ("x", "delta"), found.mean.split(transform.sizes), found.squares.split(transform.sizes), strict=True
        ):
            close(mean, golden[f"stats_after_warm.{short}.{part}_mean"].double())
            close(squares, golden[f"stats_after_warm.{short}.{part}_s"].double())
        assert int(found.rows) == int(golden[f"stats_after_warm.{short}.k"])


def test_inner_gradients_factors_and_updates(golden, edit):
    _, _, network, gradients = edit
    changes = network(gradients)
    for index, (name, gradient, change) in enumerate(zip(NAMES, gradients, changes, strict=True)):
        kept = golden[f"delta.{name}"].any(-1)
        assert len(gradient.owners) == (6 if "h.1" in name else 2)
        close(gradient.left, golden[f"x.{name}"][kept])
        close(gradient.right, golden[f"delta.{name}"][kept])
        close(change.left, golden[f"x_new.{name}"])
        close(change.right, golden["lrs"][index] * golden[f"delta_new.{name}"])
        close(change.left.T @ change.right, golden[f"update.{name}"])
        assert not torch.allclose(change.left.T @ change.right, golden[f"wrapper_update.{name}"])


def test_outer_losses_and_all_gradients(golden, model, edit):
    upper, matrices, network, gradients = edit
    outer, other = text_of(golden, "outer"), golden["loc_ids"][0]
    network.zero_grad()
    with borrowed_for_gradients(model), torch.enable_grad():
        models = EditedModels(upper, matrices, network(gradients), 1)
        edit_losses, hit = models.edit_losses([outer], upper.enter([outer.read]))
        locality_losses = models.locality_losses(upper.enter([other]), [torch.arange(len(other))])
        loss = 0.1 * edit_losses.sum() + locality_losses.sum()
        loss.backward()
    close(edit_losses[0].detach(), golden["l_edit"])
    close(locality_losses[0].detach(), golden["l_loc"])
    close(loss.detach(), golden["l_total"])
    assert hit == [bool(golden["edit_acc"] == 1)]
    close(network.rates.grad, golden["grad.lrs"])
    for short, name in TRANSFORMS.items():
        for index, layer in enumerate(network.transforms[name].layers):
            for part, parameter in layer.named_parameters():
                close(parameter.grad, golden[f"grad.{short}{index}.{part}"])
    norm = torch.cat([parameter.grad.reshape(-1) for parameter in network.parameters()]).norm()
    close(norm, golden["grad_norm"])
