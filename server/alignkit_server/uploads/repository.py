"""Queries on uploads and their parts."""

from collections.abc import Sequence

from sqlalchemy import func, select, update

from alignkit_server.clock import now
from alignkit_server.scoped import ScopedRepository
from alignkit_server.tables import Upload, UploadPart


class UploadRepository(ScopedRepository[Upload]):
    """One project's uploads."""

    table = Upload
    kind = "upload"

    def lock(self, id: str) -> Upload:  # noqa: A002 - the column's name
        """The upload, locked against changes by others until the end of the transaction. Raises 404 if missing."""
        self._session.execute(self.select().where(Upload.id == id).with_for_update())
        return self.get(id)

    def close(self, upload: Upload, status: str, file_id: str | None = None) -> bool:
        """Set a final status if the upload is still open; returns whether it was."""
        still_open = (Upload.seq == upload.seq, Upload.status == "pending", Upload.expires_at > now())
        change = update(Upload).where(*still_open).values(status=status, file_id=file_id)
        done = self._session.execute(change.returning(Upload.seq)).all()
        self._session.refresh(upload)
        return bool(done)


class PartRepository(ScopedRepository[UploadPart]):
    """One project's parts of uploads."""

    table = UploadPart
    kind = "upload part"

    def of(self, upload_id: str) -> Sequence[UploadPart]:
        """The parts of an upload, in order of arrival."""
        return self._session.scalars(
            self.select().where(UploadPart.upload_id == upload_id).order_by(UploadPart.seq)
        ).all()

    def totals(self, upload_id: str) -> tuple[int, int]:
        """Number and total bytes of an upload's parts."""
        parts = self.select().where(UploadPart.upload_id == upload_id).subquery()
        row = self._session.execute(
            select(func.count(), func.coalesce(func.sum(parts.c.bytes), 0)).select_from(parts)
        )
        count, size = row.one()
        return int(count), int(size)
