"""The last steps of a job: publish its models, verify the served model, finish the job."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignkit.models.chat_templates import FILE as CHAT_TEMPLATE
from alignkit.models.chat_templates import read_template
from alignkit.models.trainable import ends_in
from alignkit.run.folder import RunFolder
from alignkit_server import tracing
from alignkit_server.catalog.model_catalog import ADAPTER, FULL, MERGED
from alignkit_server.catalog.names import model_name
from alignkit_server.engines.adapters import publish
from alignkit_server.engines.canary import CanaryReport, check
from alignkit_server.engines.command import engine_dtype
from alignkit_server.engines.engine import BACK_OFF_SECONDS
from alignkit_server.engines.errors import AdapterError, CanaryError, EngineError
from alignkit_server.engines.ranks import adapter_rank
from alignkit_server.engines.serving import AS_ADAPTER, quantization_in
from alignkit_server.engines.weights import (
    publish_weights,
    stored_dtype,
    unpublish_weights,
    weights_folder,
)
from alignkit_server.outages import Detached
from alignkit_server.reserve import require_room
from alignkit_server.runner.ledger import JobRecord
from alignkit_server.runner.merging import NotMergedError, merge
from alignkit_server.runner.result_csv import FILENAME, PURPOSE, result_file_id, results_csv
from alignkit_server.runner.step_services import JobFailedError, StepServices, folder_of, job_step, use

PROOFS = 3
"""Number of failed or killed engines after which the trained job fails too."""

PASSING = ("engine_failed", "engine_busy")


@job_step("publish")
@tracing.stage("publish")
def publish_models(job_id: str) -> None:
    """Publish the result, its other strengths and every checkpoint to where an engine finds them."""
    services, folder = use(), folder_of(job_id)
    message = "Publishing the model and its checkpoints"
    services.ledger.add_event(
        job_id, level="info", message=message, data={"phase": "publish"}, once="publish"
    )
    job = services.ledger.get(job_id)
    for path, variant in publishable(folder, kind_of(job)):
        _publish(services, job, path, variant)


def publishable(folder: RunFolder, kind: str) -> Iterator[tuple[Path, int | str | None]]:
    """Yield (path, variant) of a finished run's models: checkpoints by step, strengths by name, the result (None)."""
    checkpoints = {step_of(path): path for path in folder.checkpoints.glob("checkpoint-*")}
    yield from ((checkpoints[step], step) for step in sorted(checkpoints))
    yield from ((path, path.name) for path in sorted(folder.interpolated.glob("amount-*")))
    yield folder.model if kind == FULL else folder.adapter, None


def step_of(checkpoint: Path) -> int:
    """The step number in a checkpoint folder's name."""
    return int(checkpoint.name.rpartition("-")[2])


def _publish(services: StepServices, job: JobRecord, path: Path, variant: int | str | None = None) -> None:
    name, kind = name_of(job, variant), kind_of(job)
    step = variant if isinstance(variant, int) else None
    try:
        if kind == FULL:
            published = publish_weights(services.settings, path, model_name=name)
        else:
            template = _chat_template(job, path)
            published = publish(
                services.settings,
                path,
                model_name=name,
                base_model=job.base_model,
                chat_template=template,
                ends=_further_ends(services, job),
            )
    except AdapterError as error:
        raise JobFailedError("not_servable", str(error)) from error
    if variant is None and kind == ADAPTER and job.serving != AS_ADAPTER:
        kind = _merged(services, job, published, name)
    services.ledger.add_model(
        job.id, name=name, base_model=job.base_model, kind=kind, path=str(published), step=step
    )
    if step is not None:
        services.ledger.add_checkpoint(
            job.id, step=step, model_name=name, metrics={}, path=f"checkpoints/{path.name}"
        )


def _merged(services: StepServices, job: JobRecord, adapter: Path, name: str) -> str:
    """The kind of model that the adapter became: merged, or still an adapter, with an event that says why."""
    message = "Merging the adapter into the weights of its base"
    services.ledger.add_event(job.id, level="info", message=message, once="merge")
    try:
        merge(services, job, adapter, name)
    except NotMergedError as error:
        _stay_adapter(services, job, str(error))
        return ADAPTER
    return MERGED


def _stay_adapter(services: StepServices, job: JobRecord, why: str) -> None:
    message = f"The model is served as an adapter, not merged: {why}"
    services.ledger.add_event(job.id, level="warn", message=message, once="not merged")


def _chat_template(job: JobRecord, path: Path) -> str | None:
    """The chat template that the job named, as saved by its run; None if it used the model's own."""
    asked = (job.recipe.get("model") or {}).get("chat_template")
    kept = path / CHAT_TEMPLATE
    if asked is None:
        return None
    return read_template(str(kept) if kept.is_file() else asked)


def _further_ends(services: StepServices, job: JobRecord) -> list[int]:
    """The tokens that end an answer of the job's model, but not one of its base model."""
    known = ends_in(services.settings.models_dir / job.base_model)
    return [token for token in ends_in(folder_of(job.id).adapter) if token not in known]


