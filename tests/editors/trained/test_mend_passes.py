"""The inner pass gives the model's own gradients, the outer pass what models with changed weights give."""

import pytest
import torch
from support.families import FAMILIES, FAMILY_KINDS, KINDS
from torch.nn.functional import cross_entropy, kl_div

from tl_rome.editors.gradients import borrowed_for_gradients
from tl_rome.editors.trained.passes.inner import inner_gradients
from tl_rome.editors.trained.passes.matrices import choose_matrices
from tl_rome.editors.trained.passes.outer import EditedModels
from tl_rome.editors.trained.passes.products import OuterProducts
from tl_rome.editors.trained.passes.texts import TargetText
from tl_rome.editors.trained.passes.upper import UpperBlocks
from tl_rome.errors import InputError, UnsupportedModelError
from tl_rome.running.forward import run
from tl_rome.running.matrices import MlpMatrix

TEXTS = (("The Louvre is located in the city of", "New York"), ("Lionel Messi plays", "tennis"))


def gradients_of_weights(model, matrices, text):
    """The definition: autograd on the model's own parameters, through a whole forward pass."""
    weights = [matrix.weight(model) for matrix in matrices]
    leaves = [p for p in model.parameters() if any(p.data_ptr() == weight.data_ptr() for weight in weights)]
    for leaf in leaves:
        leaf.requires_grad_(True)
    logits = run(model, text.read[None])[0, text.places]
    cross_entropy(logits, text.target).backward()
    found = {leaf.data_ptr(): leaf.grad for leaf in leaves}
    for leaf in leaves:
        leaf.requires_grad_(False)
        leaf.grad = None
    # A bridge keeps some weights transposed.
    return [
        grad if grad.shape == weight.shape and grad.stride() == weight.stride() else grad.T
        for weight in weights
        for grad in [found[weight.data_ptr()]]
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_weights(fresh_tiny, family, kind):
    model = fresh_tiny(family, kind)
    matrices = choose_matrices(model)
    texts = [TargetText.of(model, *text) for text in TEXTS]
    with borrowed_for_gradients(model):
        upper = UpperBlocks(model, 1)
        found, _ = inner_gradients(upper, matrices, texts, upper.enter([text.read for text in texts]))
    assert all(p.grad is None for p in model.parameters())
    for edit, text in enumerate(texts):
        for products, expected in zip(found, gradients_of_weights(model, matrices, text), strict=True):
            left, right = products.of(edit)
            assert (left.T @ right - expected).norm() < 1e-4 * expected.norm()


def random_changes(matrices, model, edits, rank=3):
    generator = torch.Generator().manual_seed(1)
    owners = torch.arange(edits).repeat_interleave(rank)
    changes = []
    for matrix in matrices:
        d_in, d_out = matrix.weight(model).shape
        left, right = (torch.randn(edits * rank, size, generator=generator) for size in (d_in, d_out))
        changes.append(OuterProducts(left, 0.02 * right, owners))
    return changes


@pytest.mark.parametrize(("family", "kind"), FAMILY_KINDS)
def test_edited_models_are_those_with_changed_weights(fresh_tiny, family, kind):
    model = fresh_tiny(family, kind)
    matrices, texts = choose_matrices(model), [TargetText.of(model, *text) for text in TEXTS]
    other = [text.whole for text in reversed(texts)]
    positions = [torch.arange(len(other[0])), torch.tensor([1, 3])]
    changes = random_changes(matrices, model, len(texts))
    with borrowed_for_gradients(model):
        upper = UpperBlocks(model, 1)
        models = EditedModels(upper, matrices, changes, len(texts))
        edit_losses, _ = models.edit_losses(texts, upper.enter([text.read for text in texts]))
        locality = models.locality_losses(upper.enter(other), positions)
    for edit, text in enumerate(texts):
        before = run(model, other[edit][None])[0].log_softmax(-1)
        for matrix, change in zip(matrices, changes, strict=True):
            left, right = change.of(edit)
            matrix.weight(model).data.add_(left.T @ right)
        after = run(model, other[edit][None])[0].log_softmax(-1)
        logits = run(model, text.read[None])[0, text.places]
        for matrix, change in zip(matrices, changes, strict=True):
            left, right = change.of(edit)
            matrix.weight(model).data.sub_(left.T @ right)
        assert edit_losses[edit].item() == pytest.approx(cross_entropy(logits, text.target).item(), rel=1e-4)
        expected = kl_div(after, before, reduction="none", log_target=True).sum(-1)[positions[edit]].mean()
        assert expected > 1e-3
        assert locality[edit].item() == pytest.approx(expected.item(), rel=1e-3)


def test_matrices_are_those_of_the_last_three_blocks(tiny):
    kind = KINDS[0]
    assert [str(matrix) for matrix in choose_matrices(tiny("llama", kind))][2:5] == [
        "W_out of layer 1",
        "W_gate of layer 2",
        "W_in of layer 2",
    ]
    assert choose_matrices(tiny("gpt2", kind)) == tuple(
        MlpMatrix(layer, name) for layer in (1, 2, 3) for name in ("W_in", "W_out")
    )
    with pytest.raises(InputError, match="W_out of layer 1, W_out of layer 1; name each one once"):
        choose_matrices(tiny("gpt2", kind), [MlpMatrix(1), MlpMatrix(1)])
    with pytest.raises(UnsupportedModelError, match="no plain MLP"):
        choose_matrices(tiny("gpt2", kind), [MlpMatrix(1, "W_gate")])


def test_rows_of_edits_are_kept_apart():
    left, right = torch.arange(1.0, 5)[:, None], torch.ones(4, 2)
    products = OuterProducts(left, right, torch.tensor([0, 2, 2, 3]))
    padded, _ = products.padded(5)
    assert padded[..., 0].tolist() == [[1, 0], [0, 0], [2, 3], [4, 0], [0, 0]]
    some = products.select([2, 3])
    assert some.owners.tolist() == [0, 0, 1]
    assert some.left[:, 0].tolist() == [2, 3, 4]
    right[1] = float("nan")
    assert products.finite(5).tolist() == [True, True, False, True, True]
