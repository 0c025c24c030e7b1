"""`tl-rome sweep` and `tl-rome multi`: editors over one setting, and many facts in one model (appendix C)."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tl_rome.cli import console
from tl_rome.cli.options import (
    DEFAULT_MODEL,
    BosOption,
    DeviceOption,
    Dtype,
    DtypeOption,
    KindOption,
    ModelOption,
    SeedOption,
    load,
)
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tl_rome.counterfact import Editor
    from tl_rome.editors import KeyCovariance
    from tl_rome.grid import Grid
    from tl_rome.sites import HookedModel

T = TypeVar("T", int, float)
_SWEPT_LAYERS = 8
"""Layers of a sweep for which none are named, spread over the model."""

RecordsOption = Annotated[
    str, typer.Option("--records", help="sample, a JSON or JSONL file, or the name of a `datasets` data set.")
]


def sweep(
    editors: Annotated[
        str, typer.Option(help="Names, with commas between: ft, ft_l, or a preset of ROME with --covariances.")
    ] = "ft,ft_l",
    layers: Annotated[
        str | None, typer.Option(help="Layers as 0,5,10.", show_default="8 layers over the whole model")
    ] = None,
    epsilons: Annotated[
        str, typer.Option(help="Bounds of ft_l: each swept over the layers, or all of them at one layer.")
    ] = "0.0001,0.0005,0.001",
    covariances: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder of `tl-rome covariance --layers`, for ROME."),
    ] = None,
    records: RecordsOption = "sample",
    limit: Annotated[int | None, typer.Option(min=1, help="Take this many records from the start.")] = 50,
    together: Annotated[int, typer.Option(min=1, help="Records at once; bounds memory.")] = 8,
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option(help="Folder of results; run again with it to go on.")] = Path("tl-rome-sweep"),
    model: ModelOption = DEFAULT_MODEL,
    kind: KindOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = None,
    prepend_bos: BosOption = None,
) -> None:
    """Sweep fine-tuning over layers and epsilon, and ROME over layers (figures 8 and 9)."""
    from tl_rome import counterfact
    from tl_rome.cli import output
    from tl_rome.counterfact.experiments.plot import sweep_figure
    from tl_rome.counterfact.experiments.sweep import sweep_editors

    output.check_folder(out)
    names = _names(editors)
    chosen_layers = None if layers is None else _numbers(layers, int, "--layers")
    bounds = _numbers(epsilons, float, "--epsilons")
    chosen = counterfact.load_counterfact(records)[:limit]
    statistics = _statistics(covariances)
    loaded = load(model, kind, dtype, device, prepend_bos)
    swept = []
    for name, along, variants in _sweeps(loaded, names, chosen_layers, bounds, statistics, seed):
        options: dict[str, Any] = {"store": out / "results", "batch_size": together, "seed": seed}
        swept.append(sweep_editors(loaded, chosen, variants, name=name, along=along, **options))
    files = _write(out, "sweep", [curve.to_dict() for curve in swept], [c.grid() for c in swept], sweep_figure(swept))
    console.say_written(files)


def multi(
    editors: Annotated[
        str, typer.Option(help="Names, with commas between: ft, ft_l, rome, r_rome, p_rome, draft, neurips.")
    ] = "ft,ft_l,rome,r_rome",
    counts: Annotated[
        str | None,
        typer.Option(help="Numbers of facts as 1,10,20.", show_default="1, 10, 20 ... 100, as far as records go"),
    ] = None,
    records: RecordsOption = "sample",
    limit: Annotated[int | None, typer.Option(min=1, help="Take this many records from the start.")] = None,
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option(help="Folder of results; run again with it to go on.")] = Path("tl-rome-multi"),
    model: ModelOption = DEFAULT_MODEL,
    kind: KindOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = None,
    prepend_bos: BosOption = None,
) -> None:
    """Write more and more facts into one model, and score all of them each time (figure 10)."""
    from tl_rome import counterfact
    from tl_rome.cli import output
    from tl_rome.counterfact.experiments.plot import sequential_figure
    from tl_rome.counterfact.experiments.sequential import COUNTS, sequential_edits
    from tl_rome.editors.by_name import editors_by_name

    output.check_folder(out)
    names, wanted = _names(editors), None if counts is None else _numbers(counts, int, "--counts")
    chosen = counterfact.load_counterfact(records)[:limit]
    wanted = wanted or [count for count in COUNTS if count <= len(chosen)]
    if max(wanted) > len(chosen) or min(wanted) < 1:
        raise InputError(f"--counts {counts} with {len(chosen)} records; give numbers from 1 to {len(chosen)}")
    loaded = load(model, kind, dtype, device, prepend_bos)
    found = {}
    for name, editor in editors_by_name(loaded, names, seed=seed).items():
        store = out / "results" / name
        found[name] = sequential_edits(loaded, chosen, editor, wanted, name=name, store=store, seed=seed)
    plain = {name: result.to_dict() for name, result in found.items()}
    files = _write(out, "multi", plain, [result.grid() for result in found.values()], sequential_figure(found))
    console.say_written(files)


def _sweeps(
    model: "HookedModel",
    names: Sequence[str],
    layers: list[int] | None,
    epsilons: list[float],
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
    for name in names:
        if name == "ft":
            found.append((name, "layer", finetune_over_layers(spread, FT)))
        elif name == "ft_l" and len(spread) == 1:
            found.append((f"ft_l, layer {spread[0]}", "epsilon", finetune_over_epsilon(epsilons, spread[0])))
        elif name == "ft_l":
            configs = {f"ft_l, epsilon {epsilon:g}": replace(FT_L, epsilon=epsilon) for epsilon in epsilons}
            found += [(title, "layer", finetune_over_layers(spread, config)) for title, config in configs.items()]
        else:
            found.append((name, "layer", _rome(model, name, layers, covariances, seed)))
    return found


def _rome(
    model: "HookedModel", name: str, layers: list[int] | None, covariances: "dict[int, KeyCovariance]", seed: int
) -> "dict[int, Editor]":
    """A preset of ROME at every layer that there are key statistics of."""
    import torch

    from tl_rome.counterfact.experiments.sweep import rome_over_layers
    from tl_rome.editors.by_name import EDITOR_NAMES, ROME_CONFIGS
    from tl_rome.editors.model_defaults import suited
    from tl_rome.editors.rank_one.contexts import choose_contexts

    if name not in ROME_CONFIGS:
        raise InputError(f"there is no editor {name!r}; choose from {', '.join(EDITOR_NAMES)}")
    missing = [layer for layer in layers or [] if layer not in covariances]
    if missing or not covariances:
        what = f"layers {', '.join(map(str, missing))}" if missing else "any layer"
        raise InputError(
            f"{name} needs key statistics, and there are none of {what}; make them with `tl-rome covariance --layers` "
            "and name their folder with --covariances"
        )
    for layer, each in covariances.items():
        each.check(model, layer)
    config = suited(model, ROME_CONFIGS[name])
    contexts, _ = choose_contexts(model, config, generator=torch.Generator().manual_seed(seed))
    return {**rome_over_layers((covariances[layer] for layer in layers or sorted(covariances)), contexts, config)}


def _statistics(folder: Path | None) -> "dict[int, KeyCovariance]":
    """Key statistics of a folder by layer."""
    from tl_rome.editors import KeyCovariance

    files = [] if folder is None else sorted(folder.glob("*.safetensors"))
    return {each.layer: each for each in map(KeyCovariance.load, files)}


def _names(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise InputError(f"--editors {text!r} names no editor; give names such as ft,rome")
    return names


def _numbers(text: str, kind: Callable[[str], T], option: str) -> list[T]:
    try:
        return sorted({kind(number) for number in text.split(",")})
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 1,2,3", param_hint=option) from None


def _write(folder: Path, name: str, data: Any, grids: "Sequence[Grid]", figure: "Figure") -> list[Path]:
    """Print tables, and write them as JSON, Markdown and PNG."""
    from tl_rome.figures import png
    from tl_rome.storage.files import write_whole

    for grid in grids:
        console.out.print(*grid.tables(console.out.width), sep="\n")
    texts = {"json": json.dumps(data, indent=1, allow_nan=False), "md": "\n".join(grid.markdown for grid in grids)}
    files = {**{kind: text.encode() for kind, text in texts.items()}, "png": png(figure)}
    return [write_whole(folder / f"{name}.{kind}", content) for kind, content in files.items()]
