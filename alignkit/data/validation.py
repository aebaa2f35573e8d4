"""Checks whether a file can be trained on, and reports invalid rows by number, field, expected and found."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol

from alignkit.data.hints import looks_like
from alignkit.data.nodes import MAX_UNUSED_NAMES, RowError, printable
from alignkit.data.reading import (
    DEFAULT_MAX_BYTES,
    DEFAULT_MAX_LINE_BYTES,
    DEFAULT_MAX_LINES,
    Line,
    iter_lines,
)
from alignkit.data.rows import Row, RowKind
from alignkit.data.rows.recognise import GROUP
from alignkit.data.schemas import schema_for
from alignkit.data.token_store import RenderedRows
from alignkit.data.tokens import TokenSequence, digests, unknown_token
from alignkit.errors import DataError

MAX_ISSUES = 20
MAX_BAD_ROWS = 10_000
"""Number of invalid rows after which the rest of a file is not read."""
RENDERABLE = "a row that the model's chat template renders in full"
"""What is expected of a row, where the error of rendering it is not shown."""
MAX_NAMES_SHOWN = 8
MAX_NOTES = 8
SKIPPED_SHARE = 0.1
"""The maximum share of invalid rows that `skip_bad: true` skips."""


@dataclass(frozen=True, slots=True)
class LineIssue:
    """A reason for refusing rows: the first row it applies to, and the number of such rows."""

    line: int
    pointer: str
    expected: str
    found: str
    rows: int = 1
    unit: str = "line"
    """The unit of `line`: a line of text, or a row."""

    def __str__(self) -> str:
        place = f"{self.unit} {self.line}" + (f", {self.pointer}" if self.pointer else "")
        found = f", found {self.found}" if self.found else ""
        said = f"expected {self.expected}{found}" if self.expected else self.found
        return f"{place}: {said}" if self.rows == 1 else f"{self.rows:,} rows, the first at {place}: {said}"


@dataclass(frozen=True, slots=True)
class FileReport:
    """The findings of a check. `rows` counts non-blank rows, including invalid ones."""

    rows: int
    bad_rows: int
    issues: tuple[LineIssue, ...]
    notices: tuple[str, ...] = ()
    problem: str | None = None
    """A problem of the file as a whole, if any."""
    plain_problem: str | None = None
    """The problem without anything that the file holds; None if `problem` quotes nothing."""
    skips_bad: bool = False
    """Whether invalid rows are skipped, because they are as few as allowed."""
    digests: frozenset[bytes] = frozenset()
    """Digests of the trained tokens of the rendered rows."""
    prompts: frozenset[bytes] = frozenset()
    """Digests of the rendered rows' prompts."""

    @property
    def ok(self) -> bool:
        """Whether the file can be trained on."""
        return self.problem is None and (self.bad_rows == 0 or self.skips_bad)

    @property
    def headline(self) -> str:
        """The report in one line."""
        if self.problem:
            return self.problem
        if self.bad_rows and self.skips_bad:
            return f"{self.bad_rows:,} of {self.rows:,} rows are invalid and skipped"
        if self.bad_rows:
            return f"{self.bad_rows:,} of {self.rows:,} rows cannot be used"
        return f"{count(self.rows)}, all valid"

    def findings(self) -> list[str]:
        """The reasons for refusing rows, and how many more invalid rows there are."""
        more = self.bad_rows - sum(issue.rows for issue in self.issues)
        return [*map(str, self.issues), *([f"and {more:,} more"] if more else [])]

    def without_content(self) -> "FileReport":
        """The report for whoever may not see rows: places and what was expected there, but nothing found there."""
        issues = (replace(one, expected=one.expected or RENDERABLE, found="") for one in self.issues)
        problem = self.plain_problem or self.problem
        return replace(self, issues=tuple(issues), notices=(), problem=problem)

    def summary(self) -> str:
        """The report as text, one finding per line."""
        notes = (f"note: {notice}" for notice in self.notices)
        return "\n".join([self.headline, *self.findings(), *notes])


class Seen(Protocol):
    """The part of a report that `overlap` compares."""

    @property
    def digests(self) -> frozenset[bytes]:
        """Digests of the trained tokens of the rows."""

    @property
    def prompts(self) -> frozenset[bytes]:
        """Digests of the rows' prompts."""


def overlap(training: Seen, held_out: Seen) -> list[str]:
    """Notices about rows and prompts that two files have in common, compared by trained token ids."""
    rows, prompts = training.digests & held_out.digests, training.prompts & held_out.prompts
    words = ((len(rows), "different rows"), (len(prompts), "different prompts"))
    return [f"the validation file also has {shared:,} of its {what}" for shared, what in words if shared]


def count(rows: int) -> str:
    """A number of rows in words."""
    return f"{rows:,} row{'' if rows == 1 else 's'}"


