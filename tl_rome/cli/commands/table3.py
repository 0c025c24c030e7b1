"""`tl-rome table3`: editors side by side on COUNTERFACT records, all columns with intervals."""

from functools import partial
from pathlib import Path
from typing import Annotated

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


def table3(
    editors: Annotated[
        str, typer.Option(help="Names, with commas between: ft, ft_l, rome, r_rome, p_rome, draft, neurips.")
    ] = "ft,ft_l,rome,r_rome",
    records: Annotated[
        str, typer.Option(help="sample, a JSON or JSONL file, or the name of a `datasets` data set.")
    ] = "sample",
    limit: Annotated[int | None, typer.Option(min=1, help="Take this many records from the start.")] = None,
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
            help="At most so many texts before the prompt while ROME seeks v*; 21 in the released code, twice as slow.",
        ),
    ] = 7,
    texts: Annotated[int, typer.Option(min=1, help="Generated texts per record; 10 in the released code.")] = 1,
    plus: Annotated[bool, typer.Option("--plus", help="Measure CounterFact+ prompts too.")] = False,
    together: Annotated[int, typer.Option(min=1, help="Records at once; bounds memory.")] = 16,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes with a model each.", show_default="2 on a CPU with two threads, else 1"),
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option(help="Folder of results; run again with it to go on.")] = Path("tl-rome-table3"),
    model: ModelOption = DEFAULT_MODEL,
    kind: KindOption = None,
    dtype: DtypeOption = Dtype.float32,
    device: DeviceOption = None,
    prepend_bos: BosOption = None,
) -> None:
    """Compare editors on COUNTERFACT: efficacy, paraphrases, neighbours, fluency, consistency."""
    from tl_rome import counterfact
    from tl_rome.cli.output import check_folder
    from tl_rome.editors.by_name import check_names

    check_folder(out)
    names = check_names(name.strip() for name in editors.split(",") if name.strip())
    chosen = counterfact.load_counterfact(records)[:limit]
    about = counterfact.load_references(references) if generation_length else None
    results = counterfact.evaluate_in_processes(
        partial(load, model, kind, dtype, device, prepend_bos),
        chosen,
        partial(counterfact.editors_by_name, names=names, max_contexts=contexts, seed=seed),
        store=out / "results",
        workers=workers or _default_workers(device),
        config=counterfact.EvaluationConfig(generation_length=generation_length, texts=texts, counterfact_plus=plus),
        batch_size=together,
        seed=seed,
    )
    summary = counterfact.summarize(results, references=about, seed=seed)
    for grid in (summary.grid(), summary.differences()):  # the files have all columns
        console.out.print(*grid.tables(console.out.width), sep="\n")
    console.say_written(summary.save(out, results, chosen))


def _default_workers(device: str | None) -> int:
    import torch

    on_cpu = torch.device(device).type == "cpu" if device else not torch.cuda.is_available()
    return min(2, torch.get_num_threads()) if on_cpu else 1
