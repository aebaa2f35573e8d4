"""Training data: forms, validation, statistics and preview. What is named here imports neither torch nor TRL."""

from alignkit.data.completion_forms import parse_completion
from alignkit.data.completions import CompletionRow
from alignkit.data.dataset import load_rows, to_dispreferred, to_trl
from alignkit.data.dispreferred import DispreferredRow, parse_dispreferred
from alignkit.data.formats import Message, PreferenceRow, RowError, parse_preference
from alignkit.data.validation import FileReport, LineIssue, check_file

__all__ = [
    "CompletionRow",
    "DispreferredRow",
    "FileReport",
    "LineIssue",
    "Message",
    "PreferenceRow",
    "RowError",
    "check_file",
    "load_rows",
    "parse_completion",
    "parse_dispreferred",
    "parse_preference",
    "to_dispreferred",
    "to_trl",
]
