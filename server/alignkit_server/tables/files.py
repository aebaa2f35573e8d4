"""Uploaded files; their bytes are in the service's files folder, named by their id."""

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base, Owned


class File(Owned, Base):
    """An uploaded file's metadata."""

    __tablename__ = "files"

    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int]
    expires_at: Mapped[int | None] = mapped_column(index=True)
