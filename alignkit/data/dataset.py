"""From a file to the rows, the token sequences and the dataset that a trainer takes."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from alignkit.data.reading import iter_lines
from alignkit.data.rows import Row, RowKind
from alignkit.data.rows.dispreferred import DispreferredRow
from alignkit.data.rows.preference import PreferenceRow
from alignkit.data.schemas import schema_for
from alignkit.data.tokens import TokenSequence, render_rows
from alignkit.data.validation import Inspection
from alignkit.errors import DataError

_logger = logging.getLogger(__name__)


def render(row: object, tokenizer: Any, *, method: Any, max_length: int | None = None) -> list[TokenSequence]:
    """The sequences that `method` trains on for one row: ids, the spans that carry loss, and how many were cut.

    `row` is a JSON value or a parsed row; `method` a method's name or class. With `max_length`, sequences are cut
    to it as training cuts them. Raises RowError where the value is no row of the method's kind, and DataError
    where the model's chat template cannot render it.
    """
    kind = schema_for(method)
    if isinstance(row, dict):
        row = kind.parse(row)
    if not isinstance(row, kind.record):
        raise TypeError(
            f"expected a JSON object or a {kind.record.__name__} for {method!r}, found {type(row).__name__}"
        )
    return [sequence.cut_to(max_length) for sequence in row.render(tokenizer)]


def load_rows(path: Path, method: Any) -> list[Any]:
    """Every row of `path`, of the method's kind; raises DataError with the whole report if one cannot be used."""
    return read_rows(path, schema_for(method))


def read_rows(path: Path, kind: RowKind[Row]) -> list[Row]:
    """Every row of `path`, read and checked in one pass; raises DataError as load_rows does."""
    inspection = Inspection(kind)
    rows = list(inspection.rows(iter_lines(path)))
    report = inspection.report()
    if not report.ok:
        raise DataError(f"{path.name}: {report.summary()}")
    return rows


class DataOptions(Protocol):
    """The data section of a recipe."""

    train: str
    validation: str | None
    max_length: int


def run_datasets(
    data: DataOptions, method: Any, tokenizer: Any, make: Callable[[str, list[Any]], Any] | None = None
) -> tuple[Any, Any]:
    """A run's training dataset, and its held-out dataset or None, as the method's trainer takes them.

    `make` turns a file's name and rows into a dataset where `tokenise` does not. Raises DataError.
    """
    if make is None:

        def make(_: str, rows: list[Any]) -> Any:
            return tokenise(rows, tokenizer, method, data.max_length)

    files = [Path(file) for file in (data.train, data.validation) if file]
    train, *held_out = [make(file.name, load_rows(file, method)) for file in files]
    return train, held_out[0] if held_out else None


def tokenise(rows: Sequence[Any], tokenizer: Any, method: Any, max_length: int) -> Any:
    """A datasets.Dataset of token ids, in the columns that the trainer of the method's rows takes.

    Made by `render`, cut to `max_length`. A row is left out where no token that carries loss is within it; how many
    is logged. Raises DataError where none is left, and as `render` does, naming the row from 1.
    """
    from datasets import Dataset

    kind = schema_for(method)
    found: list[dict[str, Any]] = []
    dropped = 0
    for sequences in render_rows(rows, tokenizer, lambda row, by: row.render(by)):
        kept = kind.trained(sequences, max_length)
        dropped += len(sequences) - len(kept)
        found += kind.columns(kept) if kept else []
    if not found:
        raise DataError(
            f"none of {len(rows)} rows has a token that carries loss within max_length {max_length}: "
            "raise max_length, or shorten the prompts"
        )
    if dropped:
        _logger.warning(
            "%d of %d sequences are left out: nothing that carries loss is within max_length %d",
            dropped,
            dropped + len(found),
            max_length,
        )
    return Dataset.from_list(found)


def to_trl(rows: Sequence[PreferenceRow]) -> Any:
    """A datasets.Dataset of conversational prompt / chosen / rejected, as TRL's preference trainers take it."""
    columns: dict[str, list[Any]] = {
        "prompt": [row.prompt for row in rows],
        "chosen": [row.chosen for row in rows],
        "rejected": [row.rejected for row in rows],
    }
    if any(row.tools for row in rows):
        columns["tools"] = [row.tools for row in rows]
    return _dataset(columns)


def to_dispreferred(rows: Sequence[DispreferredRow]) -> Any:
    """A datasets.Dataset of prompt, rejected and, where a row has them, samples and tools, as D2OTrainer takes it."""
    columns: dict[str, list[Any]] = {
        "prompt": [row.prompt for row in rows],
        "rejected": [row.rejected for row in rows],
    }
    for name in ("samples", "tools"):
        values = [getattr(row, name) for row in rows]
        if any(values):
            columns[name] = values
    return _dataset(columns)


def _dataset(columns: dict[str, list[Any]]) -> Any:
    from datasets import Dataset, Features, Json, List

    # Stored as JSON, a message keeps exactly its own keys: Arrow would give each the keys of all the others.
    return Dataset.from_dict(columns, features=Features({name: List(Json()) for name in columns}))
