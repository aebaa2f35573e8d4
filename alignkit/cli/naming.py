"""Arguments that name a thing of the service: an id, or a model's name."""

from typing import TypeVar

import typer

from alignkit.errors import AlignkitError

Names = TypeVar("Names", str, list[str])


def named(parameter: typer.CallbackParam, given: Names) -> Names:
    """Pass an argument on. Raises AlignkitError for what names nothing, such as an empty variable of a script."""
    for name in [given] if isinstance(given, str) else given:
        if name.strip(". ") == "" or "/" in name:
            raise AlignkitError(f"{str(parameter.name).upper()}: expected an id or a name, found {name!r}")
    return given
