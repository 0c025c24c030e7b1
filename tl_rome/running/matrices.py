"""The matrices of an MLP: W_in, W_out and, where it is gated, W_gate; what goes into them and what comes out.

Orientation: TransformerLens keeps a matrix as [d_in, d_out] and computes x @ W + b with rows as inputs. So the paper's
    W (which maps column keys to column values) is W_out transposed, and its update Λ (C^-1 k*)^T (eq. 2) is the outer
    product u v^T here, with v for Λ.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from tl_rome.arguments import Whole
from tl_rome.errors import UnsupportedModelError
from tl_rome.running.hooks import Hook, InputOf
from tl_rome.sites import HookedModel, Site, check_layer, hook_points, is_hooked_transformer

MatrixName = Literal["W_gate", "W_in", "W_out"]
"""Names of the matrices, as TransformerLens has them; W_gate is what the activation function is applied to."""

_PARTS: dict[MatrixName, str] = {"W_gate": "gate", "W_in": "in", "W_out": "out"}
"""What a bridge calls them."""

Watch = Callable[[Tensor], Tensor | None]
"""Gets [batch, pos, size]; what it returns, unless None, replaces that."""


@dataclass(frozen=True, order=True)
class MlpMatrix:
    """One matrix of one layer's MLP, as a value: `MlpMatrix(5)` is W_out of layer 5."""

    layer: Whole
    """Block index."""
    name: MatrixName = "W_out"
    """Which of its matrices."""

    def __str__(self) -> str:
        return f"{self.name} of layer {self.layer}"

    def weight(self, model: HookedModel) -> Float[Tensor, "d_in d_out"]:
        """The live weight; writing to it in place under `torch.no_grad` changes the model.

        Raises:
            InputError: If the layer is out of range.
            UnsupportedModelError: If the block has no such two-dimensional matrix (mixtures of experts, attention-only,
                W_gate where nothing is gated), or it cannot be read.
        """
        return self._weight(model, hook_points(model))

    def _weight(self, model: HookedModel, points: Container[str]) -> Float[Tensor, "d_in d_out"]:
        """See `weight`; `points` are the names of the model's hook points, which a bridge lists slowly."""
        check_layer(model, self.layer)
        found = _read(model, self.layer, self.name)
        shape = self.shape(model)
        whole = isinstance(found, Tensor) and tuple(found.shape) == shape
        if not whole or key_hook(self.layer) not in points:
            seen = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UnsupportedModelError(
                f"layer {self.layer} has no plain MLP with {self.name} of shape {shape} (found {seen}), so it cannot "
                "be edited; dense GPT-2, GPT-J, GPT-NeoX, Llama, Mistral, Qwen2 and Gemma 2 layouts can"
            )
        return found

    def module(self, model: HookedModel) -> nn.Module | None:
        """What a bridge runs for it; None where there is none, and in a HookedTransformer, which has weights alone.

        Raises:
            InputError: If the layer is out of range.
        """
        block = model.blocks[check_layer(model, self.layer)]
        found = getattr(getattr(getattr(block, "mlp", None), _PARTS[self.name], None), "original_component", None)
        return found if isinstance(found, nn.Module) else None

    def shape(self, model: HookedModel) -> tuple[int, int]:
        """Sizes of its input and output by the model's configuration, whatever the weight is stored as."""
        inner, outer = model.cfg.d_mlp, model.cfg.d_model
        return (inner, outer) if self.name == "W_out" else (outer, inner)

    def bias(self, model: HookedModel) -> Float[Tensor, " d_out"]:
        """What is added to input @ weight, zeros where that is nothing.

        Raises:
            InputError: As `weight` does.
            UnsupportedModelError: As `weight` does.
        """
        weight = self.weight(model)
        found = _read(model, self.layer, self.name.replace("W", "b"))
        if self.name != "W_out" and is_hooked_transformer(model) and model.cfg.gated_mlp:
            found = None  # its b_in is added behind the activation function
        return found if isinstance(found, Tensor) else weight.new_zeros(weight.shape[1])


def mlp_matrices(model: HookedModel, layer: int) -> tuple[MlpMatrix, ...]:
    """All matrices of a layer's MLP: W_in and W_out, with W_gate before them where it is gated.

    Raises:
        InputError: If the layer is out of range.
        UnsupportedModelError: If one of them is not a single two-dimensional matrix.
    """
    return tuple(_weights(model, layer, hook_points(model)))


def editable_matrices(model: HookedModel) -> dict[MlpMatrix, Float[Tensor, "d_in d_out"]]:
    """All matrices of all layers that have plain MLPs, which are those that an edit can change, with their weights."""
    found: dict[MlpMatrix, Tensor] = {}
    points = hook_points(model)
    for layer in range(model.cfg.n_layers):
        try:
            found |= _weights(model, layer, points)
        except UnsupportedModelError:
            continue
    return found


