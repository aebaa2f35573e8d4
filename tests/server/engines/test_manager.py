import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from alignkit.redaction import scrub_paths
from alignkit_server.engines import command, engine, slots
from alignkit_server.engines.command import vllm_command
from alignkit_server.engines.engine import telling_lines
from alignkit_server.engines.errors import EngineError
from alignkit_server.engines.facts import EngineFacts
from alignkit_server.engines.manager import EngineManager
from alignkit_server.settings import Settings
from tests.server.engines.support import FakeEngines, gone, grants_no_lease, make_settings, wait_until

ROOT = Path(__file__).parents[3]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings(tmp_path / "home", "tiny", "other")


class Rig:
    """A manager over fake engines."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self.fakes = FakeEngines(directory)
        self.manager = EngineManager(settings, build_command=self.fakes)
        self.gate = directory / "gate"


@pytest.fixture
def rig(settings: Settings, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(settings, tmp_path)
    yield rig
    rig.manager.shutdown()
    assert all(gone(pid) for pid in rig.fakes.pids())


def test_starts_once_and_answers(rig: Rig) -> None:
    assert rig.manager.status("tiny") == "stopped"
    assert rig.manager.running_endpoint("tiny") is None
    url = rig.manager.endpoint("tiny")
    assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == "tiny"
    assert rig.manager.endpoint("tiny") == rig.manager.running_endpoint("tiny") == url
    assert rig.manager.status("tiny") == "ready"
    assert len(rig.fakes.notes("started")) == 1


def test_concurrent_callers_share_one_start(rig: Rig) -> None:
    rig.fakes.flags = ["--gate", str(rig.gate)]
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(rig.manager.endpoint, "tiny") for _ in range(8)]
        wait_until(lambda: rig.manager.status("tiny") == "starting")
        wait_until(lambda: len(rig.fakes.notes("started")) == 1)
        assert not any(call.done() for call in calls)
        rig.gate.touch()
        assert len({call.result(15) for call in calls}) == 1
    assert len(rig.fakes.notes("started")) == 1


def test_each_base_model_has_its_own_engine(rig: Rig) -> None:
    assert rig.manager.endpoint("tiny") != rig.manager.endpoint("other")
    assert len(rig.fakes.notes("started")) == 2


def test_a_death_while_starting_tells_why_without_paths_and_is_remembered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.fakes.flags = ["--die", "ValueError: no kernel in /srv/secret/kernels/k.so"]
    for _ in range(2):
        with pytest.raises(EngineError, match=r"exit status 3.*ValueError: no kernel in …/k\.so") as caught:
            rig.manager.endpoint("tiny")
        assert caught.value.code == "engine_failed"
        assert "/srv" not in str(caught.value)
    assert rig.manager.status("tiny") == "failed"
    assert len(rig.fakes.notes("started")) == 1  # the second call got the remembered error
    monkeypatch.setattr(engine, "BACK_OFF_SECONDS", 0)
    rig.fakes.flags = []
    rig.manager.endpoint("tiny")
    assert rig.manager.status("tiny") == "ready"


def test_an_engine_that_died_later_is_started_again(rig: Rig) -> None:
    rig.fakes.flags = ["--child"]
    first = rig.manager.endpoint("tiny")
    leader, child = rig.fakes.pids()
    os.kill(leader, signal.SIGKILL)
    wait_until(lambda: rig.manager.status("tiny") == "failed")
    assert rig.manager.running_endpoint("tiny") is None
    assert rig.manager.endpoint("tiny") != first
    assert gone(child)  # its memory is free before the next one starts
    assert len(rig.fakes.notes("started")) == 2


def test_not_ready_in_time(settings: Settings, rig: Rig) -> None:
    settings.engine.start_timeout_seconds = 0.3
    rig.fakes.flags = ["--gate", str(rig.gate), "--child"]
    with pytest.raises(EngineError, match="not ready within"):
        rig.manager.endpoint("tiny")
    assert all(gone(pid) for pid in rig.fakes.pids())


def test_shutdown_ends_ready_and_starting_engines(rig: Rig) -> None:
    rig.manager.endpoint("other")
    rig.fakes.flags = ["--gate", str(rig.gate), "--stubborn", "--child"]
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(rig.manager.endpoint, "tiny") for _ in range(2)]
        wait_until(lambda: len(rig.fakes.notes("child")) == 1)
        rig.manager.shutdown()
        for call in calls:
            with pytest.raises(EngineError) as caught:
                call.result(15)
            assert caught.value.code == "engine_stopped"
    assert all(gone(pid) for pid in rig.fakes.pids())
    with pytest.raises(EngineError, match="shutting down"):
        rig.manager.endpoint("tiny")


def test_nothing_is_left_in_the_engines_folder_after_shutdown(settings: Settings, rig: Rig) -> None:
    rig.manager.endpoint("tiny")
    assert (
        json.loads((settings.engines_dir / f"tiny@{os.getpid()}.json").read_text())["pid"]
        == rig.fakes.pids()[0]
    )
    rig.manager.shutdown()
    assert [path.name for path in settings.engines_dir.iterdir()] == [f"tiny@{os.getpid()}.log"]


SERVER = """
import sys
from pathlib import Path
from alignkit_server.engines.manager import EngineManager
from tests.server.engines.support import FakeEngines
from alignkit_server.settings import Settings
manager = EngineManager(Settings(home=Path(sys.argv[1])), build_command=FakeEngines(Path(sys.argv[2]), "--child"))
print(manager.endpoint("tiny"), flush=True)
sys.stdin.read()
"""


def test_a_killed_servers_engines_are_ended_by_the_next(settings: Settings, rig: Rig, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", SERVER, str(settings.home), str(tmp_path)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith(b"http://127.0.0.1:")
        assert rig.manager.cleanup_leftovers() == []  # its server is running
        assert not any(gone(pid) for pid in rig.fakes.pids())
        server.kill()
    assert not any(gone(pid) for pid in rig.fakes.pids())
    assert rig.manager.cleanup_leftovers() == ["tiny"]
    assert all(gone(pid) for pid in rig.fakes.pids())
    assert rig.manager.cleanup_leftovers() == []


def test_the_longest_unused_engine_makes_room(settings: Settings, tmp_path: Path) -> None:
    settings.engine.max_engines = 2
    manager = EngineManager(settings, build_command=FakeEngines(tmp_path))
    try:
        manager.endpoint("tiny")
        manager.endpoint("other")
        manager.endpoint("tiny")
        manager.endpoint("ft:tiny:default::a1b2c3d4")
        assert [manager.status(name) for name in ("tiny", "other")] == ["ready", "stopped"]
        with manager.held("tiny"):
            manager.endpoint("other")
        assert manager.facts() == [
            EngineFacts("ft:tiny:default::a1b2c3d4", "stopped"),
            EngineFacts("other", "ready"),
            EngineFacts("tiny", "ready"),
        ]
    finally:
        manager.shutdown()


def test_an_engine_in_use_is_waited_for(settings: Settings, tmp_path: Path) -> None:
    settings.engine.max_engines = 1
    manager = EngineManager(settings, build_command=FakeEngines(tmp_path))
    try:
        with ThreadPoolExecutor(1) as pool:
            with manager.held("tiny"):
                manager.endpoint("tiny")
                waiting = pool.submit(manager.endpoint, "other")
                assert not waiting.done()
                assert manager.status("tiny") == "ready"
            assert httpx.get(f"{waiting.result(20)}/v1/models").is_success
        assert manager.status("tiny") == "stopped"
        settings.engine.start_timeout_seconds = 0.1
        with manager.held("other"), pytest.raises(EngineError, match="all 1 engines are in use") as caught:
            manager.endpoint("tiny")
        assert caught.value.code == "engine_busy"
    finally:
        manager.shutdown()


@pytest.mark.parametrize("ends", [True, False])
def test_an_engine_of_one_project_gives_way_once_its_answers_have_ended_or_had_their_time(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, ends: bool
) -> None:
    monkeypatch.setattr(slots, "TURN_SECONDS", 0.1)
    monkeypatch.setattr(engine, "LAST_ANSWERS_SECONDS", 60.0 if ends else 0.3)
    settings.engine.max_engines = 1
    manager = EngineManager(settings, build_command=FakeEngines(tmp_path))
    try:
        manager.hold("tiny", "a")
        manager.endpoint("tiny")
        answer = manager.lease("tiny")
        assert answer is not None
        with ThreadPoolExecutor(1) as pool, manager.held("other", "b"):
            waiting = pool.submit(manager.endpoint, "other")
            wait_until(lambda: grants_no_lease(manager))
            if ends:
                assert httpx.get(f"{answer.url}/v1/models").is_success  # until the answer at work has ended
                answer.end()
            assert httpx.get(f"{waiting.result(20)}/v1/models").is_success
        assert manager.status("tiny") == "stopped"
    finally:
        manager.shutdown()


def test_an_unused_engine_is_ended_and_comes_back(settings: Settings, tmp_path: Path) -> None:
    settings.engine.idle_seconds = 0.2
    manager = EngineManager(settings, build_command=FakeEngines(tmp_path))
    try:
        with manager.held("tiny"):
            manager.endpoint("tiny")
            time.sleep(0.5)
            assert manager.status("tiny") == "ready"
        wait_until(lambda: manager.status("tiny") == "stopped")
        with manager.held("tiny"):
            assert httpx.get(f"{manager.endpoint('tiny')}/v1/models").is_success
    finally:
        manager.shutdown()


def test_an_engine_that_is_run_elsewhere_is_only_asked(settings: Settings, rig: Rig) -> None:
    settings.engine.urls = {"tiny": "http://vllm.internal:8000/"}
    assert rig.manager.endpoint("tiny") == rig.manager.running_endpoint("tiny") == "http://vllm.internal:8000"
    assert rig.fakes.notes() == []


def test_a_name_that_is_no_model_name_never_becomes_a_path(rig: Rig) -> None:
    with pytest.raises(EngineError) as caught:
        rig.manager.endpoint("../tiny")
    assert caught.value.code == "engine_unavailable"


def test_vllm_is_not_installed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    manager = EngineManager(settings)
    with pytest.raises(EngineError, match=r"vLLM is not installed.*pip install 'alignkit\[") as caught:
        manager.endpoint("tiny")
    assert caught.value.code == "engine_unavailable"


def test_the_base_model_is_not_imported(settings: Settings) -> None:
    with pytest.raises(EngineError, match="'missing' is not imported"):
        EngineManager(settings).endpoint("missing")


def test_the_vllm_command(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "runs_on_gpu", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    settings.engine.max_lora_rank = 24
    built = vllm_command(settings, "tiny", 4711, 17)
    line = " ".join(built.arguments)
    assert built.rank == 32
    for expected in (
        "--model tiny --served-model-name tiny --host 127.0.0.1 --port 4711 --dtype float32",
        "--max-model-len auto",
        "--max-lora-rank 32",  # the next that vLLM knows
        "--enable-lora",
        "--enforce-eager",
    ):
        assert expected in line
    assert built.cwd == settings.models_dir
    assert {settings.models_dir / "tiny", settings.adapters_dir / "tiny"} <= set(built.reads)
    assert built.environment["VLLM_LORA_RESOLVER_CACHE_DIR"] == str(settings.adapters_dir / "tiny")
    cores = len(os.sched_getaffinity(0))
    assert built.environment["OMP_NUM_THREADS"] == str(cores - 1 or 1)  # one is left to what runs beside it
    assert built.environment["TORCH_COMPILE_DISABLE"] == "1"  # log-probs need no compiler
    monkeypatch.setattr(command, "runs_on_gpu", lambda: True)
    built = vllm_command(settings, "tiny", 4711)
    assert "TORCH_COMPILE_DISABLE" not in built.environment
    assert "--enforce-eager" not in built.arguments
    assert "--dtype auto" in " ".join(built.arguments)
    assert "OMP_NUM_THREADS" not in built.environment


def test_the_manager_never_imports_vllm() -> None:
    code = "import sys, alignkit_server.engines.manager; sys.exit(bool({'vllm', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_telling_lines_prefer_the_cause() -> None:
    lines = [
        "(EngineCore pid=7) ERROR 11-24 12:00:00 [core.py:99] Traceback (most recent call last):",
        "(EngineCore pid=7) ERROR 11-24 12:00:00 [core.py:99] ValueError: rank 3 of /srv/a/b is odd",
        "(EngineCore pid=7) ValueError: rank 3 of /srv/a/b is odd",
        "(APIServer pid=5) RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    assert telling_lines(lines) == "ValueError: rank 3 of …/b is odd"
    usage = ["usage: -c", "[model_tag]", "-c: error: unrecognized arguments: --x"]
    assert telling_lines(usage) == usage[-1]
    assert telling_lines(["a", "b", "c", "d"]) == "b | c | d"
    assert telling_lines([]) == "(nothing was written)"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot read /home/me/models/m/config.json", "cannot read …/config.json"),
        ("in '/a/b/'.", "in '…/'."),
        ("GET http://127.0.0.1:80/v1/models and/or 1/2", "GET http://127.0.0.1:80/v1/models and/or 1/2"),
        ('File "/x/y z.py", line 3', 'File "…/y z.py", line 3'),
        ("error:/home/me/x.json: no", "error:…/x.json: no"),
        ("see file:///home/me/x.json", "see file://…/x.json"),
        ("s3://bucket/folder/key", "s3://bucket/folder/key"),
    ],
)
def test_scrub_paths(text: str, expected: str) -> None:
    assert scrub_paths(text) == expected


def test_facts_tell_users_external_engines_and_why_a_start_failed(settings: Settings, tmp_path: Path) -> None:
    settings.engine.urls = {"far": "http://elsewhere:8000"}
    fakes = FakeEngines(tmp_path)
    fakes.flags = ["--die", "ValueError: no such device"]
    manager = EngineManager(settings, build_command=fakes)
    try:
        with manager.held("far"), pytest.raises(EngineError):
            manager.endpoint("tiny")
        with manager.held("far"):
            far, tiny = manager.facts()
        assert (far.model, far.status, far.in_use, far.error) == ("far", "external", 1, None)
        assert (tiny.model, tiny.status, tiny.in_use) == ("tiny", "failed", 0)
        assert "no such device" in str(tiny.error)
    finally:
        manager.shutdown()
