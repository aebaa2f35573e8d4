"""Inspects a job before it is created: its rows as the trainer sees them, its tokens, steps and memory."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from alignkit import estimate as library
from alignkit.errors import DataError
from alignkit.recipe import Recipe
from alignkit_server.children import work
from alignkit_server.errors import ApiError
from alignkit_server.executors.registry import gpus_of, job_device
from alignkit_server.jobs.data_files import naming_model
from alignkit_server.jobs.preparation import PreparedJob
from alignkit_server.jobs.queue import waiting
from alignkit_server.jobs.repository import JobRepository
from alignkit_server.keys.service import Principal
from alignkit_server.pools.file_check_pool import on_file
from alignkit_server.preflight.schemas import (
    CostObject,
    EstimateObject,
    MemoryObject,
    PreviewObject,
    PreviewRequest,
    PreviewRow,
)
from alignkit_server.services import Services
from alignkit_server.settings import Settings

SAMPLE_ROWS = 2000
"""Number of rows whose tokens are counted: enough for a mean, few enough for a request."""


def preview(request: PreviewRequest, prepared: PreparedJob) -> PreviewObject:
    """The requested rows, rendered."""
    max_length = int(prepared.recipe["data"]["max_length"])
    found = _on_rows(work.preview, prepared, (request.offset, request.offset + request.rows), quotes=True)
    shown = [PreviewRow.model_validate(row) for row in found]
    return PreviewObject(model=request.model, method=prepared.method, max_length=max_length, rows=shown)


def estimate(prepared: PreparedJob, project: Principal, services: Services) -> EstimateObject:
    """The estimate of a job: tokens from a sample of rows, memory from the library, time from earlier jobs."""
    recipe, rows = Recipe.parse(prepared.recipe), prepared.train_rows
    which = (max(1, rows // SAMPLE_ROWS), rows)
    lengths, sampled = _on_rows(work.sample, prepared, which, quotes=project.reads_rows)
    kept = (lengths.rows or 0) if lengths else 0
    steps, passes = library.run_steps(kept, recipe.training)
    found = _on_its_device(recipe, lengths, services) if lengths else None
    tokens = round(lengths.mean * lengths.sequences * kept * passes) if lengths else 0
    if found is not None and found.tokens is not None:
        tokens = found.tokens  # sampled answers are trained on, too
    with services.database.reading() as session:
        jobs = JobRepository(session, project.project_id)
        rates = jobs.rates(prepared.base_model, prepared.method)
        place = waiting(session) + 1
    seconds = _seconds(tokens, rates, found)
    return EstimateObject(
        rows=rows,
        sampled_rows=sampled,
        dropped_rows=max(0, rows - kept),
        steps=steps or 0,
        tokens=tokens,
        seconds=seconds,
        based_on_jobs=len(rates),
        cost=_cost(seconds, gpus_of(prepared.recipe, services.settings), services.settings),
        queue_position=place,
        memory=_memory(found) if found else None,
        fits=found.fits if found else None,
    )


def _on_its_device(recipe: Recipe, lengths: library.Lengths, services: Services) -> library.Estimate | None:
    """The library's estimate for one process, as jobs are trained; None for an unsupported model."""
    device = library.at_hand()
    if (own := job_device(services.settings)) is not None:
        device = replace(device, memory=own.memory)
    try:
        return library.estimate(recipe, lengths, device=device)
    except library.EstimateError:
        return None


def _seconds(tokens: int, rates: Sequence[float], found: library.Estimate | None) -> float | None:
    """Predicted seconds: from the median rate of earlier jobs, else from the device's data sheet."""
    if rates:
        return round(tokens / median(rates), 1)
    return None if found is None or found.seconds is None else round(found.seconds, 3)


def _cost(seconds: float | None, gpus: int, settings: Settings) -> CostObject | None:
    """The cost of so many seconds on so many GPUs; None without a price or a time."""
    price = settings.price_per_gpu_hour
    if price is None or seconds is None:
        return None
    amount = seconds / 3600 * gpus * price
    return CostObject(amount=amount, currency=settings.currency, per_gpu_hour=price, gpus=gpus)


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


def _on_rows(function: Any, prepared: PreparedJob, which: tuple[int, int], *, quotes: bool) -> Any:
    """The result of a function of `work` on the rows of the training file; with `quotes`, an error quotes them."""
    data, model = prepared.recipe["data"], prepared.recipe["model"]
    folder = Path(model["path"])
    rows = work.Rows(
        prepared.method,
        data["columns"],
        folder,
        model["chat_template"],
        int(data["max_length"]),
        which,
        quotes,
    )
    try:
        with naming_model(folder, prepared.request.model):
            return on_file(Path(data["train"]), function, rows)
    except DataError as error:
        raise ApiError(400, str(error), param="training_file") from error
