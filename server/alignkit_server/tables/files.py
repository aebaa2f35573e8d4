"""Uploaded files; their bytes lie in the service's files folder under their id."""

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base, Owned


class File(Owned, Base):
    """What is known of an uploaded file."""

    __tablename__ = "files"

    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int]
    expires_at: Mapped[int | None]
