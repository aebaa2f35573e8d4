"""The LoRA rank of an engine: by what is published and asked for, and grown by a restart between requests."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from alignkit_server.engines import engine
from alignkit_server.engines.errors import EngineError
from alignkit_server.engines.facts import Lease
from alignkit_server.engines.manager import EngineManager
from alignkit_server.engines.ranks import adapter_rank, engine_rank, published_rank
from tests.server.engines.support import FakeEngines, gone, grants_no_lease, make_settings, wait_until


@pytest.mark.parametrize(
    ("asked", "most", "expected"),
    [
        (0, 64, 16),  # most jobs' rank, so that they need no restart
        (4, 64, 16),
        (16, 64, 16),
        (17, 64, 32),
        (24, 64, 32),  # the next that vLLM knows
        (65, 64, 64),
        (100, 256, 128),
        (0, 8, 8),
        (300, 512, 320),
        (600, 512, 512),
    ],
)
def test_an_engine_serves_the_smallest_rank_of_vllm_that_suffices(
    asked: int, most: int, expected: int
) -> None:
    assert engine_rank(asked, most) == expected


def publish(home: Path, name: str, **config: object) -> Path:
    """An adapter of the model tiny, as much of it as tells its rank."""
    folder = home / "adapters" / "tiny" / name
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_a_published_adapter_tells_its_rank(tmp_path: Path) -> None:
    assert adapter_rank(str(publish(tmp_path, "plain", r=8))) == 8
    assert adapter_rank(str(publish(tmp_path, "pattern", r=8, rank_pattern={"q_proj": 24}))) == 24
    assert adapter_rank(str(publish(tmp_path, "strange", r="many"))) == 0
    assert adapter_rank(str(tmp_path / "missing")) == 0
    publish(tmp_path, ".publishing-large", r=256)
    assert published_rank(tmp_path / "adapters" / "tiny") == 24
    assert published_rank(tmp_path / "adapters" / "other") == 0


class Rig:
    """A manager over stand-ins of vLLM that serve adapters up to a rank."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        self.settings = make_settings(self.home, "tiny")
        self.fakes = FakeEngines(directory)
        self.fakes.limited = True
        self.failing = directory / "failing"
        self.fakes.flags = ["--die-if", str(self.failing)]
        self.manager = EngineManager(self.settings, build_command=self.fakes)

    def lease(self, rank: int = 0) -> Lease:
        self.manager.endpoint("tiny", rank)
        found = self.manager.lease("tiny", rank)
        assert found is not None
        return found


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.manager.shutdown()
    assert all(gone(pid) for pid in rig.fakes.pids())


def test_an_engine_starts_with_the_rank_of_its_adapters(rig: Rig) -> None:
    publish(rig.home, "large", r=24)
    rig.lease(24)
    assert rig.fakes.ranks == [32]


def test_an_engine_grows_once_its_requests_have_ended_and_those_that_come_wait(rig: Rig) -> None:
    at_work = rig.lease()
    first = rig.fakes.pids()
    with ThreadPoolExecutor(2) as pool:
        larger = pool.submit(rig.lease, 64)
        wait_until(lambda: grants_no_lease(rig.manager))
        next_one = pool.submit(lambda: rig.manager.endpoint("tiny"))
        assert rig.manager.running_endpoint("tiny") == at_work.url
        assert not gone(first[0])
        at_work.end()
        assert larger.result(15).url == next_one.result(15) != at_work.url
    assert rig.fakes.ranks == [16, 64]
    assert gone(first[0])
    assert rig.lease().url == rig.lease(64).url, "it does not shrink again"


def test_requests_that_do_not_end_are_not_broken_off_and_others_go_on(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "DRAIN_SECONDS", 0.2)
    at_work = rig.lease()
    with pytest.raises(EngineError, match="still answering other requests") as caught:
        rig.manager.endpoint("tiny", 64)
    assert caught.value.code == "engine_busy"
    assert rig.manager._slots._taken.keys() == {"tiny"}, "its slot is still its own"
    other = rig.lease()
    assert other.url == at_work.url
    with pytest.raises(EngineError):
        rig.manager.endpoint("tiny", 64)  # at once: the others are not held up again and again
    for lease in (at_work, other):
        lease.end()
    assert rig.lease(64).url != at_work.url, "at a quiet moment nobody is held up"


class Clock:
    """A clock by which half a second passes between two looks."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        self.now += 0.5
        return self.now


def test_an_adapter_beside_an_endless_answer_holds_up_others_a_tenth_of_the_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, waits = Clock(), []
    at_work = rig.lease()
    monkeypatch.setattr(engine, "time", clock)
    monkeypatch.setattr(engine, "POLL_SECONDS", 0.001)
    began = clock.now
    while clock.now < began + 3600:
        before = clock.now
        with pytest.raises(EngineError, match="still answering"):
            rig.manager.endpoint("tiny", 64)
        if (wait := clock.now - before) > 5:
            waits.append(wait)
    assert max(waits) < 35
    assert 0 < sum(waits) < 0.1 * 3600
    at_work.end()


def test_an_engine_that_cannot_grow_serves_the_smaller_adapters_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BACK_OFF_SECONDS", 0.0)
    rig.lease().end()
    publish(rig.home, "large", r=64)
    rig.failing.touch()
    with pytest.raises(EngineError, match="ended while starting"):
        rig.manager.endpoint("tiny", 64)
    rig.failing.unlink()
    rig.lease()
    assert rig.fakes.ranks == [16, 64, 16]


def test_a_rank_beyond_the_servers_restarts_nothing(rig: Rig) -> None:
    rig.settings.engine.max_lora_rank = 64
    assert rig.lease(64).url == rig.lease(256).url
    assert rig.fakes.ranks == [64]


def test_a_shutdown_ends_the_wait_for_requests(rig: Rig) -> None:
    at_work = rig.lease()
    found: list[str] = []

    def ask() -> None:
        try:
            rig.manager.endpoint("tiny", 64)
        except EngineError as error:
            found.append(error.code)

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: grants_no_lease(rig.manager))
    rig.manager.shutdown()
    asking.join(15)
    assert found == ["engine_stopped"]
    at_work.end()
