"""Errors that a user can act on: what happened, with the values, then the remedy.

Every error this package raises on purpose is a `TLRomeError`. Those caused by an argument are also `ValueError`,
so that code written against the standard library keeps working.
"""

import importlib


class TLRomeError(Exception):
    """Base of every error raised on purpose by tl_rome."""


class InputError(TLRomeError, ValueError):
    """An argument, template, target, prompt or setting that cannot be used as given."""


class ArgumentTypeError(InputError, TypeError):
    """An argument of another type than the function or class takes; names the argument and what it should be."""


class SubjectError(InputError):
    """The subject cannot be placed on whole tokens of the prompt: absent, empty, or ending inside a token."""


class RecordError(InputError):
    """A COUNTERFACT record, or a file of them, that breaks the data set's own rules; names the record and the field."""


class UnsupportedModelError(TLRomeError):
    """A model whose layout, tokenizer or class this package does not know how to handle."""


class ModelUnavailableError(TLRomeError):
    """A model that could not be obtained: unknown name, no network, or a damaged cache."""


class NetworkError(TLRomeError):
    """A service on the network that could not be reached, refused, or answered with something else than expected."""


class NumericsError(TLRomeError):
    """Weights, activations or statistics that are not finite, or a matrix that cannot be factored."""


class StorageError(TLRomeError):
    """A file that is damaged, of another schema version, or cannot be written."""


class ModelMismatchError(StorageError):
    """A stored result that does not belong to the model that it is used with."""


class EditStateError(TLRomeError):
    """An edit applied or undone when the weights are not in the state that this needs."""


class WorkerError(TLRomeError):
    """Work that was given up because the processes that it was given to died."""


class MissingPackageError(TLRomeError, ImportError):
    """An optional package that a function needs and that is not installed."""


def require(*packages: str, extra: str) -> None:
    """Check that packages can be imported, before an `import` that could not say what to install.

    Args:
        packages: Names of top-level packages, as an `import` has them.
        extra: The extra of tl-rome that installs them.

    Raises:
        MissingPackageError: If one cannot be imported.
    """
    for name in packages:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise MissingPackageError(f'{name} cannot be imported ({error}); pip install "tl-rome[{extra}]"') from error
