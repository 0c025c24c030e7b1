"""What the evaluation in processes and the one on Ray share: how a worker gets its model and its editors.

Workers measure and the caller's process alone writes the store, so a run begun by one function can be continued by the
other.
"""

import pickle  # noqa: TID251 - for pipes between processes, never for files
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from tl_rome.annotations import conform
from tl_rome.counterfact.evaluation.evaluate import Evaluator, named_editors
from tl_rome.counterfact.evaluation.measure import EvaluationConfig
from tl_rome.editors.protocol import Editor
from tl_rome.errors import InputError, WorkerError
from tl_rome.sites import HookedModel

Load = Callable[[], HookedModel]
"""Called once in each worker, where it makes the unedited model, the same in all."""
Editors = Callable[[HookedModel], Mapping[str, Editor]]
"""Called with the model once in each worker, where it makes editors by name, the same in all."""
_SENDABLE = (
    "define both in a module that workers can import, or as functools.partial of such functions, not in a notebook or "
    "inside another function; with workers=1 nothing is sent"
)


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
        """Load the model and prepare the editors; for the worker to call.

        Raises:
            ArgumentTypeError: If what they return is no model, or not editors by name.
        """
        model = conform("what load returned", self.load(), HookedModel)
        named: Mapping[str, Editor] = {}
        if self.editors is not None:
            named = conform("what editors returned", self.editors(model), Mapping[str, Editor])
        return Evaluator(model, named_editors(named), self.config, self.seed)

    def packed(self) -> bytes:
        """What `unpacked` takes; a worker unpacks it itself, so that it can say why it cannot.

        Raises:
            InputError: If it cannot be pickled.
        """
        try:
            return pickle.dumps(self)
        except Exception as error:  # objects raise what they like
            what = f"load or editors cannot be sent to a worker ({type(error).__name__}: {error}); {_SENDABLE}"
            raise InputError(what) from error

    @classmethod
    def unpacked(cls, packed: bytes) -> "Setup":
        """In a worker: what `packed` gave.

        Raises:
            InputError: If what it refers to cannot be found here.
        """
        try:
            return pickle.loads(packed)
        except Exception as error:  # modules raise what they like
            what = f"load or editors cannot be found in a worker ({type(error).__name__}: {error}); {_SENDABLE}"
            raise InputError(what) from error


@contextmanager
def portable_errors() -> Iterator[None]:
    """In a worker: raise what the caller's process can receive.

    Raises:
        WorkerError: In place of an error that does not survive pickling, with its text.
    """
    try:
        yield
    except Exception as error:
        try:
            same = str(pickle.loads(pickle.dumps(error))) == str(error)
        except Exception:  # an error's own methods raise what they like
            same = False
        if not same:
            raise WorkerError(f"{type(error).__name__} in a worker: {error}") from error
        raise
