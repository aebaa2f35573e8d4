"""Signing secrets of webhooks: sealed in the database, opened only to sign.

The key that opens them is in the home, so a copy of the database alone cannot sign anything.
"""

import base64
import secrets
from collections.abc import Sequence

import structlog
from sqlalchemy import select

from alignkit.errors import AlignkitError
from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.tables import Endpoint
from alignkit_server.vault import Vault

PREFIX = "whsec_"
SECRET_BYTES = 32
HINT_LENGTH = 4

log = structlog.get_logger()


def new_secret() -> str:
    """A new signing secret, not yet sealed."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def active_secrets(endpoint: Endpoint, vault: Vault) -> Sequence[str]:
    """The endpoint's secret, and the previous one while valid. Raises AlignkitError if they cannot be opened."""
    old = endpoint.old_secret if now() < (endpoint.old_secret_until or 0) else None
    return [vault.open(sealed) for sealed in (endpoint.secret, old) if sealed is not None]


def hint(endpoint: Endpoint, vault: Vault) -> str:
    """The end of the secret, by which people tell secrets apart; "????" if the vault cannot open it."""
    try:
        return f"{PREFIX}…{vault.open(endpoint.secret)[-HINT_LENGTH:]}"
    except AlignkitError:
        return f"{PREFIX}…????"


def seal_stored(database: Database, vault: Vault) -> None:
    """Seal secrets that an older version stored in plain text. Safe to call again."""
    plain = Endpoint.secret.startswith(PREFIX) | Endpoint.old_secret.startswith(PREFIX)
    with database.reading() as session:
        if session.scalar(select(Endpoint.seq).where(plain).limit(1)) is None:
            return
    with database.writing() as session:
        found = session.scalars(select(Endpoint).where(plain)).all()
        for endpoint in found:
            endpoint.secret = _sealed(endpoint.secret, vault)
            if endpoint.old_secret is not None:
                endpoint.old_secret = _sealed(endpoint.old_secret, vault)
    log.info("sealed the signing secrets of webhooks", endpoints=len(found))


def _sealed(secret: str, vault: Vault) -> str:
    return vault.seal(secret) if secret.startswith(PREFIX) else secret
