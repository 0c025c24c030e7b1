"""The options that say which model a command works on, added to every command that needs one by `with_model`."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from tl_rome.cli import console

if TYPE_CHECKING:
    from tl_rome.sites import HookedModel


class ModelClass(StrEnum):
    """TransformerLens classes."""

    hooked = "hooked"
    bridge = "bridge"


class Dtype(StrEnum):
    """Floating-point types of weights."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


ModelOption = Annotated[
    str, typer.Option("--model", help="smollm2-135m, a hub name, or a folder in Hugging Face layout.")
]
ModelClassOption = Annotated[
    ModelClass | None,
    typer.Option("--model-class", help="HookedTransformer or TransformerBridge.", show_default="hooked if available"),
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Type of the weights.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Where the model runs: cpu, cuda, mps ...", show_default="cuda or cpu")
]
BosOption = Annotated[
    bool | None,
    typer.Option("--prepend-bos/--no-prepend-bos", help="Begin prompts with BOS.", show_default="by tokenizer"),
]

DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class ModelLoader:
    """Loads the model that the options name when it is called, in this process or in one that it was sent to."""

    model: ModelOption = DEFAULT_MODEL
    """Name or folder."""
    model_class: ModelClassOption = None
    """None takes HookedTransformer where it is available."""
    dtype: DtypeOption = Dtype.float32
    """Of the weights."""
    device: DeviceOption = None
    """None is the best available."""
    prepend_bos: BosOption = None
    """None follows the tokenizer."""

    def __call__(self) -> "HookedModel":
        """The model.

        Raises:
            TLRomeError: As `load_model` does.
        """
        import torch

        from tl_rome.models.loading import load_model

        if parent_process() is not None:
            console.log_plainly()  # a worker, in which `main` was not called
        return load_model(
            self.model,
            model_class=cast("Literal['hooked', 'bridge'] | None", self.model_class and self.model_class.value),
            dtype=getattr(torch, self.dtype.value),
            device=self.device,
            prepend_bos=self.prepend_bos,
            progress=console.shows_progress(),
        )


def with_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the model's options in place of its first parameter, which gets a `ModelLoader` made of them.

    Nothing is loaded before the command asks for it, so that errors in its other options are found first.
    """
    signature = inspect.signature(command)
    options = inspect.signature(ModelLoader).parameters
    parameters = [*list(signature.parameters.values())[1:], *options.values()]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        loader = ModelLoader(**{name: given.pop(name) for name in options})
        command(loader, **given)

    shown: Any = run  # typer reads these two
    shown.__signature__ = signature.replace(parameters=parameters)
    shown.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
