"""Projects and their API keys."""

from sqlalchemy import JSON, String
from sqlalchemy.orm import Mapped, mapped_column

from alignkit_server.tables.base import Base, Owned


class Project(Base):
    """A project, to which all other rows belong; `limits` has the values that differ from the service's."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(32), unique=True)
    created_at: Mapped[int]
    limits: Mapped[dict[str, int] | None] = mapped_column(JSON(none_as_null=True))
    reference_bytes: Mapped[int] = mapped_column(default=0, server_default="0")
    """Bytes of the log-probs under references and of the token ids that its jobs stored, as last measured."""


class ApiKey(Owned, Base):
    """An API key, stored as a hash; `hint` is its last characters, by which people tell keys apart."""

    __tablename__ = "api_keys"

    name: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64), unique=True)
    hint: Mapped[str] = mapped_column(String(8))
    scopes: Mapped[list[str]] = mapped_column(JSON)
    expires_at: Mapped[int | None]
    last_used_at: Mapped[int | None]
