"""The options that say which editors a command compares, and the editors that they name."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from tl_rome.cli import console
from tl_rome.cli.inputs.statistics import Statistics
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.editors.layers import LayerFinder
    from tl_rome.editors.protocol import Editor
    from tl_rome.sites import HookedModel


class EditorName(StrEnum):
    """The names of `tl_rome.editors.by_name`, which imports torch, as `--help` must not; a test keeps the two equal."""

    ft = "ft"
    ft_l = "ft_l"
    kn = "kn"
    kn_corrected = "kn_corrected"
    ke = "ke"
    ke_cf = "ke_cf"
    mend = "mend"
    mend_cf = "mend_cf"
    rome = "rome"
    r_rome = "r_rome"
    r_rome_2024 = "r_rome_2024"
    p_rome = "p_rome"
    draft = "draft"
    neurips = "neurips"
    memit = "memit"
    emmet = "emmet"
    memit_seq = "memit_seq"
    alphaedit = "alphaedit"
    alphaedit_released = "alphaedit_released"
    pmet = "pmet"
    memit_rect = "memit_rect"
    memit_prune = "memit_prune"

    @property
    def is_rome(self) -> bool:
        """Whether it needs key statistics and contexts."""
        names = (EditorName.rome, EditorName.r_rome, EditorName.r_rome_2024, EditorName.p_rome)
        return self in (*names, EditorName.draft, EditorName.neurips)

    @property
    def is_mass(self) -> bool:
        """Whether it edits several layers, with statistics of each."""
        return self.startswith(("memit", "alphaedit")) or self in (EditorName.emmet, EditorName.pmet)

    @property
    def is_trained(self) -> bool:
        """Whether it comes from a file."""
        return self in (EditorName.ke, EditorName.ke_cf, EditorName.mend, EditorName.mend_cf)


class EditorNames(tuple[EditorName, ...]):
    """Names separated by commas, without repeats."""


def editor_names(text: str | EditorNames) -> EditorNames:
    """Parse names; a default comes parsed."""
    if not isinstance(text, str):
        return text
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in [*EditorName]]
    if unknown or not names:
        what = f"there is no editor {', '.join(map(repr, unknown))}" if unknown else f"{text!r} names no editor"
        raise typer.BadParameter(f"{what}; choose from {', '.join(EditorName)}")
    return EditorNames(map(EditorName, names))


EditorsOption = Annotated[
    EditorNames,
    typer.Option(
        "--editors", parser=editor_names, metavar="NAMES", help=f"Separated by commas: {', '.join(EditorName)}."
    ),
]
LayerOption = Annotated[
    str | None,
    typer.Option(
        "--layer",
        metavar="LAYER",
        help="Layer to edit, of ROME where editors are compared; auto traces facts to find it, for a few minutes.",
        show_default="that of the statistics, else by model",
    ),
]
CovarianceOption = Annotated[
    str | None,
    typer.Option(
        "--covariance",
        help="Key statistics: file of `tl-rome covariance`, its folder of several layers, or hf://owner/name/file.",
        show_default="shipped, or sampled",
    ),
]
TrainedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--trained",
        help="File of `tl-rome train`, or hf://owner/name/file, for a trained editor; repeatable.",
    ),
]
COMPARED = EditorNames((EditorName.ft, EditorName.ft_l, EditorName.rome, EditorName.r_rome))
"""Editors that a command compares by default."""


def layer_choice(layer: str | None) -> "int | LayerFinder | None":
    """What `--layer` says, as the library takes it.

    Raises:
        BadParameter: If it is neither a number nor auto.
    """
    if layer is None:
        return None
    if layer == "auto":
        from tl_rome.patching import find_layer

        return partial(find_layer, progress=console.shows_progress())
    try:
        return int(layer)
    except ValueError:
        raise typer.BadParameter(f"{layer!r} is neither a layer's number nor auto", param_hint="--layer") from None


@dataclass(frozen=True)
class EditorMaker:
    """Makes the editors that options name for a model, in this process or in one that it was sent to."""

    names: EditorNames
    """In the order of the table."""
    layer: str | None = None
    """As `--layer` has it."""
    covariance: str | None = None
    """File of key statistics; each process reads it."""
    trained: tuple[str, ...] = ()
    """Files of trained editors; each process reads them."""
    max_contexts: int | None = None
    """Bound on ROME's contexts, see `editors_by_name`."""
    seed: int = 0
    """Of contexts and sampled text."""

    def __post_init__(self) -> None:
        layer_choice(self.layer)
        rome, mass = any(name.is_rome for name in self.names), any(name.is_mass for name in self.names)
        if not rome and (self.layer is not None or (self.covariance is not None and not mass)):
            what = f"{' and '.join(self.names)} choose their layers themselves here, without key statistics"
            raise InputError(f"{what}; leave out --layer and --covariance, or name rome too")
        if self.covariance is not None:
            Statistics.read(self.covariance).check(rome=rome, mass=mass)

    def __call__(self, model: "HookedModel") -> "dict[str, Editor]":
        """The editors by name.

        Raises:
            TLRomeError: As `editors_by_name` does.
        """
        from tl_rome.editors import load_trained
        from tl_rome.editors.by_name import editors_by_name

        layer, found = layer_choice(self.layer), Statistics.read(self.covariance)
        return editors_by_name(
            model,
            [name.value for name in self.names],
            layer=layer,
            covariance=found.of_one(model, layer) if any(name.is_rome for name in self.names) else None,
            covariances=found.of_several,
            max_contexts=self.max_contexts,
            trained=[load_trained(file, model) for file in self.trained],
            seed=self.seed,
            progress=console.shows_progress(),
        )

    def with_layer_found(self, load: "Callable[[], HookedModel]") -> "EditorMaker":
        """The same with a layer's number in place of auto, which is found here, once for all processes.

        Args:
            load: Loads the model that is looked at.
        """
        if self.layer != "auto":
            return self
        find = layer_choice(self.layer)
        assert callable(find)
        found = find(load())
        console.say(f"to edit: {found}")
        return replace(self, layer=str(found.layer))
