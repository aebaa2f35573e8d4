"""Whether a file can be trained on: every bad line by number, field, expected and found. Needs no tokenizer."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

from alignkit.data.nodes import MAX_UNUSED_NAMES, RowError
from alignkit.data.reading import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_LINE_BYTES,
    DEFAULT_MAX_LINES,
    Line,
    iter_lines,
)
from alignkit.data.rows import Row, RowKind
from alignkit.data.schemas import schema_for
from alignkit.errors import DataError

MAX_ISSUES = 20
MAX_BAD_ROWS = 10_000
"""After as many, the rest of a file is not read."""
MAX_NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class LineIssue:
    """One refused line."""

    line: int
    pointer: str
    expected: str
    found: str

    def __str__(self) -> str:
        where = f"line {self.line}, {self.pointer}" if self.pointer else f"line {self.line}"
        return f"{where}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True)
class FileReport:
    """What a check found. `rows` counts the lines that are not blank, bad ones included."""

    rows: int
    bad_rows: int
    issues: tuple[LineIssue, ...]
    notices: tuple[str, ...] = ()
    problem: str | None = None
    """What is wrong with the file as a whole, if anything."""

    @property
    def ok(self) -> bool:
        """Whether the file can be trained on."""
        return self.problem is None and self.bad_rows == 0

    @property
    def headline(self) -> str:
        """The report in one line."""
        if self.problem:
            return self.problem
        if self.bad_rows:
            return f"{self.bad_rows:,} of {self.rows:,} rows cannot be used"
        return f"{count(self.rows)}, all valid"

    def findings(self) -> list[str]:
        """The bad lines, and how many more there are."""
        more = self.bad_rows - len(self.issues)
        return [*map(str, self.issues), *([f"and {more:,} more"] if more else [])]

    def summary(self) -> str:
        """The report in words, one finding a line."""
        notes = (f"note: {notice}" for notice in self.notices)
        return "\n".join([self.headline, *self.findings(), *notes])


def count(rows: int) -> str:
    """A number of rows in words."""
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def check_file(
    path: Path,
    method: str,
    *,
    max_issues: int = MAX_ISSUES,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_lines: int = DEFAULT_MAX_LINES,
) -> FileReport:
    """Check every line of `path` for `method`, streaming. Never raises for what is in the file.

    `max_bytes` limits the text, decompressed; `max_lines` counts blank lines too. Raises DataError for an unknown
    method.
    """
    inspection = Inspection(schema_for(method), max_issues)
    lines = iter_lines(path, max_line_bytes=max_line_bytes, max_bytes=max_bytes, max_lines=max_lines)
    for _ in inspection.rows(lines):
        pass
    return inspection.report()


@dataclass(slots=True)
class Inspection(Generic[Row]):
    """One pass over a file: gives its good rows and keeps account of all."""

    kind: RowKind[Row]
    max_issues: int = MAX_ISSUES
    _seen: int = 0
    _bad: int = 0
    _no_signal: int = 0
    _issues: list[LineIssue] = field(default_factory=list)
    _unused: set[str] = field(default_factory=set)
    _problem: str | None = None

    def rows(self, lines: Iterator[Line]) -> Iterator[Row]:
        """The good rows; what is wrong with the others, or with the file, goes into the report."""
        try:
            for line in lines:
                self._seen += 1
                row = self._parse(line)
                if row is not None:
                    self._no_signal += row.has_no_signal
                    yield row
                elif self._bad >= MAX_BAD_ROWS:  # half a gigabyte of bad lines would take minutes to count
                    self._problem = f"the first {count(self._seen)} hold {MAX_BAD_ROWS:,} that cannot be used"
                    return
        except DataError as error:
            self._problem = str(error)

    def _parse(self, line: Line) -> Row | None:
        try:
            if line.error is not None:
                raise line.error
            return self.kind.parse(line.value, self._unused)
        except RowError as error:
            self._bad += 1
            if len(self._issues) < self.max_issues:
                self._issues.append(LineIssue(line.number, error.pointer, error.expected, error.found))
            return None

    def report(self) -> FileReport:
        """What was found; complete once `rows` is exhausted."""
        problem = self._problem
        if problem is None and self._seen == 0:
            problem = "the file is empty: expected one JSON object a line"
        if problem is None and self._no_signal == self._seen:
            problem = f"every row has {self.kind.no_signal_words}, so there is nothing to learn"
        return FileReport(self._seen, self._bad, tuple(self._issues), tuple(self._notices()), problem)

    def _notices(self) -> Iterator[str]:
        if 0 < self._no_signal < self._seen:
            verb, end = ("has", "teaches") if self._no_signal == 1 else ("have", "teach")
            yield (
                f"{self._no_signal:,} of {self._seen:,} rows {verb} {self.kind.no_signal_words} and {end} nothing"
            )
        if self._unused:
            names = sorted(self._unused)
            more = len(names) - MAX_NAMES_SHOWN
            least = "at least " if len(names) >= MAX_UNUSED_NAMES else ""
            tail = f" and {least}{more} more" if more > 0 else ""
            yield f"keys that are not used: {', '.join(names[:MAX_NAMES_SHOWN])}{tail}"
