"""`tl-rome generate`: the same prompts continued by the unedited model and by each edited one."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tl_rome.cli import console
from tl_rome.cli.editor_options import (
    COMPARED,
    CovarianceOption,
    EditorMaker,
    EditorsOption,
    LayerOption,
    TrainedOption,
)
from tl_rome.cli.model_options import ModelLoader, with_model
from tl_rome.cli.options import RecordsOption, SeedOption
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.facts import EditRequest


@with_model
def generate(
    load: ModelLoader,
    template: Annotated[str | None, typer.Option(help="Prompt with one {} in the subject's place.")] = None,
    subject: Annotated[str | None, typer.Option(help="The entity, as it appears in the prompt.")] = None,
    target_new: Annotated[str | None, typer.Option(help="What the model should say.")] = None,
    target_true: Annotated[str | None, typer.Option(help="What it says now; only reported.")] = None,
    record: Annotated[
        int | None, typer.Option(metavar="CASE_ID", help="Take rewrite and generation prompts of this record.")
    ] = None,
    records: RecordsOption = "sample",
    editors: EditorsOption = COMPARED,
    layer: LayerOption = None,
    covariance: CovarianceOption = None,
    trained: TrainedOption = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="A text to continue; repeatable.", show_default="the record's, or the fact")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of each continuation.")] = 60,
    top_k: Annotated[int, typer.Option(min=1, help="Sample among this many tokens; 1 is greedy.")] = 5,
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option(help="Folder for generate.json and generate.md.")] = Path("tl-rome-generate"),
) -> None:
    """Read what the unedited model and each edited one write after the same prompts."""
    import torch

    from tl_rome.cli.output import check_folder
    from tl_rome.counterfact.experiments.side_by_side import continue_side_by_side
    from tl_rome.grid import in_markdown
    from tl_rome.storage.writing import write_whole

    if record is not None and (template, subject, target_new, target_true) != (None,) * 4:
        raise InputError("a record has its own rewrite; leave out --record, or --template, --subject and targets")
    if record is not None:
        request, prompts = _record(records, record)
    else:
        request, prompts = _request(template, subject, target_new, target_true), []
    prompts = prompt or prompts or [request.fact.prompt]
    check_folder(out)
    maker = EditorMaker(editors, layer, covariance, tuple(trained or ()), seed=seed)
    model = load()
    edits = {name: editor(model, request) for name, editor in maker(model).items()}
    rng = torch.Generator().manual_seed(seed)
    options = {"new_tokens": new_tokens, "top_k": top_k, "progress": console.shows_progress()}
    texts = continue_side_by_side(model, prompts, edits, generator=rng, **options)
    title = f"{request.fact.prompt} {request.target_new}"
    console.say(title)
    console.say_grids([texts.grid], width=sys.maxsize)  # running text is broken within its cells, not cut into parts
    about = {"model": load.model, "prompt": request.fact.prompt, "target_new": request.target_new}
    settings = {"target_true": request.target_true, "seed": seed, "new_tokens": new_tokens, "top_k": top_k}
    page = json.dumps({**about, **settings, **texts.to_dict()}, indent=1, ensure_ascii=False)
    console.say_written(
        [
            write_whole(out / "generate.json", page.encode()),
            write_whole(out / "generate.md", f"# {in_markdown(title, prose=True)}\n\n{texts.grid.markdown}".encode()),
        ]
    )


def _request(
    template: str | None, subject: str | None, target_new: str | None, target_true: str | None
) -> "EditRequest":
    from tl_rome.facts import EditRequest

    if template is None or subject is None or target_new is None:
        raise InputError("say what to rewrite: give --template, --subject and --target-new, or --record")
    return EditRequest(template, subject, target_new, target_true)


def _record(source: str, number: int) -> "tuple[EditRequest, list[str]]":
    """A record's rewrite, and its generation prompts, each once."""
    from tl_rome.counterfact import load_counterfact

    found = {each.case_id: each for each in load_counterfact(source)}
    if number not in found:
        some = ", ".join(map(str, list(found)[:5]))
        raise InputError(f"{source} has no record {number}; it has {len(found)}, such as {some}")
    return found[number].request, list(dict.fromkeys(found[number].generation_prompts))
