"""Neurons by layer: what is drawn where."""

import pytest
import torch
from matplotlib.figure import Figure

from tl_rome.editors.knowledge_neurons.plot import plot_neurons
from tl_rome.editors.knowledge_neurons.scores import NeuronScores


def example(scores):
    values = torch.tensor(scores, dtype=torch.float64)
    made = {"prob": 0.5, "predicted": 3, "prompt": "The Louvre is in", "answer": (" Paris",), "model": "tiny"}
    return NeuronScores(scores=values, activations=values, site="post", points="left", steps=20, **made)


@pytest.mark.parametrize(
    ("scores", "chosen", "others"),
    [
        ([[0.001, 1.0, 0.2], [-0.5, 0.3, 0.0]], [(0, 1.0), (1, 0.3)], [(0, 0.2), (1, -0.5)]),
        ([[-1.0, -0.5], [0.0, 0.0]], [], [(0, -1.0), (0, -0.5)]),
    ],
    ids=["some", "none"],
)
def test_neurons_above_the_line_are_marked(scores, chosen, others):
    ax = Figure().subplots()
    assert plot_neurons(example(scores), ax) is ax
    ax.figure.canvas.draw()
    drawn = [[tuple(point) for point in torch.as_tensor(line.get_xydata()).tolist()] for line in ax.lines[:3]]
    assert drawn[:2] == [others, chosen]
    assert drawn[2][0][1] == pytest.approx(0.2 * max(0, max(map(max, scores))))
    assert ax.get_title() == f"Paris: {len(chosen)} neurons above 20% of the largest"
