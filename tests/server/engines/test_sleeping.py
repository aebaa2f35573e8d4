"""On a GPU, engines that would be stopped as idle may sleep: they keep their weights in the server's memory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from alignkit_server.engines import command
from alignkit_server.engines.command import vllm_command
from alignkit_server.engines.manager import EngineManager
from tests.server.engines.support import FakeEngines, gone, make_settings
from tests.server.engines.vllm_source import vllm_source


class Rig:
    """A manager of one engine at a time, over stand-ins of vLLM that can sleep."""

    def __init__(self, directory: Path) -> None:
        self.settings = make_settings(directory / "home", "tiny", "other", "third")
        self.settings.engine.max_engines = 1
        self.settings.engine.sleeping = 1
        self.fakes = FakeEngines(directory)
        self.fakes.limited = self.fakes.sleeps = True
        self.manager = EngineManager(self.settings, build_command=self.fakes)

    def states(self) -> dict[str, str]:
        return {fact.model: fact.status for fact in self.manager.facts()}


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.manager.shutdown()
    assert all(gone(pid) for pid in rig.fakes.pids())


def test_an_idle_engine_sleeps_for_another_and_wakes_for_a_request(rig: Rig) -> None:
    url = rig.manager.endpoint("tiny")
    rig.manager.endpoint("other")
    assert rig.states() == {"tiny": "sleeping", "other": "ready"}
    assert rig.manager.running_endpoint("tiny") is None
    assert rig.manager.lease("tiny") is None
    assert rig.manager.endpoint("tiny") == url
    assert rig.states() == {"tiny": "ready", "other": "sleeping"}
    assert rig.fakes.notes("sleeps") + rig.fakes.notes("wakes") == [
        "sleeps tiny",
        "sleeps other",
        "wakes tiny",
    ]
    assert len(rig.fakes.notes("started")) == 2


def test_the_one_that_sleeps_for_longest_ends_for_a_further_one(rig: Rig) -> None:
    for model in ("tiny", "other", "third"):
        rig.manager.endpoint(model)
    assert rig.states() == {"tiny": "stopped", "other": "sleeping", "third": "ready"}
    assert gone(rig.fakes.pids()[0])


@pytest.mark.parametrize("refused", ["sleeps", "wakes"])
def test_an_engine_that_does_not_obey_is_stopped_and_started(refused: str, rig: Rig) -> None:
    rig.fakes.flags = ["--refuse", refused]
    first = rig.manager.endpoint("tiny")
    rig.manager.endpoint("other")
    assert rig.manager.endpoint("tiny") != first
    assert len(rig.fakes.notes("started")) == 3


def test_a_larger_adapter_starts_an_engine_that_sleeps_anew(rig: Rig) -> None:
    rig.manager.endpoint("tiny")
    rig.manager.endpoint("other")
    rig.manager.endpoint("tiny", 64)
    assert rig.fakes.ranks == [16, 16, 64]
    assert rig.fakes.notes("wakes") == []


def test_only_on_a_gpu_and_only_where_asked_for_is_vllm_told_to_sleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path / "home", "tiny")
    for gpu, sleeping, expected in ((True, 1, True), (True, 0, False), (False, 1, False)):
        monkeypatch.setattr(command, "runs_on_gpu", lambda gpu=gpu: gpu)
        settings.engine.sleeping = sleeping
        built = vllm_command(settings, "tiny", 4711)
        assert built.sleeps == expected
        assert ("--enable-sleep-mode" in built.arguments) == expected
        assert ("attach_router" in built.arguments[2]) == expected
        assert "VLLM_SERVER_DEV_MODE" not in built.environment


def test_the_installed_vllm_has_what_the_sleeping_server_adds_to() -> None:
    launcher = vllm_source("entrypoints/launchers/app.py")
    assert "import register_api_routers" in launcher
    assert "register_api_routers(args, app," in launcher
    routes = vllm_source("entrypoints/serve/dev/sleep/api_router.py")
    assert "def attach_router(app: FastAPI)" in routes
    for route in ('@router.post("/sleep")', '@router.post("/wake_up")'):
        assert route in routes
