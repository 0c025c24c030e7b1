"""`tl-rome compare`: editors side by side on COUNTERFACT records, all columns with intervals."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from tl_rome.cli.options import BatchSizeOption, LimitOption, RecordsOption, ResultsOption, RetryOption, SeedOption
from tl_rome.errors import InputError

if TYPE_CHECKING:
    from tl_rome.zsre import ZsreRecord


@with_model
def compare(
    load: ModelLoader,
    editors: EditorsOption = COMPARED,
    layer: LayerOption = None,
    covariance: CovarianceOption = None,
    trained: TrainedOption = None,
    records: RecordsOption = "sample",
    limit: LimitOption = None,
    references: Annotated[
        str, typer.Option(help="Texts for RS: sample, a folder, a JSON file or a `datasets` data set.")
    ] = "sample",
    generation_length: Annotated[
        int, typer.Option(min=0, help="Tokens of each generated text with its prompt; 0 generates none.")
    ] = 100,
    contexts: Annotated[
        int,
        typer.Option(
            min=1,
            help="At most this many texts before the prompt while ROME seeks v*; the released code has 21, which takes "
            "twice as long.",
        ),
    ] = 7,
    texts: Annotated[int, typer.Option(min=1, help="Generated texts per record; 10 in the released code.")] = 1,
    plus: Annotated[bool, typer.Option("--plus", help="Measure CounterFact+ prompts too.")] = False,
    free: Annotated[
        bool, typer.Option("--free", help="Let the model answer rewrite and paraphrase prompts by itself too.")
    ] = False,
    batch_size: BatchSizeOption = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes with a model each.", show_default="2 on a CPU with two threads, else 1"),
    ] = None,
    seed: SeedOption = 0,
    retry_failed: RetryOption = False,
    out: ResultsOption = Path("tl-rome-compare"),
) -> None:
    """Compare editors on COUNTERFACT: efficacy, paraphrases, neighbours, fluency, consistency.

    A file in zsRE's layout (zsre_mend_eval) gets zsRE's figures instead, in one process.
    """
    from tl_rome import counterfact, zsre
    from tl_rome.cli.output import check_folder

    check_folder(out)
    maker = EditorMaker(editors, layer, covariance, tuple(trained or ()), contexts, seed)
    if zsre.is_zsre(records):
        asked = {"--plus": plus, "--free": free, "--texts": texts > 1, "--workers": (workers or 1) > 1}
        if unknown := [option for option, given in asked.items() if given]:
            raise InputError(f"{', '.join(unknown)} cannot be had with a file in zsRE's layout; leave it out")
        _compare_zsre(
            zsre.load_zsre(records)[:limit], load, maker, out, batch_size=batch_size, retry_failed=retry_failed
        )
        return
    chosen = counterfact.load_counterfact(records)[:limit]
    about = counterfact.load_references(references) if generation_length else None
    workers = workers or _default_workers(load.device)
    if workers > 1:
        maker = maker.with_layer_found(load)
    results = counterfact.evaluate_in_processes(
        load,
        chosen,
        maker,
        store=out / "results",
        workers=workers,
        config=counterfact.EvaluationConfig(
            generation_length=generation_length, texts=texts, counterfact_plus=plus, free=free
        ),
        batch_size=batch_size,
        seed=seed,
        retry_failed=retry_failed,
        progress=console.shows_progress(),
    )
    summary = counterfact.summarize(results, references=about, seed=seed)
    said = (summary.grid(counterfact.FREE_COLUMNS),) if free else ()
    console.say_grids((summary.grid(), *said, summary.differences()))  # the files have all columns
    console.say_written(summary.save(out, results, chosen))


def _compare_zsre(chosen: "list[ZsreRecord]", load: ModelLoader, maker: EditorMaker, out: Path, **options: Any) -> None:
    from tl_rome.counterfact.results import UNEDITED
    from tl_rome.zsre import evaluate_zsre

    model, progress = load(), console.shows_progress()
    found = evaluate_zsre(model, chosen, maker(model), store=out / "results", progress=progress, **options)
    console.say_grids((found.grid(), found.grid(UNEDITED)))
    console.say_written(found.save(out))


def _default_workers(device: str | None) -> int:
    import torch

    on_cpu = device.startswith("cpu") if device else not torch.cuda.is_available()
    return min(2, torch.get_num_threads()) if on_cpu else 1
