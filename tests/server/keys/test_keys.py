"""Who gets in: the first key, what a key opens, and what is open without one."""

import asyncio
import stat
import sys
from pathlib import Path

import openai
import pytest
from fastapi.routing import APIRoute
from sqlalchemy import select, text, update

from alignkit_server.app import create_app
from alignkit_server.clock import now
from alignkit_server.database import Database
from alignkit_server.first_key import ensure_first_key
from alignkit_server.keys.authentication import OPEN_PATHS
from alignkit_server.keys.scopes import SCOPES, scopes_for
from alignkit_server.keys.service import authenticate, issue_key
from alignkit_server.migrate import migrate
from alignkit_server.page import paths as page
from alignkit_server.redaction import without_keys
from alignkit_server.settings import Settings
from alignkit_server.tables import ApiKey, AuditLog
from tests.server.support import Running


@pytest.fixture
def database(tmp_path: Path) -> Database:
    url = f"sqlite:///{tmp_path / 'test.sqlite'}"
    migrate(url)
    return Database(url)


def test_the_first_key_is_in_its_file_and_in_no_log(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure_first_key(database, Settings(home=tmp_path))
    file = tmp_path / "first-key"
    shown = capsys.readouterr()
    assert str(file) in shown.out
    assert file.read_text().strip() not in shown.out + shown.err


def test_the_first_key_is_shown_once_to_a_terminal_and_opens(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    settings = Settings(home=tmp_path, project="mine")
    ensure_first_key(database, settings)
    file = tmp_path / "first-key"
    token = file.read_text().strip()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    shown = capsys.readouterr().out
    assert token in shown
    assert str(file) in shown
    principal = asyncio.run(authenticate(database, token))
    assert principal is not None
    assert principal.project_name == "mine"
    file.unlink()
    ensure_first_key(database, settings)
    assert capsys.readouterr().out == ""
    assert not file.exists()


def test_a_start_without_a_usable_admin_s_key_makes_one(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The way back in: the last admin's key expired or was revoked."""
    settings = Settings(home=tmp_path)
    file = tmp_path / "first-key"
    ensure_first_key(database, settings)
    first = file.read_text().strip()
    with database.writing() as session:
        issue_key(session, "default")
        session.execute(update(ApiKey).values(expires_at=now()))
    ensure_first_key(database, settings)
    second = file.read_text().strip()
    assert second != first
    assert asyncio.run(authenticate(database, first)) is None
    principal = asyncio.run(authenticate(database, second))
    assert principal is not None
    assert principal.scopes == frozenset(SCOPES)
    assert second not in capsys.readouterr().out
    ensure_first_key(database, settings)
    assert file.read_text().strip() == second


def test_a_start_s_keys_and_project_are_in_the_audit_log(database: Database, tmp_path: Path) -> None:
    def entries() -> list[tuple[str, str | None, str]]:
        with database.reading() as session:
            rows = session.scalars(select(AuditLog).order_by(AuditLog.seq)).all()
            return [(row.type, row.actor_key_id, row.resource_id) for row in rows]

    ensure_first_key(database, Settings(home=tmp_path))
    with database.reading() as session:
        key = session.scalars(select(ApiKey)).one()
    assert entries() == [("project.created", None, key.project_id), ("api_key.created", None, key.id)]
    ensure_first_key(database, Settings(home=tmp_path))
    assert len(entries()) == 2
    with database.writing() as session:
        session.execute(update(ApiKey).values(expires_at=now()))
    ensure_first_key(database, Settings(home=tmp_path))
    assert [entry[:2] for entry in entries()[2:]] == [("api_key.created", None)]


def test_only_a_hash_of_the_key_is_stored(database: Database, tmp_path: Path) -> None:
    with database.writing() as session:
        token = issue_key(session, "mine")
        other = issue_key(session, "mine")
    assert token != other
    assert len(token) > 40
    database.close()
    for file in tmp_path.iterdir():
        assert token.encode() not in file.read_bytes()
        assert token.removeprefix("sk-").encode() not in file.read_bytes()


def test_the_use_of_a_key_is_noted(database: Database) -> None:
    with database.writing() as session:
        token = issue_key(session, "mine")
    query = text("SELECT last_used_at FROM api_keys")
    with database.reading() as session:
        assert session.scalar(query) is None
    assert asyncio.run(authenticate(database, token))
    with database.reading() as session:
        first = session.scalar(query)
    assert first
    assert asyncio.run(authenticate(database, token + "x")) is None


@pytest.mark.parametrize("given", ["sk-wrong", "sk-", "x" * 5000])
def test_a_wrong_key_is_refused_as_openai_does(service: Running, given: str) -> None:
    with pytest.raises(openai.AuthenticationError) as refused:
        service.client(given).models.list()
    assert refused.value.code == "invalid_api_key"
    assert refused.value.type == "invalid_request_error"
    assert given not in str(refused.value.body)


def test_without_a_key_everything_but_health_is_401(service: Running) -> None:
    routes = [route for route in create_app(service.settings).routes if isinstance(route, APIRoute)]
    assert len(routes) > 12
    paths = [(method, route.path) for route in routes for method in route.methods]
    with service.http(None) as http:
        for method, path in [*paths, ("GET", "/v1/unknown"), ("PATCH", "/v1/files"), ("GET", "/")]:
            answer = http.request(method, path)
            is_open = path in OPEN_PATHS or page.is_open(path)
            assert answer.status_code == (200 if is_open else 401), (method, path)
            if answer.status_code == 401:
                assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
                assert answer.headers["www-authenticate"] == "Bearer"
        assert http.get("/openapi.json").status_code == 200
        for header in ("Bearer", "Basic abc", "sk-abc"):
            assert http.get("/v1/models", headers={"authorization": header}).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "scopes"),
    [
        ("GET", "/v1/files", {"read"}),
        ("HEAD", "/v1/files", {"read"}),
        ("POST", "/v1/files", {"train"}),
        ("DELETE", "/v1/models/{model}", {"train"}),
        ("GET", "/v1/models", {"read", "inference"}),
        ("POST", "/v1/chat/completions", {"inference"}),
        ("POST", "/v1/completions", {"inference"}),
        ("POST", "/v1/responses", {"inference"}),
        ("GET", "/v1/organization/projects", {"admin"}),
        ("POST", "/v1/organization/projects", {"admin"}),
        ("GET", "/v1/something-new", {"read"}),
        ("PUT", "/v1/something-new", {"train"}),
        ("GET", "/v10/files", {"admin"}),
        ("GET", "/something-new", {"admin"}),
        ("GET", "/metrics", {"admin", "metrics"}),
        ("GET", "/v1/models/{model:path}/archive", {"read"}),
        ("POST", "/v1/fine_tuning/preview", {"read"}),
    ],
)
def test_what_a_request_needs(method: str, path: str, scopes: set[str]) -> None:
    assert scopes_for(method, path) == scopes


def test_keys_are_cut_out_of_text(database: Database) -> None:
    with database.writing() as session:
        tokens = [issue_key(session, "mine") for _ in range(20)]
    text = without_keys(" ".join(f"a/{token}?b={token}," for token in tokens))
    assert text == " ".join(["a/sk-***?b=sk-***,"] * 20)
    assert without_keys("a task-force, sk-short, risk") == "a task-force, sk-short, risk"
