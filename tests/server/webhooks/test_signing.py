"""Signing secrets are sealed where they are stored, those of older versions from the next start on."""

from pathlib import Path

import pytest
from openai import OpenAI
from sqlalchemy import text

from alignkit_server.app import open_services
from alignkit_server.database import Database
from alignkit_server.keys.service import issue_key
from alignkit_server.migrate import migrate
from alignkit_server.settings import Settings
from alignkit_server.tables import Endpoint, Project
from alignkit_server.vault import open_vault
from alignkit_server.webhooks.signing import PREFIX, active_secrets, hint, new_secret
from tests.server.support import Running

EVENT = "fine_tuning.job.succeeded"
URL = "https://example.com/hook"


def stored(database: Database) -> list[str]:
    """Every secret in the database, as it stands there."""
    with database.reading() as session:
        rows = session.execute(text("SELECT secret, old_secret FROM webhook_endpoints"))
        return [value for row in rows for value in row if value is not None]


def test_neither_secret_is_stored_as_it_is(service: Running, client: OpenAI) -> None:
    made = client.webhooks.create(event_types=[EVENT], name="mine", url=URL)
    new = client.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True)
    found = stored(service.services.database)
    assert found
    for secret in (made.signing_secret, new.signing_secret):
        assert secret.startswith(PREFIX)
        assert not any(secret.removeprefix(PREFIX) in value for value in found)
    assert client.webhooks.retrieve(made.id).signing_secret_hint.endswith(new.signing_secret[-4:])


def test_secrets_of_an_older_version_are_sealed_by_the_next_start(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    migrate(settings.sqlalchemy_url)
    database, secret, old = Database(settings.sqlalchemy_url), new_secret(), new_secret()
    with database.writing() as session:
        issue_key(session, "mine")
        endpoint = Endpoint(id="we_a", created_at=1, updated_at=1, name="a", url=URL, event_types=[EVENT])
        endpoint.project_id = session.query(Project).one().id
        endpoint.secret, endpoint.old_secret, endpoint.old_secret_until = secret, old, 2**40
        session.add(endpoint)
    for _ in range(2):
        with open_services(settings, None, lambda *_: None):
            assert not any(PREFIX in value for value in stored(database))
    with database.reading() as session:
        endpoint = session.query(Endpoint).one()
    assert active_secrets(endpoint, open_vault(tmp_path)) == [secret, old]
    database.close()


def test_a_lost_key_is_named_and_hides_nothing_else(
    service: Running, client: OpenAI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = client.webhooks.create(event_types=[EVENT], name="mine", url=URL)
    monkeypatch.setattr(service.services, "vault", open_vault(tmp_path))
    assert client.webhooks.retrieve(made.id).signing_secret_hint == "whsec_…????"
    with pytest.raises(Exception, match="Rotate its secret"):
        client.webhooks.test(made.id, event_type=EVENT)
    new = client.webhooks.rotate_secret(made.id)
    with service.services.database.reading() as session:
        endpoint = session.query(Endpoint).where(Endpoint.id == made.id).one()
    assert hint(endpoint, service.services.vault) == f"whsec_…{new.signing_secret[-4:]}"
