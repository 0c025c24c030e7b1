"""The network of KE: from the tokens of a fact to a gate on each matrix's gradient.

De Cao et al. 2021, in the port to GPT by Mitchell et al. that the paper measures (its row KE). A bidirectional LSTM
reads the embeddings of prompt and target; its two final states give the condition c = tanh(A h + b). Every edited
matrix has a head of its own, two weight-normed layers, whose output splits into c_a, r_a, c_b, r_b and e:

    delta W = max_scale * sigmoid(e) * (grad L * (softmax(r_a) (x) c_a) + softmax(r_b) (x) c_b)

with `*` elementwise and W + delta W the edited matrix. grad L = sum_t x_t (x) delta_t over positions, x_t the matrix's
input and delta_t the gradient at its output, so the change is low-rank, one more than the rows with a gradient:

    delta W = max_scale * sigmoid(e) * (sum_t (softmax(r_a) * x_t) (x) (c_a * delta_t) + softmax(r_b) (x) c_b)

Orientation: [d_in, d_out], rows are inputs. The released code takes the softmax over the first dimension that a matrix
is stored with: d_in for GPT-2, d_out for a `Linear`, as Llama has them. Here it is an option, by name.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from torch.nn.utils.rnn import pack_padded_sequence

from tl_rome.editors.trained.ke.config import KeConfig
from tl_rome.editors.trained.network import EditNetwork
from tl_rome.editors.trained.passes.products import OuterProducts
from tl_rome.running.forward import device_of
from tl_rome.sites import HookedModel
from tl_rome.tokens import pad


class KeNetwork(EditNetwork):
    """Parameters of the LSTM, the condition and the heads; torch's own initialisation, drawn from a generator.

    Args:
        matrices: (d_in, d_out) of each edited matrix, in the order of the edit.
        d_model: Width of token embeddings.
        config: Settings.
        generator: Source of the initial values, drawn on the CPU.
        embeddings: Start of the network's own embeddings, for the settings that ask for them. Token 0 keeps its value,
            since the released code takes it for padding.
    """

    def __init__(
        self,
        matrices: Sequence[tuple[int, int]],
        d_model: int,
        config: KeConfig,
        generator: torch.Generator,
        embeddings: Float[Tensor, "d_vocab d_model"] | None = None,
    ) -> None:
        super().__init__()
        assert config.own_embedding == (embeddings is not None)
        self._config, self._matrices = config, tuple(matrices)
        self._embed: Callable[[Tensor], Tensor] | None = None
        self.embedding = None if embeddings is None else nn.Parameter(embeddings.float().clone())
        with torch.device("meta"):  # torch would draw from its global state
            lstm = nn.LSTM(d_model, config.hidden, batch_first=True, bidirectional=True)
            condition = nn.Linear(2 * config.hidden, config.condition)
        self.lstm, self.linear = lstm.to_empty(device="cpu"), condition.to_empty(device="cpu")
        for parameter in self.lstm.parameters():
            _uniform(parameter, config.hidden, generator)
        for parameter in self.linear.parameters():
            _uniform(parameter, 2 * config.hidden, generator)
        self.heads = nn.ModuleList(
            nn.Sequential(
                WeightNormed(config.condition, config.hidden, generator),
                nn.Tanh(),
                WeightNormed(config.hidden, 2 * (d_in + d_out) + 1, generator),
            )
            for d_in, d_out in self._matrices
        )

    def reading(self, model: HookedModel) -> "KeNetwork":
        """The same network, not a copy of its parameters, with a model to read token embeddings from."""
        bound, device = copy(self), device_of(model)
        bound._embed = lambda tokens: model.embed(tokens.to(device)).detach()
        return bound

    def condition(self, texts: Sequence[Int[Tensor, " _"]]) -> Float[Tensor, "texts condition"]:
        """The condition of each text, given by its tokens."""
        batch = pad(texts)
        if self.embedding is not None:
            embedded = embedding(batch.tokens.to(self.embedding.device), self.embedding, padding_idx=0)
        else:
            assert self._embed is not None, "a network without embeddings of its own is asked by way of `reading`"
            embedded = self._embed(batch.tokens)
        embedded = embedded.to(self.linear.weight)
        packed = pack_padded_sequence(embedded, batch.lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (final, _) = self.lstm(packed)
        return self.linear(torch.cat([*final], dim=-1)).tanh()

    def forward(
        self, gradients: Sequence[OuterProducts], conditions: Sequence[Int[Tensor, " _"]]
    ) -> list[OuterProducts]:
        """The change of each matrix, see `EditNetwork`; of as many rows as its gradient, and one more for each edit."""
        condition = self.condition(conditions)
        return [self._change(place, gradient, condition) for place, gradient in enumerate(gradients)]

    def _change(
        self, place: int, gradient: OuterProducts, condition: Float[Tensor, "edits condition"]
    ) -> OuterProducts:
        d_in, d_out = self._matrices[place]
        soft, plain = (d_in, d_out) if self._config.softmax_over == "d_in" else (d_out, d_in)
        c_a, r_a, c_b, r_b, e = self.heads[place](condition).split((plain, soft, plain, soft, 1), dim=-1)
        gates, added = (r_a.softmax(dim=-1), c_a), (r_b.softmax(dim=-1), c_b)
        if self._config.softmax_over == "d_out":
            gates, added = gates[::-1], added[::-1]
        whose, scale = gradient.owners, self._config.max_scale * e.sigmoid()
        left = torch.cat([gates[0][whose] * gradient.left, added[0]])
        right = torch.cat([(scale * gates[1])[whose] * gradient.right, scale * added[1]])
        owners = torch.cat([whose, torch.arange(len(condition), device=whose.device)])
        order = owners.argsort(stable=True)
        return OuterProducts(left[order], right[order], owners[order])

    def count(self, gradients: Sequence[OuterProducts]) -> None:
        """Nothing: KE keeps no statistics."""

    def groups(self) -> list[dict[str, Any]]:
        """All parameters, at one rate."""
        return [{"params": list(self.parameters()), "lr": self._config.learning_rate}]


class WeightNormed(nn.Module):
    """A linear layer whose rows are g v / ||v||, one v and g per output (Salimans and Kingma 2016).

    Args:
        inputs: Width of the input.
        outputs: Width of the output.
        generator: Source of the initial values; g starts as ||v||.
    """

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.v, self.bias = nn.Parameter(torch.empty(outputs, inputs)), nn.Parameter(torch.empty(outputs))
        for parameter in (self.v, self.bias):
            _uniform(parameter, inputs, generator)
        self.g = nn.Parameter(self.v.detach().norm(dim=1, keepdim=True))

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """The outputs."""
        return linear(x, self.v * (self.g / self.v.norm(dim=1, keepdim=True)), self.bias)


def _uniform(parameter: nn.Parameter, fan_in: int, generator: torch.Generator) -> None:
    """Draw from +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5
    drawn = torch.rand(parameter.shape, generator=generator) * 2 * bound - bound
    parameter.data = drawn.to(parameter)
