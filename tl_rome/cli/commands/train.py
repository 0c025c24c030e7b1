"""`tl-rome train`: an editor that is trained, MEND or KE, on facts or on passages of text."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_rome.cli import console
from tl_rome.cli.inputs.texts import TextFiles
from tl_rome.cli.inputs.training_data import Method, TrainingSet, TrainingSource
from tl_rome.cli.model_options import ModelLoader, with_model
from tl_rome.cli.options import SeedOption
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.editors import Ke, Mend
    from tl_rome.sites import HookedModel

NOT_CONVERGED_CODE = 3
"""The exit code of a training that wrote its file but did not come to an end of learning."""


@with_model
def train(
    load: ModelLoader,
    method: Annotated[Method, typer.Argument(help="MEND or KE; with -cf on facts, else on passages of text.")],
    out: Annotated[Path, typer.Option(help="File for the trained editor; replaced if it exists.")],
    relations: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="ParaRel's folder, to compile training records from.",
            show_default="the package's own facts",
        ),
    ] = None,
    records: Annotated[
        str | None, typer.Option(help="Records to train on instead: a JSON or JSONL file, or a `datasets` data set.")
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="UTF-8 text file, one text a line, for passages and for what edits should leave alone; repeatable.",
            show_default="own samples",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            help="Records kept for testing, as for --records; their subjects are not trained on; repeatable.",
            show_default="sample",
        ),
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Examples to learn from, or as many as there are.")] = 2000,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps at most; training ends when it no longer helps.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=1, help="Rank of MEND's layers.", show_default="256")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="File for unfinished work; the same call goes on from there.")
    ] = None,
    seed: SeedOption = 0,
) -> None:
    """Train MEND or KE to edit the last three blocks of a model.

    An editor that did not converge is saved too, and the exit code is 3.
    """
    import torch

    from tl_rome.cli import output, tables
    from tl_rome.editors.trained.convergence import training_doubt

    if rank is not None and method in (Method.ke, Method.ke_cf):
        raise InputError(f"{method} has no layers of low rank; leave out --rank")
    texts = TextFiles(tuple(text)) if text else None
    source = TrainingSource(method, relations, records, texts, tuple(exclude or ()), examples)
    output.check_file(out)
    if checkpoint is not None:
        output.check_file(checkpoint)
    model, generator = load(), torch.Generator().manual_seed(seed)
    data = source.load(model, generator)
    console.say(
        f"{len(data.examples)} examples, {len(data.validation)} for validation, {len(data.locality)} other texts"
    )
    options = {"validation": data.validation, "generator": generator, "checkpoint": checkpoint}
    settings = {name: value for name, value in (("max_steps", steps), ("rank", rank)) if value is not None}
    try:
        editor = _train(method, model, data, settings, options)
    except KeyboardInterrupt:
        if checkpoint is None or not checkpoint.exists():
            raise
        raise KeyboardInterrupt(f"run the same command again to go on from {checkpoint}") from None
    console.out.print(tables.training_table(editor.log))
    console.say_written([editor.save(out)])
    if doubt := training_doubt(editor.log, editor.config):
        console.complain(f"the training did not converge: {doubt}")
        raise typer.Exit(NOT_CONVERGED_CODE)


def _train(
    method: Method, model: "HookedModel", data: TrainingSet, settings: dict[str, Any], options: dict[str, Any]
) -> "Mend | Ke":
    """The trained editor, with some settings that are not the method's own."""
    from tl_rome import editors

    options |= {"progress": console.shows_progress()}
    if method in (Method.mend, Method.mend_cf):
        config = replace(editors.MEND_CF if method.learns_facts else editors.MEND, **settings)
        return editors.train_mend(model, data.examples, data.locality, config=config, **options)
    config = replace(editors.KE_CF if method.learns_facts else editors.KE, **settings)
    return editors.train_ke(model, data.examples, data.locality, config=config, **options)
