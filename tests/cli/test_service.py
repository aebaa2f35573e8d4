"""Every command that needs a service, without one, without a key, without the scope, and for what is not there."""

from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.server.support import BASE_MODEL, Running, pairs

READING: dict[str, tuple[str, ...]] = {
    "jobs list": (),
    "jobs show": ("ftjob-x",),
    "jobs events": ("ftjob-x",),
    "jobs metrics": ("ftjob-x",),
    "jobs logs": ("ftjob-x",),
    "jobs watch": ("ftjob-x",),
    "jobs download": ("ftjob-x",),
    "jobs report": ("ftjob-x",),
    "files list": (),
    "files get": ("file-x",),
}
CHANGING: dict[str, tuple[str, ...]] = {
    "jobs submit": ("pairs.jsonl", "--model", BASE_MODEL),
    "jobs estimate": ("pairs.jsonl", "--model", BASE_MODEL),
    "jobs pause": ("ftjob-x",),
    "jobs resume": ("ftjob-x",),
    "jobs cancel": ("ftjob-x",),
}
OTHERS: dict[str, tuple[str, ...]] = {
    "jobs prune": (),
    "files rm": ("file-x", "--yes"),
    "models list": ("--served",),
    "models download": ("ft:x",),
    "models rm": ("ft:x", "--yes"),
    "models export": ("ft:x",),
    "models push": ("ft:x", "--repo", "me/model"),
    "chat": (BASE_MODEL, "-m", "x"),
    "projects list": (),
    "projects create": ("x",),
    "keys list": (),
    "keys create": ("x",),
    "keys rotate": ("key_x",),
    "keys revoke": ("key_x", "--yes"),
}


def refused(run: Run, command: str, arguments: tuple[str, ...], words: str, **options: str) -> None:
    done = run(*command.split(), *arguments, **options)
    assert done.returncode == 1, (command, done.stdout)
    assert done.stderr.startswith("error: "), done.stderr
    assert words in done.stderr, (command, done.stderr)
    assert done.stderr.count("\n") == 1, (command, done.stderr)
    assert done.stdout == "", command


@pytest.fixture(autouse=True)
def data(run: Run) -> None:
    Path("pairs.jsonl").write_bytes(pairs())


def test_a_service_that_does_not_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_BASE_URL", "http://127.0.0.1:9/v1")
    for command, arguments in (READING | CHANGING | OTHERS).items():
        refused(run, command, arguments, "the service does not answer: start it with `alignkit serve`")
    assert [path.name for path in Path().iterdir()] == ["pairs.jsonl"]


def test_no_key(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGNKIT_HOME", str(tmp_path))
    for command, arguments in (READING | CHANGING | OTHERS).items():
        refused(run, command, arguments, "no API key: set ALIGNKIT_API_KEY", key="")


def test_a_key_without_the_scope(service: Running, run: Run, project: str) -> None:
    inference, read = (service.new_key(project, scope) for scope in ("inference", "read"))
    for command, arguments in READING.items():
        refused(run, command, arguments, "This key lacks a scope: expected read", key=inference)
    for command, arguments in CHANGING.items():
        refused(run, command, arguments, "This key lacks a scope: expected train", key=read)
    for command in ("projects list", "projects create", "keys list", "keys create", "keys revoke"):
        refused(run, command, OTHERS[command], "This key lacks a scope: expected admin", key=read)


def test_ids_that_are_not_there(run: Run) -> None:
    for command, arguments in (READING | CHANGING | OTHERS).items():
        if arguments and arguments[0] in {"ftjob-x", "file-x", "ft:x"}:
            refused(run, command, arguments, arguments[0])


def test_what_names_nothing_is_refused_before_the_service_is_asked(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a variable of a script that is not set."""
    monkeypatch.setenv("ALIGNKIT_BASE_URL", "http://127.0.0.1:9/v1")
    for command, arguments in (READING | CHANGING | OTHERS).items():
        if arguments and arguments[0] in {"ftjob-x", "file-x", "ft:x", "key_x"}:
            for name in ("", "..", "a/b"):
                refused(run, command, (name, *arguments[1:]), f": expected an id or a name, found {name!r}")


def test_an_error_of_the_usage_is_not_drawn_in_a_box(run: Run) -> None:
    done = run("jobs", "list", "--limit", "many")
    assert done.returncode == 2
    assert "│" not in done.stderr
    assert "Error: Invalid value" in done.stderr
