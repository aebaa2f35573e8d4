"""From a checked file to the rows and the dataset that a trainer takes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignkit.data.formats import PreferenceRow
from alignkit.data.reading import iter_lines
from alignkit.data.validation import check_file, schema_for
from alignkit.errors import DataError


def load_rows(path: Path, method: str) -> list[PreferenceRow]:
    """Every row of `path`; raises DataError with the whole report if one cannot be used."""
    report = check_file(path, method)
    if not report.ok:
        raise DataError(f"{path.name}: {report.summary()}")
    schema = schema_for(method)
    return [schema.parse(line.value) for line in iter_lines(path)]


def to_trl(rows: Iterable[PreferenceRow]) -> Any:
    """A datasets.Dataset of conversational prompt / chosen / rejected, as TRL's preference trainers take it."""
    import json

    from datasets import Dataset

    records = []
    for row in rows:
        record: dict[str, Any] = {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected}
        if row.tools:
            record["tools"] = json.dumps(row.tools)  # tools differ in shape; Arrow columns cannot
        records.append(record)
    return Dataset.from_list(records)
