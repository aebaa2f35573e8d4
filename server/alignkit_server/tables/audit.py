"""Who did what to keys, projects, permissions and things that are gone."""

from typing import Any

from sqlalchemy import JSON, String
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base


class AuditLog(Base):
    """One action, stored in the transaction that did it. It outlives what it names, so it has no foreign key."""

    __tablename__ = "audit_logs"

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    effective_at: Mapped[int] = mapped_column(index=True)
    type: Mapped[str] = mapped_column(String(64), index=True)
    project_id: Mapped[str] = mapped_column(String(64), index=True)
    """Whose thing it was."""
    project_name: Mapped[str] = mapped_column(String(32))
    actor_key_id: Mapped[str | None] = mapped_column(String(64), index=True)
    """The key that asked; null for the service itself."""
    actor_project_id: Mapped[str | None] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(255), index=True)
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
