"""Keys: random 256-bit tokens of which only the hash is kept."""

import hashlib
import hmac
import secrets
from dataclasses import dataclass

from sqlalchemy.orm import Session

from server.clock import now
from server.database import Database
from server.ids import KEY, PROJECT, new_id
from server.keys.repository import KeyRepository
from server.keys.tables import ApiKey, Project

TOKEN_BYTES = 32
USED_RESOLUTION = 60
"""Seconds by which `last_used_at` may lag, so that not every request writes."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: the project that a request's key opens."""

    project_id: str
    project_name: str
    key_id: str


def issue_key(session: Session, project_name: str) -> str:
    """Make a key of that project, and the project where there is none; returns the token, kept nowhere."""
    repository = KeyRepository(session)
    project = repository.project(project_name)
    if project is None:
        project = Project(id=new_id(PROJECT), name=project_name, created_at=now())
        repository.add(project)
    token = f"sk-{secrets.token_urlsafe(TOKEN_BYTES)}"
    key = ApiKey(
        id=new_id(KEY), project_id=project.id, hash=_digest(token), created_at=now(), last_used_at=None
    )
    repository.add(key)
    return token


def authenticate(database: Database, token: str) -> Principal | None:
    """Whose key it is, or None. The time it takes tells nothing of the keys that exist: they are found by hash."""
    digest = _digest(token)
    with database.reading() as session:
        found = KeyRepository(session).by_hash(digest)
    if found is None or not hmac.compare_digest(found[0].hash, digest):
        return None
    key, project = found
    if key.last_used_at is None or now() - key.last_used_at >= USED_RESOLUTION:
        _mark_used(database, key.id)
    return Principal(project.id, project.name, key.id)


def _mark_used(database: Database, key_id: str) -> None:
    with database.writing() as session:
        key = KeyRepository(session).get(key_id)
        if key is not None:
            key.last_used_at = now()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
