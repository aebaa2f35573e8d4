"""Keeps a model and a tokenizer that were loaded ahead of the run that needs them; see `alignkit.standby`."""

from pathlib import Path
from typing import Any

from alignkit.models.stored_weights import changed

_held: dict[str, tuple[tuple[object, ...], Any]] = {}
"""What is held: "model" or "tokenizer" -> (what it was loaded from, the object)."""


def hold(kind: str, folder: str | Path, options: tuple[object, ...], loaded: Any) -> None:
    """Keep `loaded`, a "model" or a "tokenizer" of `folder`, for the first `take` with the same options."""
    _held[kind] = (_origin(folder, options), loaded)


def take(kind: str, folder: str | Path, options: tuple[object, ...]) -> Any | None:
    """The object that is held, once; None unless it came from the same, unchanged files with the same options."""
    origin, loaded = _held.get(kind, (None, None))
    if origin is None or origin != _origin(folder, options):
        return None
    del _held[kind]
    return loaded


def _origin(folder: str | Path, options: tuple[object, ...]) -> tuple[object, ...]:
    """What changes where the folder's files or the options do."""
    return (str(folder), options, *map(changed, sorted(Path(folder).glob("*"))))
