"""API keys: random 256-bit tokens of which only the hash and the last characters are stored."""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog
from sqlalchemy.orm import Session
from starlette.types import Scope

from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.ids import KEY, PROJECT, new_id
from alignkit_server.keys.repository import FoundKey, KeyRepository
from alignkit_server.keys.scopes import PROJECT_SCOPES, READ
from alignkit_server.tables import ApiKey, Project

TOKEN_BYTES = 32
HINT_LENGTH = 4
STAMP_SECONDS = 0.2
"""Seconds that a request waits for the use of its key to be stored."""
STAMP_RETRY_SECONDS = 10.0
"""Between two tries to store the use of the same key."""
USED_RESOLUTION = 60
"""Seconds by which `last_used_at` may lag, so that not every request writes to the database."""

_stamper = ThreadPoolExecutor(1, "key-stamps")
"""A pool apart from the request threads, which a database that cannot be written to would block."""
_stamped_again_at: dict[str, float] = {}
"""Key -> when its use may be stored next, by the monotonic clock."""
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller: the project of its key, the key's scopes, and the project's own limits."""

    project_id: str
    project_name: str
    key_id: str
    scopes: frozenset[str]
    limits: Mapping[str, int]

    @property
    def reads_rows(self) -> bool:
        """Whether the caller may see what files hold; errors quote rows to nobody else."""
        return READ in self.scopes


def caller_of(scope: Scope) -> Principal | None:
    """The caller of an ASGI request, once it is authenticated; None for a path that needs no key."""
    found: Principal | None = scope.get("state", {}).get("principal")
    return found


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
    return store_key(session, project_name, scopes, name)[1]


def store_key(session: Session, project_name: str, scopes: Sequence[str], name: str) -> tuple[ApiKey, str]:
    """Do what `issue_key` does; returns the key, too."""
    repository = KeyRepository(session)
    project = repository.project(project_name)
    if project is None:
        project = Project(id=new_id(PROJECT), name=project_name, created_at=now())
        repository.add(project)
    key, token = new_key(name, scopes)
    key.project_id = project.id
    repository.add(key)
    return key, token


async def authenticate(database: Database, token: str) -> Principal | None:
    """The caller of a token, or None if invalid. Its timing reveals no existing keys: they are looked up by hash."""
    digest = _digest(token)
    found = await database.ask(_by_hash, database, digest)
    if found is None or not hmac.compare_digest(found.hash, digest):
        return None
    return await _principal(database, found)


async def principal_of(database: Database, key_id: str) -> Principal | None:
    """The caller that a key stands for, or None if the key was revoked or has expired."""
    found = await database.ask(_by_id, database, key_id)
    return None if found is None else await _principal(database, found)


def is_valid(database: Database, key_id: str) -> bool:
    """Whether a key was neither revoked nor has expired. One query."""
    found = _by_id(database, key_id)
    return found is not None and not _expired(found)


def _expired(found: FoundKey) -> bool:
    return found.expires_at is not None and found.expires_at <= now()


async def _principal(database: Database, found: FoundKey) -> Principal | None:
    if _expired(found):
        return None
    if found.last_used_at is None or now() - found.last_used_at >= USED_RESOLUTION:
        await _stamp(database, found.id)
    return Principal(
        found.project_id, found.project_name, found.id, frozenset(found.scopes), found.limits or {}
    )


def _by_hash(database: Database, digest: str) -> FoundKey | None:
    with database.reading() as session:
        return KeyRepository(session).by_hash(digest)


def _by_id(database: Database, key_id: str) -> FoundKey | None:
    with database.reading() as session:
        return KeyRepository(session).by_id(key_id)


async def _stamp(database: Database, key_id: str) -> None:
    """Store the use of a key. A request waits for this only briefly, and is never refused because of it."""
    if time.monotonic() < _stamped_again_at.get(key_id, 0.0):
        return
    _stamped_again_at[key_id] = time.monotonic() + STAMP_RETRY_SECONDS
    writing = _stamper.submit(_mark_used, database, key_id)
    await asyncio.wait([asyncio.wrap_future(writing)], timeout=STAMP_SECONDS)


def _mark_used(database: Database, key_id: str) -> None:
    try:
        with database.writing() as session:
            key = KeyRepository(session).get(key_id)
            if key is not None:
                key.last_used_at = now()
    except Exception as error:
        log.warning("the use of a key is not stored", key_id=key_id, error=type(error).__name__)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()
