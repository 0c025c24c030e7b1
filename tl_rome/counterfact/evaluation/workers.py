"""What the evaluation in processes and the one on Ray share: how a worker gets its model and its editors.

Workers measure and the caller's process alone writes the store, so a run begun by one function can be continued by the
other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tl_rome.counterfact.evaluation.evaluate import Evaluator, named_editors
from tl_rome.counterfact.evaluation.measure import EvaluationConfig
from tl_rome.editors.protocol import Editor
from tl_rome.sites import HookedModel

Load = Callable[[], HookedModel]
"""Called once in each worker, where it makes the unedited model, the same in all."""
Editors = Callable[[HookedModel], Mapping[str, Editor]]
"""Called with the model once in each worker, where it makes editors by name, the same in all."""


@dataclass(frozen=True)
class Setup:
    """All that a worker needs to become ready; sent to each."""

    load: Load
    """Makes the model."""
    editors: Editors | None
    """Makes the editors; None measures the unedited model alone."""
    config: EvaluationConfig
    """What is measured."""
    seed: int
    """Of the generated texts."""

    def evaluator(self) -> Evaluator:
        """Load the model and prepare the editors; for the worker to call."""
        model = self.load()
        named = named_editors(None if self.editors is None else self.editors(model))
        return Evaluator(model, named, self.config, self.seed)