def _weights(model: HookedModel, layer: int, points: Container[str]) -> dict[MlpMatrix, Float[Tensor, "d_in d_out"]]:
    """The matrices of a layer's MLP."""
    gated = isinstance(_read(model, check_layer(model, layer), "W_gate"), Tensor)
    found = [MlpMatrix(layer, name) for name in _PARTS if gated or name != "W_gate"]
    return {matrix: matrix._weight(model, points) for matrix in found}


def input_hook(model: HookedModel, matrix: MlpMatrix, watch: Watch) -> Hook:
    """A hook that sees the exact input of a matrix, after the norm before the MLP: the key k of eq. 3 for W_out.

    Args:
        model: The model.
        matrix: Of this model.
        watch: Gets the input [batch, pos, d_in].
    """
    if matrix.name == "W_out":
        place: Any = key_hook(matrix.layer)
    elif is_hooked_transformer(model):
        place = InputOf(model.blocks[matrix.layer].mlp)
    else:
        place = f"blocks.{matrix.layer}.mlp.{_PARTS[matrix.name]}.hook_in"
    return place, lambda value, hook: watch(value)


def output_hook(model: HookedModel, matrix: MlpMatrix, watch: Watch) -> Hook:
    """A hook that sees, and may replace, the exact output of a matrix with its bias: for W_out the value of eq. 4.

    `hook_mlp_out` is W_out's output except where a norm follows the MLP (Gemma 2); a bridge then names the inner point
    `mlp.out.hook_out`, and for HookedTransformer the MLP module's own output is taken.

    Args:
        model: The model.
        matrix: Of this model.
        watch: Gets the output [batch, pos, d_out]; returns a replacement or None.
    """
    layer, inner = matrix.layer, f"blocks.{matrix.layer}.mlp.{_PARTS[matrix.name]}.hook_out"
    if inner in hook_points(model):
        place: Any = inner
    elif matrix.name != "W_out":
        place = f"blocks.{layer}.mlp." + ("hook_pre_linear" if _is_factor(model, matrix) else "hook_pre")
    elif is_hooked_transformer(model):
        place = model.blocks[layer].mlp
    else:
        place = Site("mlp_out", layer).check(model)
    return place, lambda value, hook: watch(value)


def addition_hooks(model: HookedModel, matrix: MlpMatrix, addition: Callable[[Tensor], Tensor]) -> list[Hook]:
    """Hooks that add a function of a matrix's input to its output, as a change of the matrix does.

    Args:
        model: The model.
        matrix: Of this model.
        addition: Gets the input [batch, pos, d_in], returns what is added [batch, pos, d_out].
    """
    inputs: list[Tensor] = []

    def note(value: Tensor) -> None:
        inputs[:] = [value]

    def add(output: Tensor) -> Tensor:
        added = addition(inputs.pop())
        return (output + added).to(output.dtype)

    return [input_hook(model, matrix, note), output_hook(model, matrix, add)]


def key_hook(layer: int) -> str:
    """Hook point whose value is the exact input of W_out (gated MLPs included): the key k of eq. 3."""
    return f"blocks.{layer}.mlp.hook_post"


def value_hook(model: HookedModel, layer: int, watch: Watch) -> Hook:
    """`output_hook` of W_out: its output with the bias is the value that eq. 4 replaces by z."""
    return output_hook(model, MlpMatrix(layer), watch)


def w_out(model: HookedModel, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """The live weight W_out of one MLP, see `MlpMatrix.weight`."""
    return MlpMatrix(layer).weight(model)


def b_out(model: HookedModel, layer: int) -> Float[Tensor, " d_model"]:
    """Bias of W_out, zeros where the model has none."""
    return MlpMatrix(layer).bias(model)


def _is_factor(model: HookedModel, matrix: MlpMatrix) -> bool:
    """Whether a matrix's output is multiplied with the gate's."""
    return matrix.name == "W_in" and isinstance(_read(model, matrix.layer, "W_gate"), Tensor)


def _read(model: HookedModel, layer: int, name: str) -> Any:
    """What a block's MLP has under a name, or None.

    Raises:
        UnsupportedModelError: If TransformerLens cannot read it, as in quantised models.
    """
    try:
        return getattr(getattr(model.blocks[layer], "mlp", None), name, None)
    except NotImplementedError as error:
        raise UnsupportedModelError(
            f"TransformerLens cannot read {name} of layer {layer} ({error}); load the model without quantisation, "
            "which ROME and mass editors do not need, or run an edit that was made so by hooks: "
            "edited_rows(model, [edit], same_weights=False)"
        ) from error
