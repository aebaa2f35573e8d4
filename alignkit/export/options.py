"""What all forms of an export take."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alignkit.export.source import Source


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """Options of an export; a form uses those that concern it."""

    quantize: str = "auto"
    """How GGUF stores weights, a name in `alignkit.export.gguf.STORED`, or "auto"."""
    check: bool = True
    """Whether llama.cpp, if its package is installed, has to answer as the model does."""
    report: Callable[[str], object] = print
    """Called with a sentence about what is done."""


Write = Callable[[Source, Path, ExportOptions], None]
"""Writes a form of a model into an empty folder. Raises AlignkitError if the model cannot be written in that form."""
