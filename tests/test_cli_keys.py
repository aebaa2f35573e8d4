"""`alignkit projects` and `alignkit keys` as an admin types them, against a running service."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from alignkit.cli import main
from alignkit.cli.keys import seconds
from alignkit.errors import AlignkitError
from tests.server.support import Running, serve


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serve(tmp_path_factory.mktemp("home")) as running:
        yield running


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


@pytest.fixture
def run(service: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `alignkit` in this process, with the first key, which it finds under the service's home."""
    monkeypatch.setenv("ALIGNKIT_HOME", str(service.settings.root))
    monkeypatch.setenv("ALIGNKIT_BASE_URL", f"{service.url}/v1")
    monkeypatch.setenv("COLUMNS", "200")

    def alignkit(*arguments: str, key: str = "") -> Done:
        monkeypatch.setenv("ALIGNKIT_API_KEY", key)
        monkeypatch.setattr(sys, "argv", ["alignkit", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return alignkit


def test_a_key_s_life(service: Running, run: Run) -> None:
    assert run("projects", "create", "team").stdout.startswith("proj_")
    made = run("keys", "create", "ci", "--project", "team", "--scope", "read", "--expires-in", "90d")
    assert made.returncode == 0, made.stderr
    token, key_id = made.stdout.strip(), made.stderr.split(":")[0]
    assert service.client(token).files.list().data == []
    listed = run("keys", "list", "--project", "team").stdout
    assert key_id in listed
    assert f"sk-…{token[-4:]}" in listed
    assert token not in listed
    rotated = run("keys", "rotate", key_id, "--project", "team")
    new, new_id = rotated.stdout.strip(), rotated.stderr.split(":")[0]
    assert service.client(new).files.list().data == []
    assert new_id in run("keys", "revoke", new_id, "--project", "team").stdout
    for gone in (token, new):
        refused = run("jobs", "list", key=gone)
        assert refused.returncode == 1
        assert "The API key is not valid" in refused.stderr
    projects = run("projects", "list").stdout
    assert "team" in projects
    assert "0 of 1,000" in projects


def test_refusals_are_one_line(service: Running, run: Run) -> None:
    plain = service.new_key("default")
    for arguments, key, words in (
        (("projects", "list"), plain, "lacks a scope: expected admin"),
        (("projects", "create", "a b"), "", "name: string should match pattern"),
        (("keys", "list", "--project", "nobody"), "", "no project 'nobody': the projects are default"),
        (("keys", "create", "x", "--scope", "root"), "", "scopes"),
        (("keys", "create", "x", "--expires-in", "soon"), "", "such as 90d, found 'soon'"),
        (("keys", "revoke", "key_unknown"), "", "No such API key: 'key_unknown'"),
    ):
        done = run(*arguments, key=key)
        assert done.returncode == 1, arguments
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_durations() -> None:
    assert [seconds(text) for text in ("45s", "30m", "12h", "90d")] == [45, 1800, 43200, 7776000]
    for text in ("", "90", "d", "1w", "-1d", "1.5h"):
        with pytest.raises(AlignkitError, match="expected a number followed by s, m, h or d"):
            seconds(text)