def kind_of(job: JobRecord) -> str:
    """The kind of model that the job produces: an adapter or a full model."""
    return ADAPTER if job.recipe.get("lora", True) else FULL


def name_of(job: JobRecord, variant: int | str | None = None) -> str:
    """The name under which a model of the job is served: its result, or a variant of `model_name`."""
    return model_name(job.base_model, job.project_name, job.suffix, job.id, variant)


@job_step("canary")
@tracing.stage("canary")
def prove(job_id: str) -> None:
    """Verify with the canary that the engine answers like the trained model."""
    services = use()
    message = "Checking that the served model answers as trained"
    services.ledger.add_event(job_id, level="info", message=message, data={"phase": "engine"}, once="canary")
    job, folder = services.ledger.get(job_id), folder_of(job_id)
    try:
        report = _report_of_merged(services, job, folder) or _report(services, job, folder)
    except CanaryError as error:
        raise JobFailedError(
            "canary_failed", f"The model was trained but is not served as trained: {error}"
        ) from error
    level = "info" if report.conclusive else "warn"
    services.ledger.add_event(
        job_id, level=level, message=str(report), data={"canary": report.to_dict()}, once="canary report"
    )


def _report_of_merged(services: StepServices, job: JobRecord, folder: RunFolder) -> CanaryReport | None:
    """The canary's report of merged weights; None if the job has none, or none that serve, and stays an adapter."""
    name = name_of(job)
    if kind_of(job) == FULL or not weights_folder(services.settings, name).is_dir():
        return None
    try:
        return _report(services, job, folder, merged=True)
    except (CanaryError, JobFailedError) as error:
        services.engines.stop(name)
        unpublish_weights(services.settings, model_name=name)
        path = str(services.settings.adapters_dir / job.base_model / name)
        services.ledger.add_model(job.id, name=name, base_model=job.base_model, kind=ADAPTER, path=path)
        _stay_adapter(services, job, str(error))
        return None


def _report(
    services: StepServices, job: JobRecord, folder: RunFolder, *, merged: bool = False
) -> CanaryReport:
    """The canary's report. An engine that was killed is started again; an external or busy one is waited for."""
    own = merged or kind_of(job) == FULL
    engine = name_of(job) if own else job.base_model
    weights = weights_folder(services.settings, engine)
    dtypes = {engine_dtype(services.settings.engine.of(engine)), *([stored_dtype(weights)] if merged else [])}
    elsewhere = engine in services.settings.engine.urls
    deadline = time.monotonic() + services.settings.engine.start_timeout_seconds
    proofs = 0
    while True:
        proofs += 1
        try:
            rank = 0 if own else _rank(services, job)
            with services.engines.leased(engine, rank, job.project_id) as url:
                return check(
                    url,
                    base_model=None if own else job.base_model,
                    model_name=name_of(job),
                    canary=_canary(folder),
                    engine_dtype="float32" if dtypes == {"float32"} else "half",
                    quantized=merged and quantization_in(weights) is not None,
                )
        except EngineError as error:
            if services.stopping.is_set():
                raise Detached from error
            patient = (elsewhere or error.code == "engine_busy") and time.monotonic() < deadline
            if error.code not in PASSING or (proofs >= PROOFS and not patient):
                require_room(services.settings.root)  # on a full disk no engine starts, and no job fails
                message = f"The model was trained but cannot be served: {error}"
                raise JobFailedError(error.code, message) from error
        if services.stopping.wait(BACK_OFF_SECONDS):
            raise Detached


def _rank(services: StepServices, job: JobRecord) -> int:
    """The LoRA rank of the job's adapter."""
    return adapter_rank(str(services.settings.adapters_dir / job.base_model / name_of(job)))


def _canary(folder: RunFolder) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(folder.canary.read_text(encoding="utf-8"))
    return value


@job_step("finish")
@tracing.stage("finish")
def finish(job_id: str) -> None:
    """Set the job's fine-tuned model and mark the job succeeded."""
    services = use()
    result = folder_of(job_id).read_result() or {}
    name = name_of(services.ledger.get(job_id))
    result_file = _keep_results(services, job_id)
    services.ledger.transition(
        job_id,
        "succeeded",
        only_from=("running",),
        events=[
            ("info", f"New fine-tuned model created: {name}"),
            ("info", "The job has successfully completed"),
        ],
        fine_tuned_model=name,
        trained_tokens=result.get("trained_tokens"),
        result_files=[result_file],
        finished_at=int(time.time()),
        estimated_finish=None,
    )


def _keep_results(services: StepServices, job_id: str) -> str:
    """Store the job's metrics as a file of its project; returns the file's id."""
    file_id, content = result_file_id(job_id), results_csv(job_id, services.ledger.metrics(job_id))
    if services.settings.result_files == "base64":
        content = base64.b64encode(content)
    path = services.settings.files_dir / file_id
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)
    services.ledger.add_file(job_id, id=file_id, filename=FILENAME, purpose=PURPOSE, size=len(content))
    return file_id
