"""Takes a trained model away, in a form that other programs load. One file a form."""

from alignkit.errors import ExportError
from alignkit.export.adapter import files_of as adapter_files
from alignkit.export.exporting import FORMS, export, export_name, form_named
from alignkit.export.hub import Repository, prepare, push
from alignkit.export.merged import full_files
from alignkit.export.options import ExportOptions
from alignkit.export.source import Source, adapter_source, source_at
from alignkit.export.target import whole_or_nothing
from alignkit.models.origin import origin_in

__all__ = [
    "FORMS",
    "ExportError",
    "ExportOptions",
    "Repository",
    "Source",
    "adapter_files",
    "adapter_source",
    "export",
    "export_name",
    "form_named",
    "full_files",
    "origin_in",
    "prepare",
    "push",
    "source_at",
    "whole_or_nothing",
]
