"""`alignkit projects` and `alignkit keys` as an admin types them, against a running service."""

import io

import pytest

from alignkit.cli.keys import seconds
from alignkit.errors import AlignkitError
from tests.cli.conftest import Run
from tests.server.support import Running


@pytest.fixture
def key(service: Running) -> str:
    """The first key of the service."""
    return (service.settings.root / "first-key").read_text().strip()


def test_a_key_s_life(service: Running, run: Run) -> None:
    assert run("projects", "create", "team").stdout.startswith("proj_")
    assert "team" in [project["name"] for project in run("projects", "list", "--json").json]
    made = run("keys", "create", "ci", "--project", "team", "--scope", "read", "--expires-in", "90d")
    assert made.returncode == 0, made.stderr
    token, key_id = made.stdout.strip(), made.stderr.split(":")[0]
    assert service.client(token).files.list().data == []
    listed = run("keys", "list", "--project", "team").stdout
    assert key_id in listed
    assert f"sk-…{token[-4:]}" in listed
    assert token not in listed
    (described,) = run("keys", "list", "--project", "team", "--json").json
    assert (described["id"], described["name"], described["scopes"]) == (key_id, "ci", ["read"])
    rotated = run("keys", "rotate", key_id, "--project", "team")
    new, new_id = rotated.stdout.strip(), rotated.stderr.split(":")[0]
    assert service.client(new).files.list().data == []
    assert new_id in run("keys", "revoke", new_id, "--project", "team", "--yes").stdout
    for gone in (token, new):
        refused = run("jobs", "list", key=gone)
        assert refused.returncode == 1
        assert "The API key is not valid" in refused.stderr
    projects = run("projects", "list").stdout
    assert "team" in projects
    assert "0 of 1,000" in projects
    assert "0 bytes of 64.0 GiB" in projects
    assert "0 s of 60 d 0 h" in projects


class Terminal(io.StringIO):
    """A terminal on which that is typed."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("n\n", 1), ("", 1)])
def test_revoking_asks_first(
    service: Running, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, status: int
) -> None:
    made = run("keys", "create", "asked")
    token, key_id = made.stdout.strip(), made.stderr.split(":")[0]
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    done = run("keys", "revoke", key_id)
    assert done.returncode == status
    assert f"Revoke the key asked ({key_id})?" in done.stderr
    gone = run("jobs", "list", key=token).returncode == 1
    assert gone == (status == 0)


def test_revoking_without_a_terminal_needs_yes(run: Run) -> None:
    key_id = run("keys", "create", "unasked").stderr.split(":")[0]
    done = run("keys", "revoke", key_id)
    assert done.returncode == 1
    assert "There is no terminal to ask on: give --yes" in done.stderr


def test_refusals_are_one_line(service: Running, run: Run) -> None:
    plain = service.new_key("default")
    for arguments, key, words in (
        (("projects", "list"), plain, "lacks a scope: expected admin"),
        (("projects", "create", "a b"), "", "name: string should match pattern"),
        (("keys", "list", "--project", "nobody"), "", "no project 'nobody': the projects are default"),
        (("keys", "list", "--project", "defualt"), "", "; did you mean default?"),
        (("keys", "revoke", "key_x", "--project", "defualt"), "", "; did you mean default?"),
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
