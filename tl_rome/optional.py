"""Packages that only a part of this one needs, each in an extra of pyproject.toml."""

import importlib

from tl_rome.errors import MissingPackageError


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
