"""No key is ever written down: not by the real server's output, nor in its databases and files, nor in an answer."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.server.support import BASE_MODEL, add_base_model, pairs, wait_until

START_SECONDS = 60


@pytest.fixture
def home(tmp_path: Path) -> Path:
    add_base_model(tmp_path / "home", BASE_MODEL)
    return tmp_path / "home"


@pytest.fixture
def server(home: Path, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`alignkit serve`, its output in `output`."""
    command = [sys.executable, "-m", "alignkit", "serve", "--port", "0", "--home", str(home)]
    with (tmp_path / "output").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    yield process
    process.terminate()
    process.wait(timeout=30)


def ready(home: Path, server: "subprocess.Popen[bytes]") -> bool:
    assert server.poll() is None, (home.parent / "output").read_text()
    try:
        return httpx.get((home / "address").read_text().strip() + "/readyz").is_success
    except (OSError, httpx.HTTPError):
        return False


def test_no_key_is_written_down(home: Path, tmp_path: Path, server: "subprocess.Popen[bytes]") -> None:
    wait_until(lambda: ready(home, server), seconds=START_SECONDS)
    url = (home / "address").read_text().strip()
    first = (home / "first-key").read_text().strip()
    tokens, answers = {"wrong": "sk-" + "w" * 43}, []

    def ask(key: str, method: str, path: str, **options: object) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        answer = httpx.request(method, url + path, headers=headers, timeout=30, **options)  # type: ignore[arg-type]
        assert answer.status_code < 500, answer.text
        return answer

    projects = "/v1/organization/projects"
    keys = f"{projects}/{ask(first, 'POST', projects, json={'name': 'mine'}).json()['id']}/api_keys"
    for name in ("used", "rotated", "revoked"):
        tokens[name] = ask(first, "POST", keys, json={"name": name}).json()["value"]
    ids = {key["name"]: key["id"] for key in ask(first, "GET", keys).json()["data"]}
    tokens["new"] = ask(first, "POST", f"{keys}/{ids['rotated']}/rotate").json()["value"]
    ask(first, "DELETE", f"{keys}/{ids['revoked']}")
    for token in tokens.values():
        answers += [
            ask(token, "GET", "/v1/models"),
            ask(token, "GET", f"/v1/files/{token}"),
            ask(token, "GET", f"/v1/unknown/{token}?key={token}"),
            ask(token, "GET", "/v1/files", params={"after": token, "order": token}),
            ask(token, "POST", "/v1/fine_tuning/jobs", json={"model": token, "training_file": token}),
            ask(token, "POST", "/v1/fine_tuning/jobs", json={token: token}),
            ask(token, "POST", "/v1/files", files={token: (token, b"x")}),
            ask(token, "GET", keys),
        ]
    used, form = tokens["used"], {"purpose": "fine-tune"}
    file_id = ask(used, "POST", "/v1/files", files={"file": ("a", pairs())}, data=form).json()["id"]
    job = {"model": BASE_MODEL, "training_file": file_id, "method": {"type": "f_dpo"}}
    job_id = ask(used, "POST", "/v1/fine_tuning/jobs", json=job).json()["id"]
    answers += [
        ask(used, "POST", f"/v1/fine_tuning/jobs/{job_id}/cancel"),
        ask(used, "GET", f"/v1/fine_tuning/jobs/{job_id}/events"),
        ask(used, "POST", "/v1/chat/completions", json={"model": used}),
        ask(first, "GET", keys),
    ]
    server.terminate()
    server.wait(timeout=30)

    written = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert any(path.name == "alignkit.sqlite" for path in written)
    assert any(path.name == "dbos.sqlite" for path in written)
    assert b'"path": "/v1/files/sk-***"' in written[tmp_path / "output"]
    for name, token in tokens.items():
        secret = token.removeprefix("sk-")
        for path, content in written.items():
            assert secret.encode() not in content, (name, path)
        for answer in answers:
            assert secret not in answer.text, (name, answer.request.url)
    holders = {path.name for path, content in written.items() if first.encode() in content}
    assert holders == {"first-key"}
