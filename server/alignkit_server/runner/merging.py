"""Merges a job's adapter into the weights of its base, in a child, and publishes them for an engine of their own."""

import shutil
from pathlib import Path

from alignkit.errors import AlignkitError, DiskFullError
from alignkit.models.origin import origin_in
from alignkit.redaction import scrub_paths
from alignkit_server.children.exporting import Work, write_export
from alignkit_server.children.runner import ChildRunner
from alignkit_server.engines.weights import file_name, publish_weights, weights_folder
from alignkit_server.errors import ApiError
from alignkit_server.limits.quotas import require_disk
from alignkit_server.outages import Detached
from alignkit_server.reserve import has_room
from alignkit_server.runner.ledger import JobRecord
from alignkit_server.runner.step_services import StepServices
from alignkit_server.storage.runs import bytes_on_disk


class NotMergedError(AlignkitError):
    """The adapter cannot be served as merged weights; the message says why."""


def merge(services: StepServices, job: JobRecord, adapter: Path, name: str) -> None:
    """Publish the adapter in the folder `adapter`, merged into its base, as the model `name`. Idempotent.

    Raises NotMergedError, with nothing left behind.
    """
    settings = services.settings
    if weights_folder(settings, name).is_dir():
        return
    base = settings.models_dir / job.base_model
    _require_room(services, job, bytes_on_disk([base]))
    folder = settings.exports_dir / f"{job.id}.merging"
    target = folder / file_name(name)
    shutil.rmtree(folder, ignore_errors=True)
    work = Work(file_name(name), adapter, base, job.base_model, origin_in(base), "merged", "auto", target)
    child = ChildRunner(
        memory_bytes=settings.export_bytes, seconds=settings.export_seconds, refusal=_too_large
    )
    try:
        folder.mkdir(parents=True)
        child.call(write_export, work, gone=services.stopping)
        publish_weights(settings, target, model_name=name, serving=job.serving)
    except DiskFullError as error:
        raise NotMergedError("the server's disk is full") from error
    except ApiError as error:
        if services.stopping.is_set():
            raise Detached from error
        raise NotMergedError(error.detail.message) from error
    except (AlignkitError, RuntimeError) as error:
        raise NotMergedError(scrub_paths(str(error))) from error
    finally:
        child.close()
        shutil.rmtree(folder, ignore_errors=True)


def _require_room(services: StepServices, job: JobRecord, size: int) -> None:
    """Raise NotMergedError if the disk, or the project's share of it, has no room for the merged weights."""
    if not has_room(services.settings.root, size):
        raise NotMergedError(f"the server's disk has no room for {size:,} bytes of weights")
    try:
        with services.ledger.database.writing() as session:
            require_disk(session, job.project_id, services.settings, size)
    except ApiError as error:
        raise NotMergedError("the project may not have so much on disk: its limit is disk_bytes") from error


def _too_large(limits: str) -> ApiError:
    return ApiError(400, f"merging takes more than {limits}", code="model_too_large")
