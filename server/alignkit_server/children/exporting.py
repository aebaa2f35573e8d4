"""Writes a model in another form, in a child."""

from pathlib import Path
from typing import NamedTuple

from alignkit import export as library


class Work(NamedTuple):
    """A model, and the form in which it is wanted."""

    name: str
    folder: Path
    """The published adapter or weights."""
    base: Path
    """The folder of the base model; of a model with all weights trained, its own."""
    base_name: str
    base_id: str | None
    """The hub id of the base model, if it is known."""
    form: str
    quantize: str
    target: Path


def source_of(work: Work) -> library.Source:
    """The model as the library takes it."""
    return library.Source(
        work.name,
        work.folder,
        str(work.base),
        base_id=work.base_id,
        base_name=work.base_name,
        field="base model",
    )


def write_export(work: Work) -> None:
    """Write the model into the folder `target`. Raises the library's errors."""
    options = library.ExportOptions(work.quantize, check=False, report=lambda _: None)
    library.export(source_of(work), work.form, work.target, options)
