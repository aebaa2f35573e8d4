"""API keys: random 256-bit tokens of which only the hash and the last characters are stored."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anyio import to_thread
from sqlalchemy.orm import Session

from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.ids import KEY, PROJECT, new_id
from alignkit_server.keys.repository import FoundKey, KeyRepository
from alignkit_server.keys.scopes import PROJECT_SCOPES
from alignkit_server.tables import ApiKey, Project

TOKEN_BYTES = 32
HINT_LENGTH = 4
USED_RESOLUTION = 60
"""Seconds by which `last_used_at` may lag, so that not every request writes to the database."""


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller: the project of its key, the key's scopes, and the project's own limits."""

    project_id: str
    project_name: str
    key_id: str
    scopes: frozenset[str]
    limits: Mapping[str, int]


def new_key(name: str, scopes: Sequence[str], expires_at: int | None = None) -> tuple[ApiKey, str]:
    """A key that is not stored yet, and its token, which is never stored."""
    token = f"sk-{secrets.token_urlsafe(TOKEN_BYTES)}"
    key = ApiKey(
        id=new_id(KEY),
        name=name,
        hash=_digest(token),
        hint=token[-HINT_LENGTH:],
        scopes=list(scopes),
        created_at=now(),
        expires_at=expires_at,
        last_used_at=None,
    )
    return key, token


def issue_key(
    session: Session, project_name: str, scopes: Sequence[str] = PROJECT_SCOPES, name: str = ""
) -> str:
    """Create a key for that project, creating the project if missing; returns the token, which is never stored."""
    repository = KeyRepository(session)
    project = repository.project(project_name)
    if project is None:
        project = Project(id=new_id(PROJECT), name=project_name, created_at=now())
        repository.add(project)
    key, token = new_key(name, scopes)
    key.project_id = project.id
    repository.add(key)
    return token


async def authenticate(database: Database, token: str) -> Principal | None:
    """The caller of a token, or None if invalid. Its timing reveals no existing keys: they are looked up by hash."""
    digest = _digest(token)
    found = await database.ask(_by_hash, database, digest)
    if found is None or not hmac.compare_digest(found.hash, digest):
        return None
    if found.expires_at is not None and found.expires_at <= now():
        return None
    if found.last_used_at is None or now() - found.last_used_at >= USED_RESOLUTION:
        await to_thread.run_sync(_mark_used, database, found.id)
    return Principal(
        found.project_id, found.project_name, found.id, frozenset(found.scopes), found.limits or {}
    )


def _by_hash(database: Database, digest: str) -> FoundKey | None:
    with database.reading() as session:
        return KeyRepository(session).by_hash(digest)


def _mark_used(database: Database, key_id: str) -> None:
    with database.writing() as session:
        key = KeyRepository(session).get(key_id)
        if key is not None:
            key.last_used_at = now()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
