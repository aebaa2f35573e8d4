"""Looks at a job before it is created: its rows as the trainer sees them, its tokens and steps."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from alignkit.data.preview import preview_row
from alignkit.data.reading import iter_lines
from alignkit.data.schemas import schema_for
from alignkit.data.tokens import load_tokenizer
from alignkit.data.validation import Inspection
from alignkit.errors import DataError, ModelError
from server.errors import ApiError
from server.jobs.preparation import PreparedJob
from server.jobs.repository import JobRepository
from server.jobs.turns import waiting
from server.keys.service import Principal
from server.preflight.schemas import EstimateObject, PreviewObject, PreviewRequest, PreviewRow
from server.services import Services

SAMPLE_ROWS = 2000
"""Rows whose tokens are counted: enough for a mean, little enough for a request."""


def preview(request: PreviewRequest, prepared: PreparedJob, services: Services) -> PreviewObject:
    """The rows asked for, rendered."""
    tokenizer = _tokenizer(services.catalog.path(request.model))
    max_length = int(prepared.recipe["data"]["max_length"])
    schema, shown = schema_for(prepared.method), []
    for index, row in islice(_rows(prepared), request.offset, request.offset + request.rows):
        try:
            found = preview_row(row, tokenizer, schema, max_length=max_length)
        except DataError as error:
            raise _refused(index, error) from error
        sequences = {name: [asdict(part) for part in parts] for name, parts in found.sequences.items()}
        shown.append(
            PreviewRow.model_validate({"index": index, "dropped": found.dropped, "sequences": sequences})
        )
    return PreviewObject(model=request.model, method=prepared.method, max_length=max_length, rows=shown)


def estimate(prepared: PreparedJob, project: Principal, services: Services) -> EstimateObject:
    """Tokens counted in a sample of the rows; time by what earlier jobs took."""
    tokenizer = _tokenizer(services.catalog.path(prepared.request.model))
    rows, training = prepared.train_rows, prepared.recipe["training"]
    max_length = int(prepared.recipe["data"]["max_length"])
    schema, sampled, dropped, tokens = schema_for(prepared.method), 0, 0, 0
    for index, row in islice(_rows(prepared), 0, None, max(1, rows // SAMPLE_ROWS)):
        try:
            sequences = schema.render(row, tokenizer)
        except DataError as error:
            raise _refused(index, error) from error
        sampled += 1
        if all(sequence.dropped_at(max_length) for sequence in sequences):
            dropped += 1
            continue
        tokens += sum(min(len(sequence.ids), max_length) for sequence in sequences)
    kept = rows - round(rows * dropped / sampled)
    steps, passes = _steps(kept, training)
    total = round(tokens / sampled * rows * passes)
    with services.database.reading() as session:
        jobs = JobRepository(session, project.project_id)
        rates = jobs.rates(prepared.request.model, prepared.method)
        place = waiting(session) + 1
    return EstimateObject(
        rows=rows,
        sampled_rows=sampled,
        dropped_rows=rows - kept,
        steps=steps,
        tokens=total,
        seconds=round(total / median(rates), 1) if rates else None,
        based_on_jobs=len(rates),
        queue_position=place,
    )


def _steps(rows: int, training: dict[str, Any]) -> tuple[int, float]:
    """Optimizer steps over `rows`, and how often each row is trained on."""
    if rows == 0:
        return 0, 0.0
    if training["max_steps"]:
        return training["max_steps"], training["max_steps"] * training["batch_size"] / rows
    return math.ceil(training["epochs"] * math.ceil(rows / training["batch_size"])), training["epochs"]


def _rows(prepared: PreparedJob) -> Iterator[tuple[int, Any]]:
    """(index, row) of the training file, which is known to be in order."""
    schema: Any = schema_for(prepared.method)
    yield from enumerate(Inspection(schema).rows(iter_lines(Path(prepared.recipe["data"]["train"]))))


def _tokenizer(model: Path) -> Any:
    try:
        return _load_tokenizer(model, (model / "config.json").stat().st_mtime_ns)
    except ModelError as error:
        message = f"The model {model.name!r} cannot render conversations: {error}"
        raise ApiError(400, message.replace(str(model), model.name), param="model") from error


@lru_cache(maxsize=8)
def _load_tokenizer(model: Path, _changed: int) -> Any:
    return load_tokenizer(model)


def _refused(index: int, error: DataError) -> ApiError:
    return ApiError(400, f"Row {index} of the training file: {error}", param="training_file")