def check_file(
    path: Path,
    method: Any,
    *,
    tokenizer: Any = None,
    max_length: int | None = None,
    columns: Mapping[str, str] | None = None,
    skip_bad: float = 0,
    max_rendered: int | None = None,
    vocabulary: int | None = None,
    max_issues: int = MAX_ISSUES,
    max_line_bytes: int = DEFAULT_MAX_LINE_BYTES,
    max_bytes: int = DEFAULT_MAX_BYTES,
    max_lines: int = DEFAULT_MAX_LINES,
) -> FileReport:
    """Check every row of `path` for `method`, streaming. Never raises for the content of the file.

    With the model's tokenizer, rows are also rendered and cut to `max_length`. That finds what the chat template
    refuses or omits, and equal answers, by their tokens. At most `max_rendered` rows are rendered. `vocabulary` is
    the number of tokens that the model has embeddings of; a row with another token is refused. `columns` renames
    keys; `skip_bad` invalid rows (below 1: a share of all rows) are allowed. `max_bytes` limits the decompressed
    text; `max_lines` includes blank lines. Raises DataError for an unknown method.
    """
    inspection = Inspection(
        schema_for(method), max_issues, tokenizer, max_length, skip_bad, max_rendered, vocabulary
    )
    lines = iter_lines(
        path, columns=columns, max_line_bytes=max_line_bytes, max_bytes=max_bytes, max_lines=max_lines
    )
    for _ in inspection.rendered(lines):
        pass
    return inspection.report()


