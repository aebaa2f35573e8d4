"""Projects and the keys that open them."""

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from server.database import Base, Owned


class Project(Base):
    """What every other row belongs to."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(32), unique=True)
    created_at: Mapped[int]


class ApiKey(Owned, Base):
    """A key, known by its hash only."""

    __tablename__ = "api_keys"

    hash: Mapped[str] = mapped_column(String(64), unique=True)
    last_used_at: Mapped[int | None]
