"""A TransformerLens model, edited or not, as the harness takes it, and the harness's tasks in one call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tl_rome.arguments import Count, Whole
from tl_rome.editors.edits.virtual import AnyEdit
from tl_rome.errors import InputError, require
from tl_rome.sites import HookedModel

if TYPE_CHECKING:
    from tl_rome.harness.language_model import TransformerLensLM


def harness_model(
    model: HookedModel,
    edit: AnyEdit | None = None,
    *,
    batch_size: Count = 16,
    max_length: Count | None = None,
    same_weights: bool = True,
    progress: bool = True,
) -> "TransformerLensLM":
    """A model as lm-evaluation-harness takes it: give it to `lm_eval.simple_evaluate` and all that builds on it.

    Args:
        model: Left as found, its tokenizer too. Edits that are applied to it count.
        edit: Added by hooks while the model runs, with the weights as they are; it must not be applied.
        batch_size: Texts run at once.
        max_length: Tokens that a text and its continuation may have, beyond which the harness cuts it on the left; by
            default the model's context.
        same_weights: False runs the edit on a model with other weights, such as a quantised one, see `edited_rows`.
        progress: Whether the harness shows its progress bars over requests.

    Raises:
        MissingPackageError: If lm-evaluation-harness is not installed.
        InputError: If `max_length` exceeds the model's context, or its BOS policy cannot be had from its tokenizer.
        UnsupportedModelError: If the model has no tokenizer of transformers.
        ModelMismatchError: If the edit is for another model, here or when it is run.
        EditStateError: If the edit is applied to the model, here or when it is run.
    """
    require("lm_eval", extra="harness")
    from tl_rome.harness.language_model import TransformerLensLM

    return TransformerLensLM(model, edit, batch_size, max_length, same_weights, progress)


def evaluate_tasks(
    model: HookedModel,
    tasks: Sequence[str | Mapping[str, Any]],
    *,
    edit: AnyEdit | None = None,
    batch_size: Count = 16,
    max_length: Count | None = None,
    same_weights: bool = True,
    num_fewshot: Whole | None = None,
    limit: Count | None = None,
    include_path: str | Path | None = None,
    task_manager: Any = None,
    progress: bool = True,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a model on tasks of lm-evaluation-harness.

    No seed of Python, numpy or torch is set, as the harness would by itself; examples of few-shot prompts are drawn
    with the harness's own.

    Args:
        model: As in `harness_model`.
        tasks: Names, such as `"hellaswag"`, paths of YAML files, or configurations.
        edit: As in `harness_model`.
        batch_size: As in `harness_model`.
        max_length: As in `harness_model`.
        same_weights: As in `harness_model`.
        num_fewshot: Examples before each question; by default what each task says, else none.
        limit: Questions of each task; by default all.
        include_path: Folder with further tasks, in YAML.
        task_manager: A `lm_eval.tasks.TaskManager` in place of one that knows the harness's tasks and these; making it
            takes seconds, so give one where you evaluate often.
        progress: As in `harness_model`.
        **options: Further arguments of `lm_eval.simple_evaluate`.

    Returns:
        What `lm_eval.simple_evaluate` returns: under "results" by task its metrics, as in `"acc,none"`; under "config"
        the model's name, class, type and fingerprint, and the edit.

    Raises:
        InputError: If the harness does not know a task, a task asks for samples or beams, or as for `harness_model`.
        TLRomeError: As for `harness_model`.
    """
    lm = harness_model(
        model, edit, batch_size=batch_size, max_length=max_length, same_weights=same_weights, progress=progress
    )
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = task_manager or TaskManager(include_path=None if include_path is None else str(include_path))
    known = {*manager.all_tasks}
    if unknown := [task for task in tasks if isinstance(task, str) and task not in known and not _is_file(task)]:
        raise InputError(f"the harness knows no task {unknown[0]!r}; see `lm_eval --tasks list`, or give include_path")
    seeds = {"random_seed": None, "numpy_random_seed": None, "torch_random_seed": None}
    given: Any = {"batch_size": batch_size, "num_fewshot": num_fewshot, "limit": limit, "task_manager": manager}
    evaluate: Any = lm_eval.simple_evaluate
    return evaluate(model=lm, tasks=list(tasks), **seeds | given | options)


def _is_file(task: str) -> bool:
    return Path(task).suffix in (".yaml", ".yml") and Path(task).is_file()
