"""Which project may use a model of another."""

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base, Owned


class Permission(Owned, Base):
    """The owning project lets another one, the grantee, use a model. Gone with the model."""

    __tablename__ = "checkpoint_permissions"
    __table_args__ = (UniqueConstraint("model_id", "grantee_id"),)

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"), index=True)
    grantee_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    created_by: Mapped[str] = mapped_column(String(64))
    """The key that granted it."""
