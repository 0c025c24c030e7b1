"""`tl-rome covariance`: the key statistics that edits need, of one layer or several."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl_rome.cli import console
from tl_rome.cli.inputs.texts import Dataset, TextFiles, Texts
from tl_rome.cli.model_options import ModelLoader, with_model
from tl_rome.cli.options import Integers, SeedOption, integers
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.editors import Convergence, KeyCovariance
    from tl_rome.sites import HookedModel

_SAMPLED_TOKENS = 32_768
_SUBJECTS = 8
"""Subjects whose keys the convergence report follows."""


@with_model
def covariance(
    load: ModelLoader,
    out: Annotated[Path, typer.Option(help="File to write; for several layers a folder, with a file for each.")],
    layers: Annotated[
        Integers | None,
        typer.Option(
            "--layers",
            "--layer",
            parser=integers,
            metavar="NUMBERS",
            help="One, or several as 3,5,7 or 3-7.",
            show_default="by model size",
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="UTF-8 text file, one text a line; repeatable.",
            show_default="own samples",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data set of the hub, such as wikimedia/wikipedia, or a folder; streamed.")
    ] = None,
    subset: Annotated[str | None, typer.Option(help="Configuration of the data set, such as 20231101.en.")] = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    column: Annotated[str, typer.Option(help="Column of the data set that has the text.")] = "text",
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop after about this many.", show_default="all text, or 32768 sampled")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File for unfinished work; the same call goes on from there.")
    ] = None,
    convergence: Annotated[
        bool, typer.Option("--convergence", help="Read again, and report how C^-1 k* turns as the text grows.")
    ] = False,
    seed: SeedOption = 0,
) -> None:
    """Estimate the key statistics that an edit needs, once, from text or from samples of the model itself."""
    from tl_rome.cli import output, tables
    from tl_rome.editors import default_layer

    texts = _texts(text, dataset, subset, split)
    if texts is None and (checkpoint is not None or convergence):
        raise InputError("--checkpoint and --convergence are for text that can be read again; give --text or --dataset")
    several = layers is not None and len(layers) > 1
    (output.check_folder if several else output.check_file)(out)
    if checkpoint is not None:
        output.check_file(checkpoint)
    model = load()
    wanted = layers or (default_layer(model),)
    if texts is None:
        found = _from_own_samples(model, wanted, tokens or _SAMPLED_TOKENS, seed)
    else:
        found = _from_texts(model, wanted, texts, column, tokens, checkpoint)
    if several:
        out.mkdir(parents=True, exist_ok=True)
    for layer, each in found.items():
        console.say(f"layer {layer}: {each.count} tokens from {each.source}, digest {each.digest}")
        console.say_written([each.save(out)])
    if convergence and texts is not None:
        for layer, each in found.items():
            report = _convergence(model, layer, texts, column, each.count, seed)
            console.out.print(tables.convergence_table(report, layer))


def _texts(files: list[Path] | None, dataset: str | None, subset: str | None, split: str) -> Texts | None:
    """What to read, None for the model's own samples."""
    if files and dataset is not None:
        raise InputError("--text and --dataset are both given; statistics come from one of them")
    if dataset is not None:
        return Dataset(dataset, subset, split)
    return TextFiles(tuple(files)) if files else None


def _from_texts(
    model: "HookedModel",
    layers: Sequence[int],
    texts: Texts,
    column: str,
    tokens: int | None,
    checkpoint: Path | None,
) -> "dict[int, KeyCovariance]":
    from tl_rome.editors import estimate_covariances

    try:
        return estimate_covariances(
            model,
            layers,
            texts,
            source=texts.source,
            max_tokens=tokens,
            text_column=column,
            checkpoint=checkpoint,
            progress=console.shows_progress(),
        )
    except KeyboardInterrupt:
        if checkpoint is None or not checkpoint.exists():
            raise
        raise KeyboardInterrupt(f"run the same command again to go on from {checkpoint}") from None


def _from_own_samples(
    model: "HookedModel", layers: Sequence[int], tokens: int, seed: int
) -> "dict[int, KeyCovariance]":
    import torch

    from tl_rome.editors import covariances_from_samples

    rng = torch.Generator().manual_seed(seed)
    return covariances_from_samples(model, layers, generator=rng, tokens=tokens, progress=console.shows_progress())


def _convergence(model: "HookedModel", layer: int, texts: Texts, column: str, tokens: int, seed: int) -> "Convergence":
    """The report for keys of subjects drawn from the package's own facts."""
    import torch

    from tl_rome.editors import measure_convergence
    from tl_rome.editors.rank_one.key import subject_keys
    from tl_rome.facts import Fact
    from tl_rome.patching import load_sample_facts

    subjects = sorted({fact.subject for fact in load_sample_facts()})
    drawn = torch.randperm(len(subjects), generator=torch.Generator().manual_seed(seed))[:_SUBJECTS].tolist()
    keys = torch.cat([subject_keys(model, layer, Fact("{}", subjects[index]), ("",)) for index in drawn])
    options = {"max_tokens": tokens, "text_column": column, "progress": console.shows_progress()}
    return measure_convergence(model, layer, texts, keys, **options)
