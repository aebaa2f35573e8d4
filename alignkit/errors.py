"""Errors that a user can fix; each names the place, what was expected and what was found."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches


class AlignkitError(Exception):
    """Base of all errors that a user can fix; shown as one readable line, without a traceback."""


class DataError(AlignkitError):
    """A data file cannot be used; the message lists the rows at fault."""


class QuotingError(DataError):
    """A data file cannot be used; the message quotes it, and `plain` says the same without the quote."""

    def __init__(self, message: str, plain: str = "the file cannot be read") -> None:
        super().__init__(message)
        self.plain = plain


class TooMuchDataError(DataError):
    """A data file holds more rows or text than its reader takes."""


class ModelError(AlignkitError):
    """A model cannot be found, loaded, imported or served."""


class ExportError(AlignkitError):
    """A model cannot be exported, or not there; the message says why."""


class DiskFullError(ExportError):
    """A model cannot be exported for want of disk space."""


class DivergenceError(AlignkitError):
    """A divergence is unknown or does not qualify for f-DPO; the message names the condition."""


class MethodError(AlignkitError):
    """A method is unknown, cannot be imported, or is declared wrongly; the message says what was expected."""


class CollapseError(AlignkitError):
    """A run was ended because its model's answers collapsed."""


@dataclass(frozen=True, slots=True)
class FieldIssue:
    """One refused field: its dotted path, and a sentence with what was expected and found."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class RecipeError(AlignkitError):
    """A recipe or a job's hyperparameters are refused; `issues` has every refused field."""

    def __init__(self, issues: Iterable[FieldIssue]) -> None:
        self.issues = tuple(issues)
        super().__init__("\n".join(str(issue) for issue in self.issues))


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message that refuses `name`: the most similar known name; empty if none is similar."""
    plain = {_plain(one): one for one in known}
    close = get_close_matches(_plain(name), list(plain), n=1, cutoff=0.7)
    return f"; did you mean {plain[close[0]]}?" if close else ""


def _plain(name: str) -> str:
    """A name without what people write in different ways: case, and hyphens or spaces for underscores."""
    return name.casefold().replace("-", "_").replace(" ", "_")
