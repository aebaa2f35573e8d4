"""The forms of an export, by name."""

from pathlib import Path

from alignkit.errors import ExportError, nearest
from alignkit.export import adapter, gguf, merged, ollama
from alignkit.export.options import ExportOptions, Write
from alignkit.export.source import Source
from alignkit.export.target import whole_or_nothing

FORMS: dict[str, Write] = {
    "adapter": adapter.write,
    "merged": merged.write,
    "gguf": gguf.write,
    "ollama": ollama.write,
}
"""The name of a form -> what writes it."""


def export(source: Source, form: str, target: Path, options: ExportOptions, *, force: bool = False) -> Path:
    """Write a trained model into the folder `target`, whole or not at all, and return that folder.

    Raises ExportError if the form is unknown, if the model cannot be written in it, if `target` exists and `force` is
    not set, or if the disk is full.
    """
    write = form_named(form)
    with whole_or_nothing(target, force=force) as folder:
        write(source, folder, options)
    return target


def form_named(form: str) -> Write:
    """What writes a form. Raises ExportError if it is unknown."""
    if form not in FORMS:
        raise ExportError(f"expected one of {', '.join(FORMS)}, found {form!r}{nearest(form, FORMS)}")
    return FORMS[form]


def export_name(form: str, quantize: str) -> str:
    """The name of the folder for a form, such as `gguf-q8_0`."""
    return form if quantize == "auto" or form in ("adapter", "merged") else f"{form}-{quantize}"
