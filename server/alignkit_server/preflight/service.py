"""Inspects a job before it is created: its rows as the trainer sees them, its tokens, steps and memory."""

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

from alignkit import estimate as library
from alignkit.data.reading import iter_lines
from alignkit.data.report import preview_row
from alignkit.data.schemas import schema_for
from alignkit.data.tokens import TokenSequence
from alignkit.data.validation import Inspection
from alignkit.errors import DataError, ModelError
from alignkit.recipe import Recipe
from alignkit_server.errors import ApiError
from alignkit_server.jobs.preparation import PreparedJob
from alignkit_server.jobs.queue import waiting
from alignkit_server.jobs.repository import JobRepository
from alignkit_server.keys.service import Principal
from alignkit_server.preflight.schemas import (
    EstimateObject,
    MemoryObject,
    PreviewObject,
    PreviewRequest,
    PreviewRow,
)
from alignkit_server.services import Services
from alignkit_server.tokenizers import tokenizer_at

SAMPLE_ROWS = 2000
"""Number of rows whose tokens are counted: enough for a mean, few enough for a request."""


def preview(request: PreviewRequest, prepared: PreparedJob) -> PreviewObject:
    """The requested rows, rendered."""
    tokenizer = _tokenizer(prepared, request.model)
    max_length = int(prepared.recipe["data"]["max_length"])
    shown = []
    for index, row in islice(_rows(prepared), request.offset, request.offset + request.rows):
        try:
            found = preview_row(row, tokenizer, max_length=max_length)
        except DataError as error:
            raise _refused(index, error) from error
        sequences = {name: [asdict(part) for part in parts] for name, parts in found.sequences.items()}
        shown.append(
            PreviewRow.model_validate(
                {"index": index, "dropped": found.dropped, "notes": found.notes, "sequences": sequences}
            )
        )
    return PreviewObject(model=request.model, method=prepared.method, max_length=max_length, rows=shown)


def estimate(prepared: PreparedJob, project: Principal, services: Services) -> EstimateObject:
    """The estimate of a job: tokens from a sample of rows, memory from the library, time from earlier jobs."""
    recipe, rows = Recipe.parse(prepared.recipe), prepared.train_rows
    rendered = _rendered(prepared, _tokenizer(prepared, prepared.request.model))
    counted = library.trained_rows(rendered, type(recipe.method))
    lengths = library.count_lengths(counted, recipe.data.max_length, len(rendered) / rows)
    kept = (lengths.rows or 0) if lengths else 0
    steps, passes = library.run_steps(kept, recipe.training)
    found = _on_this_machine(recipe, lengths) if lengths else None
    tokens = round(lengths.mean * lengths.sequences * kept * passes) if lengths else 0
    if found is not None and found.tokens is not None:
        tokens = found.tokens  # sampled answers are trained on, too
    with services.database.reading() as session:
        jobs = JobRepository(session, project.project_id)
        rates = jobs.rates(prepared.base_model, prepared.method)
        place = waiting(session) + 1
    return EstimateObject(
        rows=rows,
        sampled_rows=len(rendered),
        dropped_rows=max(0, rows - kept),
        steps=steps or 0,
        tokens=tokens,
        seconds=round(tokens / median(rates), 1) if rates else None,
        based_on_jobs=len(rates),
        queue_position=place,
        memory=_memory(found) if found else None,
        fits=found.fits if found else None,
    )


def _on_this_machine(recipe: Recipe, lengths: library.Lengths) -> library.Estimate | None:
    """The library's estimate for one process, as jobs are trained; None for an unsupported model."""
    try:
        return library.estimate(recipe, lengths, device=library.at_hand())
    except library.EstimateError:
        return None


def _memory(found: library.Estimate) -> MemoryObject:
    held = {kind: size for kind, size in found.memory.kinds.items() if size}
    return MemoryObject(
        device=found.device.name,
        available_bytes=found.device.usable,
        peak_bytes=found.memory.peak,
        peak_during=found.memory.moment,
        bytes_by_kind=held,
        trainable_parameters=found.trainable,
        checkpoint_bytes=found.disk.checkpoint,
    )


def _rendered(prepared: PreparedJob, tokenizer: Any) -> list[list[TokenSequence]]:
    """The rendered sequences of a sample of the rows."""
    rendered = []
    for index, row in islice(_rows(prepared), 0, None, max(1, prepared.train_rows // SAMPLE_ROWS)):
        try:
            rendered.append(row.render(tokenizer))
        except DataError as error:
            raise _refused(index, error) from error
    return rendered


def _rows(prepared: PreparedJob) -> Iterator[tuple[int, Any]]:
    """(number from 1, row) of the training file, which was already validated."""
    kind: Any = schema_for(prepared.method)
    data = prepared.recipe["data"]
    lines = iter_lines(Path(data["train"]), columns=data["columns"])
    yield from enumerate(Inspection(kind).rows(lines), start=1)


def _tokenizer(prepared: PreparedJob, name: str) -> Any:
    model = prepared.recipe["model"]
    folder = Path(model["path"])
    try:
        return tokenizer_at(folder, model["chat_template"])
    except ModelError as error:
        message = f"The model {name!r} cannot render the rows: {error}"
        raise ApiError(400, message.replace(str(folder), name), param="model") from error


def _refused(index: int, error: DataError) -> ApiError:
    return ApiError(400, f"Row {index} of the training file: {error}", param="training_file")
