"""The page's documents and files: open to a browser without a key, under a policy that runs nothing else."""

import re

import httpx
import pytest

from alignkit_server.page.routes import FILES
from tests.server.support import Running, create_job

DOCUMENTS = ("/", "/docs")


@pytest.fixture(scope="module")
def http(service: Running) -> httpx.Client:
    return service.http(None)


@pytest.mark.parametrize("path", DOCUMENTS)
def test_a_document_needs_no_key(http: httpx.Client, path: str) -> None:
    answer = http.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert http.head(path).status_code == 200


@pytest.mark.parametrize("path", DOCUMENTS)
def test_a_document_runs_scripts_of_this_server_alone(http: httpx.Client, path: str) -> None:
    policy = dict(
        part.strip().split(" ", 1) for part in http.get(path).headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"


def test_the_page_allows_no_inline_style_and_no_text_as_markup(http: httpx.Client) -> None:
    policy = http.get("/").headers["content-security-policy"]
    assert "style-src 'self';" in policy
    assert "require-trusted-types-for 'script'" in policy


@pytest.mark.parametrize("document", ["index.html", "docs.html"])
def test_a_document_names_only_files_that_are_served(http: httpx.Client, document: str) -> None:
    text = (FILES / document).read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert named
    assert [path for path in named if http.get(f"/{path}").status_code != 200] == []
    assert "<script>" not in text
    assert "style=" not in text


def test_a_module_imports_only_files_that_are_there() -> None:
    for module in [*FILES.glob("app/**/*.js"), *FILES.glob("vendor/*.mjs")]:
        imported = re.findall(r'(?:from|import) ?"(\.[^"]+)"', module.read_text(encoding="utf-8"))
        missing = [path for path in imported if not (module.parent / path).is_file()]
        assert missing == [], module


def test_no_file_of_the_page_names_another_host() -> None:
    allowed = {"http://www.w3.org/2000/svg"}
    for file in FILES.glob("**/*.*"):
        if "vendor" not in file.parts:
            assert set(re.findall(r"https?://[^\s\"'`<]+", file.read_text(encoding="utf-8"))) <= allowed, file


def test_a_file_is_asked_for_again_and_not_sent_twice(http: httpx.Client) -> None:
    first = http.get("/page/app/main.js")
    assert first.headers["content-type"].startswith(("text/javascript", "application/javascript"))
    assert first.headers["cache-control"] == "no-cache"
    assert first.headers["x-content-type-options"] == "nosniff"
    again = http.get("/page/app/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/page/../routes.py",
        "/page/%2e%2e/routes.py",
        "/page/..%2froutes.py",
        "/page//etc/passwd",
        "/page/",
        "/page/app",
    ],
)
def test_nothing_beside_the_files_is_served(service: Running, http: httpx.Client, path: str) -> None:
    answer = http.send(httpx.Request("GET", httpx.URL(service.url).copy_with(raw_path=path.encode())))
    assert answer.status_code in {401, 404}


@pytest.mark.parametrize(
    "path", ["/page/../v1/models", "/page/%2e%2e/v1/models", "//v1/models", "/docs/", "/pages"]
)
def test_no_way_round_the_key_leads_through_the_page(service: Running, http: httpx.Client, path: str) -> None:
    answer = http.send(httpx.Request("GET", httpx.URL(service.url).copy_with(raw_path=path.encode())))
    assert answer.status_code in {401, 404}


def test_a_key_is_told_what_it_may_do(service: Running) -> None:
    with service.http(service.new_key("page-key", "inference")) as http:
        key = http.get("/v1/key").json()
    assert key["object"] == "api_key"
    assert key["scopes"] == ["inference"]
    assert key["project"]["name"] == "page-key"
    assert key["redacted_value"].startswith("sk-…")
    assert key["usage"] == {
        "jobs_queued": 0,
        "jobs_running": 0,
        "file_bytes": 0,
        "disk_bytes": 0,
        "gpu_seconds": 0,
    }
    assert key["limits"]["streams_open"] == 20


def test_events_of_one_type_are_listed_alone(service: Running) -> None:
    key = service.new_key("page-events")
    with service.client(key) as client, service.http(key) as http:
        job = create_job(client)
        data = {"step": 1, "train_loss": 0.5}
        service.ledger.add_event(job.id, level="info", message="a step", type="metrics", data=data)
        path = f"/v1/fine_tuning/jobs/{job.id}/events"
        assert [event["message"] for event in http.get(path, params={"type": "metrics"}).json()["data"]] == [
            "a step"
        ]
        messages = http.get(path, params={"type": "message"}).json()["data"]
        assert messages
        assert {event["type"] for event in messages} == {"message"}
        assert http.get(path, params={"type": "other"}).status_code == 400
