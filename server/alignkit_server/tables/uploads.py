"""Uploads in parts; a part's bytes are in the upload's folder, named by the part's id."""

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base, Owned


class Upload(Owned, Base):
    """A file that is uploaded in parts. `status` changes only by compare-and-set; expiry depends on the clock."""

    __tablename__ = "uploads"

    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int]
    status: Mapped[str] = mapped_column(String(16))
    expires_at: Mapped[int]
    file_seconds: Mapped[int | None]
    """Lifetime of the resulting file in seconds; null to keep it."""
    file_id: Mapped[str | None] = mapped_column(String(64))


class UploadPart(Owned, Base):
    """A chunk of an upload."""

    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    bytes: Mapped[int]
