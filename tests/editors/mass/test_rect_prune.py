import math

import numpy as np
import pytest
import torch

from tl_rome.editors.mass.shrink.prune import prune
from tl_rome.editors.mass.shrink.rect import rect


@pytest.fixture
def golden(shared_data):
    with np.load(shared_data / "golden" / "after_rome" / "rect_prune.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def close(found, expected):
    return bool((found - expected).norm() <= 1e-9 * expected.norm())


def random_pair():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(12, 8, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize(("keep", "name"), [("alphaedit", "keep40"), (0.2, "keep20")])
def test_rect_is_that_of_its_sources(golden, keep, name):
    found = rect(golden["rect_W"], golden["rect_delta"], keep)
    assert torch.equal(found != 0, golden[f"rect_mask_{name}"].bool())
    assert close(found, golden[f"rect_delta_{name}"])


@pytest.mark.parametrize(
    ("base", "name"), [(math.e, "ln"), (2.0, "log2"), (1.5, "log1_5"), (1.2, "log1_2"), ("linear", "linear")]
)
def test_prune_is_that_of_its_sources_on_the_unedited_weight(golden, base, name):
    found = prune(golden["prune_W0"], golden["prune_delta"], base)
    assert close(found, golden[f"delta_{name}"])
    values = torch.linalg.svdvals(found)
    assert close(values, golden[f"s_{name}"].sort(descending=True).values)


def test_rect_keeps_the_relatively_largest_and_all_changes_of_zeros():
    weight, change = random_pair()
    weight[0], change[1] = 0, 0
    weight[1, 0] = 0
    found = rect(weight, change, 0.25)
    kept = found != 0
    assert int(kept.sum()) == 24
    assert bool(kept[0].all())
    assert not bool(kept[1].any())
    assert torch.equal(found[kept], change[kept])
    ratio = (change / weight).abs()
    assert ratio[kept].min() >= ratio[~kept].nan_to_num(0).max()


def test_prune_leaves_a_small_change_alone_and_never_the_directions():
    weight, change = random_pair()
    small = change * (0.999 * torch.linalg.matrix_norm(weight, 2) / torch.linalg.matrix_norm(change, 2))
    assert torch.equal(prune(weight, small), small)
    large = 30 * change
    found = prune(weight, large, "linear")
    left, values, right = torch.linalg.svd(large, full_matrices=False)
    inside = left.T @ found @ right.T
    torch.testing.assert_close(inside, inside.diagonal().diag(), rtol=0, atol=1e-10)
    assert bool((inside.diagonal() <= values + 1e-9).all())
