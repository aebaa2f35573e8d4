"""Uploads of a project: opened, filled part by part, then completed as a file or cancelled."""

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import Depends
from sqlalchemy.orm import Session

from alignkit_server.audit.record import Audit
from alignkit_server.clock import now
from alignkit_server.dependencies import ProjectDep, ServicesDep, SessionDep
from alignkit_server.errors import ApiError
from alignkit_server.files.incoming import Space
from alignkit_server.files.repository import FileRepository
from alignkit_server.files.service import FileService, present, require_data, safe_filename
from alignkit_server.files.upload import Upload as Received
from alignkit_server.files.upload import too_large, write_all
from alignkit_server.ids import PART, UPLOAD, new_id
from alignkit_server.keys.service import Principal
from alignkit_server.limits.quotas import require_bytes
from alignkit_server.services import Services
from alignkit_server.storage.leftovers import drop_parts, expire_uploads
from alignkit_server.tables import Upload, UploadPart
from alignkit_server.uploads.repository import PartRepository, UploadRepository
from alignkit_server.uploads.schemas import (
    MAX_PARTS,
    CompleteRequest,
    PartObject,
    UploadObject,
    UploadRequest,
)

LIFETIME_SECONDS = 3600
"""Lifetime of an upload, as at OpenAI: one hour."""
COPY_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Assembled:
    """The parts of an upload, joined in a temporary file; their size equals the announced size."""

    path: Path
    upload_id: str


class UploadService:
    """The uploads of one project."""

    def __init__(self, session: Session, project: Principal, services: Services) -> None:
        self._session = session
        self._project = project
        self._services = services
        self._settings = services.settings
        self._uploads = UploadRepository(session, project.project_id)
        self._parts = PartRepository(session, project.project_id)

    def create(self, request: UploadRequest) -> UploadObject:
        """Open an upload. Raises 429 if the project's files would exceed their quota with it."""
        if request.bytes > self._settings.max_upload_bytes:
            raise too_large(self._settings.max_upload_bytes, "bytes")
        require_bytes(self._session, self._project.project_id, self._settings, request.bytes)
        expire_uploads(
            self._session, self._settings.uploads_dir, Upload.project_id == self._project.project_id
        )
        created_at = now()
        upload = Upload(
            id=new_id(UPLOAD),
            filename=safe_filename(request.filename),
            purpose=request.purpose,
            bytes=request.bytes,
            status="pending",
            created_at=created_at,
            expires_at=created_at + LIFETIME_SECONDS,
            file_seconds=request.expires_after.seconds if request.expires_after else None,
        )
        self._uploads.add(upload)
        return self._present(upload)

    def add_part(self, upload_id: str, received: Received) -> PartObject:
        """Store a part. Parts may arrive in any order and simultaneously."""
        upload = self._uploads.lock(upload_id)
        _require_open(upload)
        count, size = self._parts.totals(upload_id)
        if size + received.size > self._settings.max_upload_bytes:
            raise too_large(self._settings.max_upload_bytes, "data")
        if count >= MAX_PARTS:
            raise ApiError(
                400, f"The upload {upload_id} already has {MAX_PARTS} parts, the maximum.", param="data"
            )
        require_bytes(
            self._session, self._project.project_id, self._settings, received.size, own=received.path
        )
        part = UploadPart(id=new_id(PART), upload_id=upload_id, bytes=received.size, created_at=now())
        self._parts.add(part)
        target = self._folder(upload_id) / part.id
        target.parent.mkdir(parents=True, exist_ok=True)
        received.path.replace(target)
        return PartObject(id=part.id, created_at=part.created_at, upload_id=upload_id)

    def complete(self, assembled: Assembled) -> UploadObject:
        """Store the joined parts as a file of the project. Raises 400 if the upload was closed meanwhile."""
        upload = self._uploads.lock(assembled.upload_id)
        _require_open(upload)
        self._drop_parts(upload.id)  # before the file counts: both would not fit
        files = FileService(self._session, self._project, self._services)
        file = files.keep(assembled.path, upload.filename, upload.purpose, upload.bytes, upload.file_seconds)
        if not self._uploads.close(upload, "completed", file.id):
            raise _closed(upload)
        return self._present(upload)

    def cancel(self, upload_id: str) -> UploadObject:
        """Cancel an open upload and delete its parts."""
        upload = self._uploads.lock(upload_id)
        _require_open(upload)
        if not self._uploads.close(upload, "cancelled"):
            raise _closed(upload)
        self._drop_parts(upload_id)
        Audit(self._session, self._project).record("upload.cancelled", upload_id, filename=upload.filename)
        return self._present(upload)

    def _drop_parts(self, upload_id: str) -> None:
        drop_parts(self._session, self._settings.uploads_dir, upload_id)

    def _folder(self, upload_id: str) -> Path:
        return self._settings.uploads_dir / upload_id

    def _present(self, upload: Upload) -> UploadObject:
        file = None
        if upload.file_id is not None:
            file = FileRepository(self._session, self._project.project_id).find(upload.file_id)
        return UploadObject(
            id=upload.id,
            bytes=upload.bytes,
            created_at=upload.created_at,
            expires_at=upload.expires_at,
            filename=upload.filename,
            purpose=upload.purpose,
            status=status_of(upload),
            file=present(file) if file else None,
        )


