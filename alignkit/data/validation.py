"""Whether a file can be trained on: every bad line by number, field, expected and found. Needs no tokenizer."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from alignkit.data.formats import PreferenceRow, RowError, parse_preference, recognise
from alignkit.data.reading import DEFAULT_MAX_LINE_BYTES, iter_lines
from alignkit.errors import DataError

MAX_ISSUES = 20


@dataclass(frozen=True, slots=True)
class RowSchema:
    """What a method's rows are: their parser, the keys they use, and when a row teaches nothing."""

    parse: Callable[[object], PreferenceRow]
    known_keys: Callable[[object], frozenset[str]]
    idle: Callable[[PreferenceRow], bool]
    idle_words: str


PREFERENCE = RowSchema(
    parse=parse_preference,
    known_keys=lambda row: recognise(row).keys,
    idle=lambda row: row.chosen == row.rejected,
    idle_words="chosen equal to rejected",
)
SCHEMAS: dict[str, RowSchema] = {"f_dpo": PREFERENCE}


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

    def summary(self) -> str:
        """The report in words, one finding a line."""
        if self.ok:
            head = f"{self.rows} rows, all valid"
        elif self.problem:
            head = self.problem
        else:
            head = f"{self.bad_rows} of {self.rows} rows cannot be used"
        lines = [head, *map(str, self.issues)]
        if self.bad_rows > len(self.issues):
            lines.append(f"and {self.bad_rows - len(self.issues)} more")
        return "\n".join([*lines, *self.notices])


def schema_for(method: str) -> RowSchema:
    """The rows of a method; raises DataError for an unknown one."""
    if method not in SCHEMAS:
        raise DataError(f"unknown method {method!r}: expected one of {', '.join(SCHEMAS)}")
    return SCHEMAS[method]


def check_file(
    path: Path, method: str, *, max_issues: int = MAX_ISSUES, max_line_bytes: int = DEFAULT_MAX_LINE_BYTES
) -> FileReport:
    """Check every line of `path` for `method`, streaming. Never raises for what is in the file."""
    schema = schema_for(method)
    rows = bad = idle = 0
    issues: list[LineIssue] = []
    extra: Counter[str] = Counter()
    try:
        for number, row, unknown, error in _parsed(path, schema, max_line_bytes):
            rows += 1
            if error is not None:
                bad += 1
                if len(issues) < max_issues:
                    issues.append(LineIssue(number, error.pointer, error.expected, error.found))
                continue
            idle += row is not None and schema.idle(row)
            extra.update(unknown)
    except DataError as error:
        return FileReport(rows, bad, tuple(issues), problem=str(error))
    return FileReport(
        rows, bad, tuple(issues), _notices(rows, idle, extra, schema), _problem(rows, bad, idle, schema)
    )


def _parsed(
    path: Path, schema: RowSchema, max_line_bytes: int
) -> Iterator[tuple[int, PreferenceRow | None, frozenset[str], RowError | None]]:
    nothing: frozenset[str] = frozenset()
    for line in iter_lines(path, max_line_bytes=max_line_bytes):
        if line.error is not None:
            yield line.number, None, nothing, line.error
            continue
        try:
            row = schema.parse(line.value)
            yield line.number, row, frozenset(line.value) - schema.known_keys(line.value), None
        except RowError as error:
            yield line.number, None, nothing, error


def _problem(rows: int, bad: int, idle: int, schema: RowSchema) -> str | None:
    if rows == 0:
        return "the file is empty: expected one JSON object a line"
    if idle and idle == rows - bad and not bad:
        return f"every row has {schema.idle_words}, so there is nothing to learn"
    return None


def _notices(rows: int, idle: int, extra: Counter[str], schema: RowSchema) -> tuple[str, ...]:
    notices = []
    if idle and idle < rows:
        notices.append(f"note: {idle} of {rows} rows have {schema.idle_words} and teach nothing")
    if extra:
        names = ", ".join(sorted(extra)[:8])
        notices.append(f"note: keys that are not used: {names}")
    return tuple(notices)
