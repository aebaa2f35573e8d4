"""Work in children is bounded in memory and time and ends with whoever wanted it."""

import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from alignkit.errors import DataError
from alignkit_server.children.runner import ChildRunner
from alignkit_server.errors import ApiError
from tests.server.children import tasks
from tests.server.support import wait_until

SECONDS = 120.0


@pytest.fixture(scope="module")
def runner() -> Iterator[ChildRunner]:
    runner = ChildRunner(memory_bytes=2**29, seconds=SECONDS)
    yield runner
    runner.close()


def test_a_child_answers_and_raises_as_the_library_does(runner: ChildRunner) -> None:
    assert runner.call(tasks.double, 21) == 42
    with pytest.raises(DataError, match="line 3: expected a chat"):
        runner.call(tasks.refuse)


def test_more_memory_than_it_may_have_ends_it_and_nothing_else(runner: ChildRunner) -> None:
    for task in (tasks.grow, tasks.abort):
        with pytest.raises(ApiError, match=r"takes more than 0\.5 GiB of memory") as caught:
            runner.call(task)
        assert (caught.value.status, caught.value.detail.code) == (400, "file_too_large")
    assert runner.call(tasks.double, 1) == 2


def test_more_time_than_it_may_take_ends_it(
    runner: ChildRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_seconds", 1.0)
    with pytest.raises(ApiError, match="or 1 seconds"):
        runner.call(tasks.write_and_sleep, str(tmp_path / "pid"))


def test_it_ends_with_the_client(runner: ChildRunner, tmp_path: Path) -> None:
    gone, path, caught = threading.Event(), tmp_path / "pid", []

    def ask() -> None:
        try:
            runner.call(tasks.write_and_sleep, str(path), gone=gone)
        except ApiError as error:
            caught.append(error.detail.code)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: path.exists() and path.read_text(), SECONDS)
    gone.set()
    thread.join(SECONDS)
    assert caught == ["client_gone"]
    wait_until(lambda: not psutil.pid_exists(int(path.read_text())), SECONDS)


def test_it_finds_no_secret_of_the_server(runner: ChildRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNKIT_DATABASE_URL", "postgresql://secret")
    assert not any(name.startswith("ALIGNKIT_") for name in runner.call(tasks.secrets))


def test_a_template_that_was_killed_is_replaced(runner: ChildRunner) -> None:
    assert runner.call(tasks.double, 1) == 2
    assert runner._template is not None
    runner._template.kill()
    runner._template.wait()
    assert runner.call(tasks.double, 2) == 4
