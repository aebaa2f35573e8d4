"""Functions that read data files in a child: check, preview and count rows. The children's template imports them.

Arguments and results are plain values or records of the library. Errors are the library's.
"""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from alignkit import estimate as library
from alignkit.data.reading import Line, iter_lines
from alignkit.data.report import preview_row
from alignkit.data.schemas import schema_for
from alignkit.data.validation import RENDERABLE, FileReport, Inspection
from alignkit.data.validation import check_file as check
from alignkit.errors import DataError
from alignkit.methods import METHODS
from alignkit.models.trainable import vocabulary_in
from alignkit_server.tokenizers import tokenizer_at

CHARACTERS = 64
"""Characters of a text kept for each token of max_length; longer texts are cut before they are tokenised."""


class Rows(NamedTuple):
    """How to read and render a file's rows, and which of them; each function defines the meaning of `which`."""

    method: str
    columns: dict[str, str]
    folder: Path
    chat_template: str | None
    max_length: int
    which: tuple[int, int]
    quotes: bool = True
    """Whether an error may quote the row."""


def check_file(
    path: Path, method: str, model: tuple[Path, str | None] | None, options: dict[str, Any]
) -> FileReport:
    """The library's check; with a model's folder and chat template, rows are rendered too."""
    tokenizer = None if model is None else tokenizer_at(*model)
    vocabulary = None if model is None else vocabulary_in(model[0])
    return check(path, method, tokenizer=tokenizer, vocabulary=vocabulary, **options)


def preview(path: Path, rows: Rows) -> list[dict[str, Any]]:
    """Rendered valid rows, from number which[0] up to but not including which[1]; long texts are cut."""
    tokenizer, shown = tokenizer_at(rows.folder, rows.chat_template), []
    good = (found for line in iter_lines(path, columns=rows.columns) for found in _row(line, rows))
    for number, (row, cut) in islice(enumerate(good, start=1), *rows.which):
        try:
            found = preview_row(row, tokenizer, max_length=rows.max_length)
        except DataError as error:
            raise _refused(number, error, rows) from error
        notes = [*found.notes, *([f"texts are shown up to {cut:,} characters"] if cut else [])]
        sequences = {name: [asdict(part) for part in parts] for name, parts in found.sequences.items()}
        shown.append({"index": number, "dropped": found.dropped, "notes": notes, "sequences": sequences})
    return shown


def sample(path: Path, rows: Rows) -> tuple[library.Lengths | None, int]:
    """(lengths, number of rows counted) of every which[0]-th of which[1] rows; the others are not parsed."""
    tokenizer, rendered = tokenizer_at(rows.folder, rows.chat_template), []
    every, total = rows.which
    lines = enumerate(iter_lines(path, columns=rows.columns), start=1)
    for number, line in islice(lines, 0, None, every):
        try:
            rendered += [row.render(tokenizer) for row, _ in _row(line, rows)]
        except DataError as error:
            raise _refused(number, error, rows) from error
    counted = library.trained_rows(rendered, METHODS[rows.method])
    return library.count_lengths(counted, rows.max_length, len(rendered) / total), len(rendered)


def _row(line: Line, rows: Rows) -> Iterator[tuple[Any, int]]:
    """(the row with long texts cut, the characters kept, or 0 if none was cut); nothing for an invalid row."""
    most = rows.max_length * CHARACTERS
    value, cut = _cut(line.value, most)
    kind: Any = schema_for(rows.method)
    for row in Inspection(kind).rows(iter([Line(line.number, value, line.error, line.unit)])):
        yield row, most if cut else 0


def _cut(value: Any, most: int) -> tuple[Any, bool]:
    """(`value` with long texts cut, whether any was cut). Arguments of tool calls must stay JSON and are not cut."""
    if isinstance(value, str):
        return (value[:most], True) if len(value) > most else (value, False)
    if isinstance(value, dict):
        pairs = {
            key: (inner, False) if key == "arguments" else _cut(inner, most) for key, inner in value.items()
        }
        return {key: inner for key, (inner, _) in pairs.items()}, any(cut for _, cut in pairs.values())
    if isinstance(value, list):
        items = [_cut(inner, most) for inner in value]
        return [inner for inner, _ in items], any(cut for _, cut in items)
    return value, False


def _refused(number: int, error: DataError, rows: Rows) -> DataError:
    why = error if rows.quotes else f"expected {RENDERABLE}"
    return DataError(f"Row {number} of the training file: {why}")
