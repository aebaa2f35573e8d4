"""Training data: rows, their forms and tokens, validation and reports. Importing it loads neither torch nor TRL."""

from alignkit.data.dataset import load_rows, render, to_dispreferred, to_trl, tokenise
from alignkit.data.messages import Message
from alignkit.data.nodes import RowError
from alignkit.data.rows import (
    CompletionRow,
    DispreferredRow,
    LabelledRow,
    PreferenceRow,
    parse_completion,
    parse_dispreferred,
    parse_labelled,
    parse_preference,
    row_kind,
)
from alignkit.data.tokens import TokenSequence
from alignkit.data.validation import FileReport, LineIssue, check_file

__all__ = [
    "CompletionRow",
    "DispreferredRow",
    "FileReport",
    "LabelledRow",
    "LineIssue",
    "Message",
    "PreferenceRow",
    "RowError",
    "TokenSequence",
    "check_file",
    "load_rows",
    "parse_completion",
    "parse_dispreferred",
    "parse_labelled",
    "parse_preference",
    "render",
    "row_kind",
    "to_dispreferred",
    "to_trl",
    "tokenise",
]
