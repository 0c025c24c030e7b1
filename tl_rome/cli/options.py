"""Arguments and options that several commands share, and the model that they name."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

if TYPE_CHECKING:
    from tl_rome.sites import HookedModel


class Kind(StrEnum):
    """TransformerLens classes."""

    hooked = "hooked"
    bridge = "bridge"


class Dtype(StrEnum):
    """Floating-point types of weights."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"
    float16 = "float16"


TemplateArgument = Annotated[
    str, typer.Argument(help="Prompt with one {} in the subject's place, ending before the object.")
]
SubjectArgument = Annotated[str, typer.Argument(help="The entity, as it appears in the prompt.")]
ModelOption = Annotated[
    str, typer.Option("--model", help="smollm2-135m, a hub name, or a folder in Hugging Face layout.")
]
KindOption = Annotated[
    Kind | None, typer.Option("--kind", help="HookedTransformer or TransformerBridge.", show_default="hooked if there")
]
DtypeOption = Annotated[Dtype, typer.Option("--dtype", help="Type of the weights.")]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Where the model runs: cpu, cuda, mps ...", show_default="cuda or cpu")
]
BosOption = Annotated[
    bool | None,
    typer.Option("--prepend-bos/--no-prepend-bos", help="Begin prompts with BOS.", show_default="the tokenizer's way"),
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]

DEFAULT_MODEL = "smollm2-135m"


def load(
    name: str,
    kind: Kind | None = None,
    dtype: Dtype = Dtype.float32,
    device: str | None = None,
    prepend_bos: bool | None = None,
) -> "HookedModel":
    """The model that the options name.

    Raises:
        TLRomeError: As `load_model` does.
    """
    import torch

    from tl_rome.models.loading import load_model

    chosen = cast("Literal['hooked', 'bridge'] | None", kind and kind.value)
    return load_model(
        name, model_class=chosen, dtype=getattr(torch, dtype.value), device=device, prepend_bos=prepend_bos
    )