def assemble(upload_id: str, request: CompleteRequest, project: Principal, services: Services) -> Assembled:
    """Join the named parts in order. Raises ApiError if the result is not the file that was announced.

    No transaction is open meanwhile, because copying gigabytes takes a while. The caller removes the result's path.
    """
    with services.database.reading() as session:
        upload = UploadRepository(session, project.project_id).get(upload_id)
        parts = {part.id: part for part in PartRepository(session, project.project_id).of(upload_id)}
    _require_open(upload)
    _require_parts(upload, parts.keys(), request.part_ids)
    size = sum(parts[part_id].bytes for part_id in request.part_ids)
    if size != upload.bytes:
        raise ApiError(
            400,
            f"part_ids: expected parts with {upload.bytes} bytes in total, as announced, found {size}.",
            param="part_ids",
            code="upload_size_mismatch",
        )
    folder = services.settings.uploads_dir / upload_id
    with Space(services, project.project_id).copy(size) as copy:
        digest = _join([folder / part_id for part_id in request.part_ids], copy.descriptor)
        _require_sum(digest, request.md5)
        # The parts may be another key's.
        require_data(copy.path, upload.filename, upload.purpose, services.settings, quotes=project.reads_rows)
    return Assembled(copy.path, upload_id)


def _require_sum(digest: str, expected: str | None) -> None:
    """Raise 400 if the joined parts are not the file whose checksum the client has given."""
    if expected is not None and expected.lower() != digest:
        raise ApiError(
            400,
            f"md5: the joined parts have the checksum {digest}, expected {expected.lower()}.",
            param="md5",
            code="upload_checksum_mismatch",
        )


def _require_parts(upload: Upload, known: Collection[str], part_ids: Sequence[str]) -> None:
    for number, part_id in enumerate(part_ids):
        if part_id not in known:
            raise ApiError(
                400,
                f"part_ids.{number}: the upload {upload.id} has no part {part_id!r}.",
                param=f"part_ids.{number}",
                code="invalid_value",
            )
    if len(set(part_ids)) < len(part_ids):
        raise ApiError(400, "part_ids: a part is listed twice.", param="part_ids", code="invalid_value")


def _join(parts: Sequence[Path], descriptor: int) -> str:
    """Write the bytes of all parts to the disk, and return their MD5."""
    digest = hashlib.md5(usedforsecurity=False)
    try:
        for part in parts:
            with part.open("rb") as file:
                while chunk := file.read(COPY_BYTES):
                    digest.update(chunk)
                    write_all(descriptor, chunk)
    except FileNotFoundError as error:  # cancelled or completed meanwhile
        raise ApiError(
            400, "The upload was closed while it was being completed.", code="upload_closed"
        ) from error
    os.fsync(descriptor)
    return digest.hexdigest()


def status_of(upload: Upload) -> str:
    """The current status: an open upload past its time has expired."""
    return "expired" if upload.status == "pending" and upload.expires_at <= now() else upload.status


def _require_open(upload: Upload) -> None:
    if status_of(upload) != "pending":
        raise _closed(upload)


def _closed(upload: Upload) -> ApiError:
    return ApiError(
        400,
        f"The upload {upload.id} is {status_of(upload)}: expected a pending upload.",
        code="upload_closed",
    )


async def get_service(session: SessionDep, project: ProjectDep, services: ServicesDep) -> UploadService:
    """The service for one request."""
    return UploadService(session, project, services)


UploadServiceDep = Annotated[UploadService, Depends(get_service)]
