"""Messages about packages that an optional part of alignkit needs but that are not installed."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

from alignkit.errors import AlignkitError


def how_to_install(extra: str) -> str:
    """The command that installs an extra of alignkit."""
    return f"pip install 'alignkit[{extra}]'"


def require(module: str, *, extra: str, purpose: str) -> None:
    """Raise AlignkitError unless `module` can be imported. Does not import it."""
    if importlib.util.find_spec(module) is None:
        raise AlignkitError(missing(module, extra=extra, purpose=purpose))


@contextmanager
def needed(extra: str, *, purpose: str) -> Iterator[None]:
    """Turn a failed import of another project's module in this block into an AlignkitError."""
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module.startswith("alignkit"):
            raise
        raise AlignkitError(missing(module, extra=extra, purpose=purpose)) from error


def missing(module: str, *, extra: str, purpose: str) -> str:
    """The sentence about a package that is not installed."""
    return f"{purpose} needs the package {module}, which is not installed: {how_to_install(extra)}"
