"""What the command line prints, as rich tables; everything that came from a user or a model is plain text in them."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from tl_rome.cli.console import visible
from tl_rome.cli.demo_run import FACT, GROUPS, NEW, Answer, DemoResult
from tl_rome.editors import BatchReceipt, Convergence, Receipt, TrainingLog
from tl_rome.editors.covariance.convergence import CONVERGENCE_COLUMNS
from tl_rome.grid import Grid
from tl_rome.patching import TraceResult

if TYPE_CHECKING:
    import pandas


def trace_table(traces: Mapping[str, TraceResult], prompt: str, cells: int) -> Group:
    """The strongest cells of each trace of one prompt, subject tokens starred."""
    some = next(iter(traces.values()))
    answer = f"P({some.answer.strip()})"
    table = _table("restored", "layer", "token", answer)
    for name, result in traces.items():
        for index in result.scores.flatten().argsort(descending=True)[:cells].tolist():
            layer, position = divmod(index, result.scores.shape[1])
            star = "*" if result.subject.start <= position < result.subject.end else ""
            score = f"{result.scores[layer, position]:.3f}"
            _add(table, name, str(layer), f"{position}: {result.labels[position]!r}{star}", score)
        table.add_section()
    effect = f"{answer} is {some.clean_score:.3f}, and {some.corrupted_score:.3f} with the subject corrupted"
    return Group(visible(f"Trace of {prompt!r}: {effect}"), table)


def frame_grid(frame: "pandas.DataFrame", caption: str) -> Grid:
    """A data frame without its index, in three decimals; its first column names the rows."""
    shown = tuple(str(name).replace("_", " ") for name in frame.columns)
    rows = (tuple(f"{x:.3f}" if isinstance(x, float) else str(x) for x in row) for row in frame.itertuples(index=False))
    return Grid(caption, shown, tuple(rows))


def receipt_table(receipt: Receipt | BatchReceipt) -> Group:
    """An edit's receipt."""
    table = _table("", "")
    table.show_header = False
    for name, figures in receipt.rows():
        shown = visible(name)
        shown.stylize("bold red" if name == "WARNING" else "")
        table.add_row(shown, visible(figures))
    return Group(visible(receipt.title), table)


def convergence_table(report: Convergence, layer: int) -> Group:
    """How the directions of some keys turn as the statistics grow, and from how many tokens on they stay."""
    table = _table(*CONVERGENCE_COLUMNS)
    for row in report.rows():
        _add(table, *row)
    enough = report.enough()
    verdict = f"stays within a cosine of 0.99 from {enough} tokens on" if enough else "still turns; give more text"
    return Group(Text(f"C^-1 k* of {report.cosine.shape[1]} subjects at layer {layer} {verdict}"), table)


def training_table(log: TrainingLog) -> Group:
    """The validations of a training; the network of the starred one was kept."""
    table = _table("step", "l_edit", "l_loc", "success", "loss")
    for point in log.curve:
        figures = (f"{figure:.3f}" for figure in (point.edit_loss, point.locality_loss))
        star = "*" if point.step == log.best_step else ""
        _add(table, f"{point.step}{star}", *figures, f"{point.success:.0%}", f"{point.loss:.4f}")
    skipped = f", {log.skipped} edits left out" if log.skipped else ""
    return Group(Text(f"{log.steps} steps, then {log.ended}{skipped}"), table)


def answer_table(targets: Iterable[str], rows: Iterable[tuple[str, Answer, Answer]]) -> Table:
    """Prompts with the first answer and each target's probability, before and after."""
    table = _table("prompt", "before", "after", *(f"P({target})" for target in targets))
    for prompt, before, after in rows:
        _add(table, prompt, before.text, after.text, *_changes(before, after))
    return table


def demo_table(result: DemoResult) -> Table:
    """All prompts of the demo; the last column says whether each did as it should."""
    table = _table("prompt", "before", "after", f"P({FACT.target})", f"P({NEW})", "ok")
    for group, title in GROUPS.items():
        passed, asked = result.count(group)
        table.add_row(Text(title, style="bold"), "", "", "", "", Text(f"{passed}/{asked}", style="bold"))
        for row in result.rows:
            if row.group == group:
                cells = (row.prompt, row.before.text, row.after.text, *_changes(row.before, row.after))
                verdict = Text("yes", style="green") if row.passed else Text("no", style="red")
                table.add_row(*map(visible, cells), verdict)
        table.add_section()
    return table


def change(before: float, after: float, digits: int = 2) -> str:
    """Two probabilities."""
    return f"{before:.{digits}f} → {after:.{digits}f}"


def _changes(before: Answer, after: Answer) -> list[str]:
    return [change(*pair) for pair in zip(before.probs, after.probs, strict=True)]


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(visible(column), no_wrap=column.startswith("P("))
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(visible, cells))