@dataclass(slots=True)
class Inspection(Generic[Row]):
    """One pass over a file: yields its valid rows and collects findings on all."""

    kind: RowKind[Row]
    max_issues: int = MAX_ISSUES
    tokenizer: Any = None
    max_length: int | None = None
    skip_bad: float = 0
    max_rendered: int | None = None
    """Number of rows to render; None renders all."""
    vocabulary: int | None = None
    """Number of tokens that the model has embeddings of; None if unknown."""
    stored: RenderedRows | None = None
    """Rows that were rendered before; None renders all anew."""
    _seen: int = 0
    _bad: int = 0
    _no_signal: int = 0
    _dropped: int = 0
    _first: dict[str, Line] = field(default_factory=dict)
    """The first row of every kind of finding."""
    _issues: dict[tuple[str, str], LineIssue] = field(default_factory=dict)
    _notes: Counter[str] = field(default_factory=Counter)
    _unused: set[str] = field(default_factory=set)
    _lacking: set[str] = field(init=False)
    _digests: set[bytes] = field(default_factory=set)
    _prompts: set[bytes] = field(default_factory=set)
    _groups: Counter[str | None] = field(default_factory=Counter)
    _problem: str | None = None
    _plain_problem: str | None = None
    _hint: str | None = None

    def __post_init__(self) -> None:
        """Mark all needed fields as missing so far."""
        self._lacking = set(self.kind.needed)

    def rows(self, lines: Iterator[Line]) -> Iterator[Row]:
        """The valid rows; findings on the others, or on the file, go into the report."""
        return (row for row, _ in self.rendered(lines))

    def rendered(self, lines: Iterator[Line]) -> Iterator[tuple[Row, list[TokenSequence]]]:
        """The valid rows with their uncut sequences, which are empty without a tokenizer."""
        try:
            for line in lines:
                self._seen += 1
                found = self._inspect(line)
                if found is not None:
                    yield found
                elif self._bad >= MAX_BAD_ROWS:  # half a gigabyte of bad lines would take minutes to count
                    self._problem = f"{MAX_BAD_ROWS:,} of the first {count(self._seen)} cannot be used"
                    return
        except DataError as error:
            self._problem, self._plain_problem = str(error), getattr(error, "plain", None)

    def _inspect(self, line: Line) -> tuple[Row, list[TokenSequence]] | None:
        unused: set[str] = set()
        try:
            if line.error is not None:
                raise line.error
            row = self.kind.parse(line.value, unused)
            sequences = self._rendered(line, row) if self._renders() else []
            self._require_known(sequences)
        except RowError as error:
            if self._bad == 0:
                self._hint = looks_like(line.value, self.kind)
            self._refuse(line, error.pointer, error.expected, error.found)
            return None
        except DataError as error:
            self._refuse(line, "", "", str(error))
            return None
        if len(self._unused) < MAX_UNUSED_NAMES:
            self._unused |= unused
        self._count(line, row, sequences)
        return row, sequences

    def _rendered(self, line: Line, row: Row) -> list[TokenSequence]:
        if self.stored is None:
            return row.render(self.tokenizer)
        return self.stored.render(line.number, row, self.tokenizer)

    def _require_known(self, sequences: list[TokenSequence]) -> None:
        highest = max((max(one.ids, default=0) for one in sequences), default=0)
        if self.vocabulary is not None and highest >= self.vocabulary:
            raise DataError(unknown_token(highest, self.vocabulary, self.tokenizer))

    def _renders(self) -> bool:
        return self.tokenizer is not None and (self.max_rendered is None or self._seen <= self.max_rendered)

    def _count(self, line: Line, row: Row, sequences: list[TokenSequence]) -> None:
        self._groups[getattr(row, GROUP, None)] += 1
        trained = self.kind.trained(sequences, self.max_length)
        names = {one.name for one in trained} if sequences else {n for n in self._lacking if getattr(row, n)}
        self._lacking -= names
        if sequences and not trained and not row.has_no_signal:
            self._dropped += 1
            self._first.setdefault("dropped", line)
        elif row.has_no_signal or (trained and self.kind.has_no_signal(trained)):
            self._no_signal += 1
            self._first.setdefault("no signal", line)
        if sequences:
            row_digest, prompt_digest = digests(trained or sequences)
            self._digests.add(row_digest)
            self._prompts.add(prompt_digest)
        for note in {note for sequence in sequences for note in sequence.notes}:
            self._notes[note] += 1
            self._first.setdefault(note, line)

    def _refuse(self, line: Line, pointer: str, expected: str, found: str) -> None:
        self._bad += 1
        alike = (_place(pointer), expected or found)
        before = self._issues.get(alike)
        if before is not None:
            self._issues[alike] = replace(before, rows=before.rows + 1)
        elif len(self._issues) < self.max_issues:
            self._issues[alike] = LineIssue(line.number, pointer, expected, found, unit=line.unit)

    def report(self) -> FileReport:
        """The findings; complete after `rows` or `rendered` is exhausted."""
        problem, kept = self._problem, self._seen - self._bad
        if problem is None and self._seen == 0:
            problem = "the file is empty: expected one JSON object per line"
        skips_bad = kept > 0 and 0 < self._bad <= self._allowed
        if problem is None and kept and (skips_bad or not self._bad):
            problem = self._nothing_to_train(kept)
        return FileReport(
            self._seen,
            self._bad,
            tuple(self._issues.values()),
            tuple(self._notices()),
            problem,
            self._plain_problem,
            skips_bad=skips_bad,
            digests=frozenset(self._digests),
            prompts=frozenset(self._prompts),
        )

    @property
    def _allowed(self) -> int:
        """The number of invalid rows that may be skipped."""
        return int(self.skip_bad if self.skip_bad >= 1 else self.skip_bad * self._seen)

    def _nothing_to_train(self, kept: int) -> str | None:
        words = self.kind.no_signal_words
        if self._no_signal == kept:
            return f"every row has {words}, so there is nothing to train"
        if self._dropped + self._no_signal == kept:
            nothing = f"no token that carries loss within max_length {self.max_length}"
            return f"every row has {f'{words} or ' if self._no_signal else ''}{nothing}, so there is nothing to train"
        if self._lacking:
            return f"no row is {min(self._lacking)}: expected {' and '.join(self.kind.needed)} ones"
        return None

    def _notices(self) -> Iterator[str]:
        if self._hint is not None and 2 * self._bad > self._seen:
            yield self._hint
        if self._bad > self._allowed > 0:
            yield f"at most {self._allowed:,} invalid rows may be skipped, found {self._bad:,}"
        if 0 < self._no_signal < self._seen - self._bad:
            verb, end = ("has", "changes") if self._no_signal == 1 else ("have", "change")
            yield (
                f"{self._no_signal:,} of {self._seen:,} rows {verb} {self.kind.no_signal_words} and {end} nothing"
                f"{self._since('no signal')}"
            )
        if self._dropped:
            verb = "is" if self._dropped == 1 else "are"
            yield (
                f"{self._dropped:,} of {self._seen:,} rows {verb} dropped: no token that carries loss is within "
                f"max_length {self.max_length}{self._since('dropped')}"
            )
        for note, rows in self._notes.most_common(MAX_NOTES):
            yield f"{note} ({rows:,} of {self._seen:,} rows{self._since(note, ', ')})"
        if named := [(name, rows) for name, rows in self._groups.most_common() if name is not None]:
            shown = ", ".join(f"{printable(name)} {rows:,}" for name, rows in named[:MAX_NAMES_SHOWN])
            rest = f" and {len(named) - MAX_NAMES_SHOWN} more" if len(named) > MAX_NAMES_SHOWN else ""
            lacking = f"; {count(self._groups[None])} without a group" if self._groups[None] else ""
            yield f"rows of each group: {shown}{rest}{lacking}"
        if self.tokenizer is not None and not self._renders():
            yield f"only the first {self.max_rendered:,} rows were rendered with the model's chat template"
        if self._unused:
            names = sorted(self._unused)
            more = len(names) - MAX_NAMES_SHOWN
            least = "at least " if len(names) >= MAX_UNUSED_NAMES else ""
            tail = f" and {least}{more} more" if more > 0 else ""
            yield f"unused keys: {', '.join(names[:MAX_NAMES_SHOWN])}{tail}"

    def _since(self, oddity: str, between: str = ": ") -> str:
        line = self._first[oddity]
        return f"{between}the first at {line.unit} {line.number}"


def _place(pointer: str) -> str:
    """A JSON pointer without array indices, so that the same mistake in different turns counts as one."""
    return "/".join("*" if part.isdigit() else part for part in pointer.split("/"))
