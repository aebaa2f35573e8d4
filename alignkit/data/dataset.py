"""From a file to the rows and the dataset that a trainer takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignkit.data.dispreferred import DispreferredRow
from alignkit.data.formats import PreferenceRow
from alignkit.data.reading import iter_lines
from alignkit.data.schemas import Row, RowSchema, schema_for
from alignkit.data.tokens import render_rows, require_writable
from alignkit.data.validation import Inspection
from alignkit.errors import DataError


def load_rows(path: Path, method: str, tokenizer: Any = None) -> list[Any]:
    """Every row of `path`, of the method's kind; raises DataError with the whole report if one cannot be used.

    With the model's tokenizer, also where its chat template cannot write what a row teaches.
    """
    rows = read_rows(path, schema_for(method))
    if tokenizer is not None:
        for _ in render_rows(rows, tokenizer, require_writable):
            pass
    return rows


def read_rows(path: Path, schema: RowSchema[Row]) -> list[Row]:
    """Every row of `path` by `schema`, read and checked in one pass; raises DataError as load_rows does."""
    inspection = Inspection(schema)
    rows = list(inspection.rows(iter_lines(path)))
    report = inspection.report()
    if not report.ok:
        raise DataError(f"{path.name}: {report.summary()}")
    return rows


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
