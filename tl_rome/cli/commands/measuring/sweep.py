"""`tl-rome sweep`: editors over one setting (appendix E.1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_rome.cli import console
from tl_rome.cli.editor_options import EditorName, EditorNames, EditorsOption
from tl_rome.cli.model_options import ModelLoader, with_model
from tl_rome.cli.options import (
    BatchSizeOption,
    Floats,
    Integers,
    LimitOption,
    RecordsOption,
    ResultsOption,
    RetryOption,
    SeedOption,
    floats,
    integers,
)
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.counterfact import Editor
    from tl_rome.editors import KeyCovariance
    from tl_rome.sites import HookedModel

_FINE_TUNING = EditorNames((EditorName.ft, EditorName.ft_l))
_EPSILONS = Floats((0.0001, 0.0005, 0.001))
_SWEPT_LAYERS = 8
"""Layers of a sweep for which none are named, spread over the model."""


@with_model
def sweep(
    load: ModelLoader,
    editors: EditorsOption = _FINE_TUNING,
    layers: Annotated[
        Integers | None,
        typer.Option(
            parser=integers,
            metavar="NUMBERS",
            help="Layers as 0,5,10.",
            show_default="8 over the whole model; for ROME, all with statistics",
        ),
    ] = None,
    epsilons: Annotated[
        Floats,
        typer.Option(
            parser=floats,
            metavar="NUMBERS",
            help="Bounds of ft_l: each swept over the layers, or all of them at one layer.",
        ),
    ] = _EPSILONS,
    covariances: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of `tl-rome covariance --layers`, for ROME."),
    ] = None,
    records: RecordsOption = "sample",
    limit: LimitOption = 50,
    batch_size: BatchSizeOption = None,
    seed: SeedOption = 0,
    retry_failed: RetryOption = False,
    out: ResultsOption = Path("tl-rome-sweep"),
) -> None:
    """Sweep fine-tuning over layers and epsilon (figure 17), and ROME over layers."""
    from tl_rome import counterfact
    from tl_rome.cli import output
    from tl_rome.counterfact.experiments.plot import sweep_figure
    from tl_rome.counterfact.experiments.sweep import sweep_editors

    output.check_folder(out)
    chosen = counterfact.load_counterfact(records)[:limit]
    statistics = statistics_by_layer(covariances)
    for name in editors:
        if name.is_rome:
            check_statistics(name, layers, statistics)
        elif name not in _FINE_TUNING:
            raise InputError(f"{name} chooses its layers itself; sweep ft, ft_l or a preset of rome")
    model = load()
    swept = []
    for name, along, variants in _sweeps(model, editors, layers, epsilons, statistics, seed):
        options: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "retry_failed": retry_failed}
        options |= {"store": out / "results", "progress": console.shows_progress()}
        swept.append(sweep_editors(model, chosen, variants, name=name, along=along, **options))
    grids = [curve.grid() for curve in swept]
    console.say_grids(grids)
    files = output.save_experiment(out, "sweep", [curve.to_dict() for curve in swept], grids, sweep_figure(swept))
    console.say_written(files)


def _sweeps(
    model: "HookedModel",
    names: EditorNames,
    layers: Sequence[int] | None,
    epsilons: Sequence[float],
    covariances: "dict[int, KeyCovariance]",
    seed: int,
) -> "list[tuple[str, str, dict[int, Editor] | dict[float, Editor]]]":
    """Name, swept setting and editors of every sweep."""
    from dataclasses import replace

    from tl_rome.counterfact.experiments.sweep import finetune_over_epsilon, finetune_over_layers
    from tl_rome.editors import FT, FT_L

    last = model.cfg.n_layers - 1
    spread = layers or sorted({round(i * last / (_SWEPT_LAYERS - 1)) for i in range(_SWEPT_LAYERS)})
    out_of_range = [layer for layer in spread if not 0 <= layer <= last]
    if out_of_range:
        raise InputError(f"layer {out_of_range[0]} is out of range; the model has layers 0 to {last}")
    found: list[tuple[str, str, Any]] = []
    for name in map(str, names):
        if name == "ft":
            found.append((name, "layer", finetune_over_layers(spread, FT)))
        elif name == "ft_l" and len(spread) == 1:
            found.append((f"ft_l, layer {spread[0]}", "epsilon", finetune_over_epsilon(epsilons, spread[0])))
        elif name == "ft_l":
            configs = {f"ft_l, epsilon {epsilon:g}": replace(FT_L, epsilon=epsilon) for epsilon in epsilons}
            found += [(title, "layer", finetune_over_layers(spread, config)) for title, config in configs.items()]
        else:
            found.append((name, "layer", rome_by_layer(model, name, layers, covariances, seed)))
    return found


def rome_by_layer(
    model: "HookedModel", name: str, layers: Sequence[int] | None, covariances: "dict[int, KeyCovariance]", seed: int
) -> "dict[int, Editor]":
    """A preset of ROME at every layer that there are key statistics of."""
    import torch

    from tl_rome.counterfact.experiments.sweep import rome_over_layers
    from tl_rome.editors.by_name import ROME_CONFIGS
    from tl_rome.editors.rank_one.contexts import choose_contexts
    from tl_rome.editors.rank_one.presets import with_model_defaults

    for layer, each in covariances.items():
        each.check(model, layer)
    config = with_model_defaults(model, ROME_CONFIGS[name])
    contexts, _ = choose_contexts(model, config, generator=torch.Generator().manual_seed(seed))
    return {**rome_over_layers((covariances[layer] for layer in layers or sorted(covariances)), contexts, config)}


def statistics_by_layer(folder: Path | None) -> "dict[int, KeyCovariance]":
    """Key statistics of a folder by layer."""
    from tl_rome.editors import KeyCovariance

    if folder is None:
        return {}
    if not (files := sorted(folder.glob("*.safetensors"))):
        raise InputError(f"no key statistics in {str(folder)!r}; make some with `tl-rome covariance --layers`")
    return {each.layer: each for each in map(KeyCovariance.load, files)}


def check_statistics(name: str, layers: Sequence[int] | None, covariances: "dict[int, KeyCovariance]") -> None:
    """Refuse to edit layers without key statistics.

    Raises:
        InputError: If one has none, or there are none at all.
    """
    missing = [layer for layer in layers or [] if layer not in covariances]
    if missing or not covariances:
        what = f"layers {', '.join(map(str, missing))}" if missing else "any layer"
        raise InputError(
            f"{name} needs key statistics, and there are none of {what}; make them with `tl-rome covariance --layers` "
            "and name their folder with --covariances"
        )
