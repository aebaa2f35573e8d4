"""Servers that share the database."""

from sqlalchemy import Float, String
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base


class Peer(Base):
    """A server: `id` names it to the durable queue, and `pid` and `started` to its machine."""

    __tablename__ = "servers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    started: Mapped[float] = mapped_column(Float)
    """When the process was created, by its machine's clock."""
    beat_at: Mapped[int]
    """When it last said that it lives; 0 once it has stopped."""
