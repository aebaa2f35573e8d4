"""Servers that share the database."""

from sqlalchemy import Float, String
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base


class Peer(Base):
    """A server: `id` identifies it in the durable queue; `pid` and `started` identify its process."""

    __tablename__ = "servers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    started: Mapped[float] = mapped_column(Float)
    """Creation time of the process, by its machine's clock."""
    beat_at: Mapped[int]
    """Time of the last heartbeat; 0 after the server has stopped."""
