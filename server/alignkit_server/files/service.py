"""Files of a project: the bytes on disk under the file's id, everything else in the database."""

import re
from pathlib import Path
from typing import Annotated

from fastapi import Depends
from sqlalchemy.orm import Session

from alignkit.data.structure import require_rows
from alignkit.errors import DataError
from alignkit_server.audit.record import Audit
from alignkit_server.clock import now
from alignkit_server.database import after_commit
from alignkit_server.dependencies import ProjectDep, ServicesDep, SessionDep
from alignkit_server.errors import ApiError, in_use, shorten
from alignkit_server.files.repository import FileRepository
from alignkit_server.files.schemas import FINE_TUNE, PURPOSES, FileDeleted, FileObject
from alignkit_server.files.upload import Upload, missing
from alignkit_server.ids import FILE, new_id
from alignkit_server.keys.service import Principal
from alignkit_server.limits.quotas import require_bytes
from alignkit_server.pagination import CursorListObject, PageQuery
from alignkit_server.services import Services
from alignkit_server.settings import Settings
from alignkit_server.storage.leftovers import purge_files
from alignkit_server.tables import File

EXPIRY_SECONDS = (3600, 2592000)
"""OpenAI's limits: one hour to thirty days."""
DEFAULT_EXPIRY_SECONDS = {"batch": 2592000}
"""Default lifetime per purpose; files of other purposes are kept until they are deleted."""
FILENAME_LENGTH = 255
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class FileService:
    """The files of one project."""

    def __init__(self, session: Session, project: Principal, services: Services) -> None:
        self._session = session
        self._project = project
        self._settings = services.settings
        self._folder = services.settings.files_dir
        self._files = FileRepository(session, project.project_id)

    def create(self, upload: Upload) -> FileObject:
        """Store an upload; the caller removes its temporary file.

        Raises ApiError if a field is invalid, or if a file for fine-tuning has no rows.
        """
        purpose = _purpose(upload.fields)
        seconds = _expiry_seconds(upload.fields)
        require_data(upload.path, upload.filename, purpose, self._settings, quotes=True)
        return self.keep(upload.path, upload.filename, purpose, upload.size, seconds)

    def keep(self, path: Path, filename: str, purpose: str, size: int, seconds: int | None) -> FileObject:
        """Move the file at `path` into the project; it expires after `seconds`, if given.

        Raises 429 if the project's files would exceed its quota.
        """
        created_at = now()
        if seconds is None:
            seconds = DEFAULT_EXPIRY_SECONDS.get(purpose)
        file = File(
            id=new_id(FILE),
            filename=safe_filename(filename),
            purpose=purpose,
            bytes=size,
            created_at=created_at,
            expires_at=None if seconds is None else created_at + seconds,
        )
        self._purge_expired()
        require_bytes(self._session, self._project.project_id, self._settings, size, own=path)
        self._files.add(file)
        path.replace(self._path(file.id))
        return present(file)

    def list(self, purpose: str | None, query: PageQuery) -> CursorListObject[FileObject]:
        """A page of files."""
        return CursorListObject.of(self._files.list(purpose, query), present)

    def get(self, file_id: str) -> FileObject:
        """One file."""
        return present(self._files.get(file_id))

    def content(self, file_id: str) -> tuple[Path, str]:
        """The path of the file's bytes, and the name it was uploaded under."""
        file = self._files.get(file_id)
        return self._path(file.id), file.filename

    def delete(self, file_id: str) -> FileDeleted:
        """Delete a file. Raises 409 while an unfinished job uses it."""
        self._files.lock(file_id)
        file = self._files.get(file_id)
        job_id = self._files.user_of(file_id)
        if job_id is not None:
            raise in_use("file", file_id, job_id, param="file_id")
        self._remove(file)
        Audit(self._session, self._project).record("file.deleted", file_id, filename=file.filename)
        return FileDeleted(id=file_id)

    def _purge_expired(self) -> None:
        """Remove a batch of what expired; the sweeper takes the rest."""
        purge_files(self._session, self._folder, File.project_id == self._project.project_id)

    def _remove(self, file: File) -> None:
        path = self._path(file.id)
        self._files.delete(file)
        after_commit(self._session, lambda: path.unlink(missing_ok=True))

    def _path(self, file_id: str) -> Path:
        return self._folder / file_id


def require_data(path: Path, filename: str, purpose: str, settings: Settings, *, quotes: bool) -> None:
    """Raise 400 if a file for fine-tuning cannot hold rows, whatever the method; takes well under a second.

    With `quotes`, the message quotes the file.
    """
    if purpose != FINE_TUNE:
        return
    try:
        require_rows(path, max_line_bytes=settings.max_line_bytes)
    except DataError as error:
        name, why = safe_filename(filename), str(error) if quotes else getattr(error, "plain", error)
        raise ApiError(
            400,
            f"The file {name!r} cannot be used for fine-tuning: {why}.",
            param="file",
            code="invalid_file",
        ) from error


def present(file: File) -> FileObject:
    """The file as an API object."""
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at,
        expires_at=file.expires_at,
        filename=file.filename,
        purpose=file.purpose,
    )


def safe_filename(given: str) -> str:
    """The last part of a path (of any operating system), printable, at most 255 characters; "file" if empty."""
    last = _UNPRINTABLE.sub("", re.split(r"[/\\]", given)[-1]).strip(" .")
    return last[:FILENAME_LENGTH] or "file"


def _purpose(fields: dict[str, str]) -> str:
    if "purpose" not in fields:
        raise missing("purpose")
    if fields["purpose"] not in PURPOSES:
        raise ApiError(
            400,
            f"purpose: expected one of {', '.join(PURPOSES)}, found {shorten(fields['purpose'])}.",
            param="purpose",
            code="invalid_value",
        )
    return fields["purpose"]


def _expiry_seconds(fields: dict[str, str]) -> int | None:
    """The file's lifetime, from `expires_after[anchor]` and `expires_after[seconds]`."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise ApiError(
            400,
            f"expires_after.anchor: expected 'created_at', found {shorten(anchor)}.",
            param="expires_after.anchor",
            code="invalid_value",
        )
    least, most = EXPIRY_SECONDS
    if seconds is None or not re.fullmatch(r"[0-9]{1,9}", seconds) or not least <= int(seconds) <= most:
        raise ApiError(
            400,
            f"expires_after.seconds: expected a whole number from {least} to {most}, found {shorten(seconds)}.",
            param="expires_after.seconds",
            code="invalid_value",
        )
    return int(seconds)


async def get_service(session: SessionDep, project: ProjectDep, services: ServicesDep) -> FileService:
    """The service for one request."""
    return FileService(session, project, services)


FileServiceDep = Annotated[FileService, Depends(get_service)]
