"""The inner pass gives the model's own gradients, the outer pass what models with changed weights give."""

import pytest
import torch
from support.families import FAMILIES, FAMILY_KINDS, KINDS
from support.golden import MATRICES, golden_arrays, golden_gpt2
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
            torch.testing.assert_close(left.T @ right, expected, rtol=2e-4, atol=2e-6)
