"""Models made by jobs; base models are folders and have no row."""

from sqlalchemy import ForeignKey, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base, Owned


class FineTunedModel(Owned, Base):
    """A published model. Its name contains its job's id, so that it is never reused."""

    __tablename__ = "models"

    name: Mapped[str] = mapped_column(String(255), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    base_model: Mapped[str] = mapped_column(String(96))
    kind: Mapped[str] = mapped_column(String(16))
    path: Mapped[str] = mapped_column(Text)
    step: Mapped[int | None]
