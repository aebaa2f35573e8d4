"""Links that download without a key: what they open, for how long, and for whom."""

from typing import Any

import httpx
import pytest
from openai import OpenAI

from alignkit_server.keys import links
from alignkit_server.tables import ApiKey
from alignkit_server.vault import Vault
from tests.server.support import Running, pairs, upload

KEY = b"MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
OTHER = b"MTExMTExMTExMTExMTExMTExMTExMTExMTExMTExMTE="


@pytest.fixture
def path(client: OpenAI) -> str:
    """The content of a file of the key's project."""
    return f"/v1/files/{upload(client, pairs(3))}/content"


@pytest.fixture
def link(service: Running, key: str, path: str) -> dict[str, Any]:
    """A link to that content."""
    with service.http(key) as http:
        found: dict[str, Any] = http.post(path).json()
    return found


def get(service: Running, path: str, link: str, **headers: str) -> httpx.Response:
    """The answer to somebody with a link and no key."""
    return httpx.get(f"{service.url}{path}", params={"link": link}, headers=headers, trust_env=False)


def test_a_link_gives_the_file_without_a_key(service: Running, path: str, link: dict[str, Any]) -> None:
    answer = get(service, path, link["link"])
    assert (answer.status_code, answer.content) == (200, pairs(3))
    assert (link["object"], link["bytes"]) == ("download_link", len(pairs(3)))
    assert "attachment" in answer.headers["content-disposition"]


def test_a_link_opens_nothing_but_its_own_path(
    service: Running, client: OpenAI, path: str, link: dict[str, Any]
) -> None:
    other = f"/v1/files/{upload(client, pairs(4))}/content"
    for wrong in (other, path.removesuffix("/content"), "/v1/models", "/v1/key"):
        assert get(service, wrong, link["link"]).status_code == 401
    url = f"{service.url}{path.removesuffix('/content')}"
    assert httpx.delete(url, params={"link": link["link"]}, trust_env=False).status_code == 401


def test_a_link_ends_with_its_key(service: Running, path: str, link: dict[str, Any]) -> None:
    opened = links.open_link(service.services.vault, link["link"], path)
    assert opened is not None
    with service.services.database.writing() as session:
        session.query(ApiKey).where(ApiKey.id == opened.key_id).delete()
    answer = get(service, path, link["link"])
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        401,
        "The link is not valid, or has expired: ask for another.",
    )


def test_a_link_needs_the_scope_that_its_key_has_by_then(
    service: Running, path: str, link: dict[str, Any]
) -> None:
    opened = links.open_link(service.services.vault, link["link"], path)
    assert opened is not None
    with service.services.database.writing() as session:
        session.query(ApiKey).where(ApiKey.id == opened.key_id).one().scopes = ["inference"]
    assert get(service, path, link["link"]).status_code == 403


def test_a_key_without_the_scope_gets_no_link(service: Running, project: str, path: str) -> None:
    with service.http(service.new_key(project, "inference")) as http:
        assert http.post(path).json()["error"]["code"] == "missing_scope"


def test_only_a_link_of_this_service_that_has_not_expired_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    vault, path = Vault(KEY), "/v1/files/file-1/content"
    link = links.link_to(vault, path, "key_1", 5, "made").link
    assert links.open_link(vault, link, path) == links.Opened("key_1", "made")
    assert links.open_link(Vault(OTHER), link, path) is None
    assert links.open_link(vault, vault.seal("a webhook's secret"), path) is None
    assert (
        links.open_link(
            vault, vault.seal('["other", 9999999999, "key_1", "/v1/files/file-1/content", null]'), path
        )
        is None
    )
    for text in ("", "x", link[:-4], "\u2713"):
        assert links.open_link(vault, text, path) is None
    monkeypatch.setattr(links, "now", lambda: 9_999_999_999)
    assert links.open_link(vault, link, path) is None
