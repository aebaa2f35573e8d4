"""A model in another form: made in a child, kept on the disk for one download, counted while it is there."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from alignkit import export as library
from alignkit.errors import DiskFullError, ExportError, ModelError
from alignkit_server.catalog.model_catalog import FULL, own_model
from alignkit_server.children.exporting import Work, source_of, write_export
from alignkit_server.errors import ApiError, disk_full
from alignkit_server.ids import new_id
from alignkit_server.keys.service import Principal
from alignkit_server.limits.quotas import require_disk
from alignkit_server.models.archive import Archive
from alignkit_server.models.schemas import ArchiveOptions
from alignkit_server.pools.file_check_pool import in_child
from alignkit_server.reserve import require_room
from alignkit_server.services import Services
from alignkit_server.storage.leftovers import KEPT
from alignkit_server.storage.runs import bytes_on_disk

EXPORTS_AT_ONCE = 2
ADAPTER, MERGED = "adapter", "merged"
Gone = Callable[[], None]


def export_too_large(limits: str) -> ApiError:
    """The refusal of a model that takes more to write than a child may take."""
    return ApiError(
        400,
        f"The model takes more to write in this form than {limits}: download the adapter, and run `alignkit export` "
        "on a machine with more.",
        param="form",
        code="model_too_large",
    )


class ModelExports:
    """The archives of one project's models. Each call reads the disk, and may take as long as that does."""

    def __init__(self, services: Services, project: Principal) -> None:
        self._services = services
        self._project = project

    def find(self, name: str, wanted: ArchiveOptions) -> tuple[Work, str]:
        """(work, id of the job that made the model) for the model in a form; by default, in that of its training.

        Raises 403 for a base model, 404 for a missing one, and 400 for a form that it has not.
        """
        settings, catalog = self._services.settings, self._services.catalog
        if catalog.base(name) is not None:
            raise ApiError(
                403, f"{name!r} is a base model: only fine-tuned models can be downloaded.", param="model"
            )
        with self._services.database.reading() as session:
            model = own_model(session, name, self._project.project_id)
            folder, base, kind, job_id = Path(model.path), model.base_model, model.kind, model.job_id
        form = wanted.form or (MERGED if kind == FULL else ADAPTER)
        if kind == FULL and form == ADAPTER:
            raise ApiError(
                400,
                f"{name!r} has all its weights trained: it has no adapter.",
                param="form",
                code="no_adapter",
            )
        if not folder.is_dir():
            raise self._gone(name)
        target = settings.exports_dir / f"{job_id}.{new_id('')}" / name.replace(":", "_")
        own = folder if kind == FULL else catalog.path(base)
        hub_id = library.origin_in(catalog.path(base))
        return Work(name.replace(":", "_"), folder, own, base, hub_id, form, wanted.quantize, target), job_id

    def ready(self, work: Work) -> Archive | None:
        """The archive of files that are there already; None if the form has to be made."""
        try:
            if work.form == ADAPTER:
                return Archive(library.adapter_files(source_of(work)), work.name)
            if work.form == MERGED and work.base == work.folder:
                return Archive(library.full_files(source_of(work)), work.name)
        except FileNotFoundError as error:
            raise self._gone(work.name) from error
        except ExportError as error:
            raise _refused(work, error) from error
        return None

    def make(self, work: Work, job_id: str) -> Archive:
        """Write the form in a child, and open it. Its folder stays until `drop`."""
        services = self._services
        require_room(services.settings.root)
        size = bytes_on_disk({work.base, work.folder})
        with services.database.writing() as session:
            require_disk(session, self._project.project_id, services.settings, size)
        try:
            work.target.parent.mkdir(parents=True)
            in_child(write_export, work)
            services.runs.measure(job_id)
            return Archive({path.name: path for path in work.target.iterdir()}, work.name)
        except BaseException as error:
            self.drop(work, job_id)
            if isinstance(error, DiskFullError):
                raise disk_full() from error
            if isinstance(error, ExportError | ModelError):
                raise _refused(work, error) from error
            raise

    def keep(self, work: Work) -> str:
        """Leave what `make` wrote for a download by link, under the name that is returned."""
        kept = work.target.parent.with_name(work.target.parent.name + KEPT)
        work.target.parent.rename(kept)
        return kept.name

    def kept(self, work: Work, name: str) -> tuple[Archive, Work]:
        """What `keep` left under that name, and the work as it stands there. Raises 404 once it is gone."""
        work = work._replace(target=self._services.settings.exports_dir / name / work.name)
        try:
            return Archive({path.name: path for path in work.target.iterdir()}, work.name), work
        except FileNotFoundError as error:
            raise ApiError(
                404, "This link has been used: ask for another.", param="link", code="link_used"
            ) from error

    def drop(self, work: Work, job_id: str) -> None:
        """Remove what `make` wrote."""
        shutil.rmtree(work.target.parent, ignore_errors=True)
        self._services.runs.measure(job_id)

    def _gone(self, name: str) -> ApiError:
        return ApiError(
            404, f"The files of the model {name!r} no longer exist.", param="model", code="model_not_found"
        )


def _refused(work: Work, error: Exception) -> ApiError:
    """400 with the library's sentence, in which folders of this server are named as the client knows them."""
    message = str(error).replace(str(work.folder), work.name).replace(str(work.base), work.base_name)
    return ApiError(
        400, f"{message[:1].upper()}{message[1:].rstrip('.')}.", param="form", code="not_exportable"
    )


class ArchiveResponse(StreamingResponse):
    """Streams an archive; afterwards, also if the client hangs up, calls `gone` in a thread."""

    def __init__(self, archive: Archive, gone: Gone | None, **options: Any) -> None:
        super().__init__(archive.chunks(), **options)
        self._archive, self._gone = archive, gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the archive."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._archive.close()
            if self._gone is not None:
                await to_thread.run_sync(partial(self._gone))
