"""The nodes' half of the Ray executor without Ray: who runs in a folder, and what ends it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignkit.run.checkpoint_store import CheckpointStore
from alignkit.run.folder import RunFolder
from alignkit_server.executors.oom import KILLED_LINE
from alignkit_server.executors.ray import supervisor
from alignkit_server.executors.ray.submission import Order, Submission, begin, marks, read
from alignkit_server.runner import memory
from tests.server.executors.ray_cluster import stub_python, until
from tests.tree import PYTHONPATH


def order(storage: Path | None = None, *, resume: bool = False) -> Order:
    return Order(
        nodes=1,
        gpus=0,
        cpus=1,
        accelerate_config=None,
        storage=str(storage) if storage else None,
        grace=5,
        resume=resume,
    )


class Node:
    """Starts what Ray would start, and ends it whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = stub_python(folder.parent)
        self.entries: list[subprocess.Popen[bytes]] = []

    def start(self, submission: Submission) -> subprocess.Popen[bytes]:
        entry = subprocess.Popen(
            [
                self.python,
                "-m",
                "alignkit_server.executors.ray.entry",
                str(self.folder),
                str(submission.number),
            ],
            env=os.environ | {"PYTHONPATH": PYTHONPATH},
        )
        self.entries.append(entry)
        return entry

    def starts(self) -> list[str]:
        try:
            return [line.split()[1] for line in (self.folder / "starts").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def steps(self) -> list[int]:
        try:
            lines = (self.folder / "events.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [event["data"]["step"] for event in map(json.loads, lines) if event["type"] == "metrics"]

    def alive(self) -> list[Path]:
        return list(marks(self.folder).glob("alive-*"))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    folder = tmp_path / "job"
    folder.mkdir()
    node = Node(folder)
    yield node
    for entry in node.entries:
        entry.kill()
        entry.wait()
    until(lambda: not node.alive(), "every supervisor ends with what started it")


def test_a_submission_is_the_same_whoever_begins_it(tmp_path: Path) -> None:
    first = begin(tmp_path, order())
    assert begin(tmp_path, order(resume=True)) == first == read(tmp_path)
    assert first.id == f"{tmp_path.name}-1"
    assert first.current()
    first.end()
    assert not first.current()
    second = begin(tmp_path, order(resume=True))
    assert (second.number, second.order.resume) == (2, True)
    first.end()  # by one who does not know yet
    assert second.current()
    second.ask_to_pause()
    assert second.pausing()
    assert not first.pausing()


def test_a_run_ends_with_what_started_it_and_saves(node: Node) -> None:
    (node.folder / "step_seconds").write_text("0.5")
    entry = node.start(begin(node.folder, order()))
    until(node.steps, "it trains")
    entry.send_signal(signal.SIGKILL)
    until(lambda: not node.alive(), "its supervisor ends")
    assert (RunFolder(node.folder).read_result() or {})["status"] == "paused"


def test_a_run_makes_way_for_the_next_submission(node: Node) -> None:
    (node.folder / "step_seconds").write_text("0.5")
    first = begin(node.folder, order())
    entry = node.start(first)
    until(node.steps, "it trains")
    first.end()  # while Ray, on some lost node, still runs it
    second = node.start(begin(node.folder, order(resume=True)))
    assert entry.wait(30) == 0
    assert second.wait(60) == 0
    assert (RunFolder(node.folder).read_result() or {})["status"] == "succeeded"
    assert node.starts() == ["begin", "resume"]
    assert node.steps() == [1, 2, 3, 4, 5, 6]
    assert not (node.folder / "overlaps").exists()


@pytest.mark.slow
def test_a_run_that_was_ended_before_its_turn_never_begins(node: Node) -> None:
    paused = begin(node.folder, order())
    paused.ask_to_pause()
    assert node.start(paused).wait(30) == 0
    paused.end()
    assert node.start(paused).wait(30) == 0
    assert node.starts() == []


@pytest.mark.slow
def test_checkpoints_come_back_from_their_copies(node: Node, tmp_path: Path) -> None:
    storage = tmp_path / "bucket"
    first = begin(node.folder, order(storage))
    assert node.start(first).wait(60) == 0
    assert CheckpointStore(str(storage)).steps()[0] == "checkpoint-6"
    first.end()
    for path in node.folder.iterdir():  # the folder is lost
        path.rename(tmp_path / f"lost-{path.name}")
    (tmp_path / "lost-ray.json").rename(node.folder / "ray.json")
    assert node.start(begin(node.folder, order(storage))).wait(60) == 0
    assert node.starts() == ["resume"]
    assert node.steps() == [], "all six steps were in the copy"


@pytest.mark.parametrize(
    ("kills", "ending"),
    [([5, 6], "os.kill(os.getpid(), 9)"), ([5, 5], "os.kill(os.getpid(), 9)"), ([5, 6], "os._exit(1)")],
)
def test_a_node_whose_memory_was_used_up_says_so_in_the_runs_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: list[int], ending: str
) -> None:
    counts = iter(kills)
    monkeypatch.setattr(supervisor, "oom_kills", lambda: next(counts))
    command = [sys.executable, "-S", "-c", f"import os; {ending}"]
    (tmp_path / "train.log").write_text("")
    status = supervisor._run(begin(tmp_path, order()), 1, command, threading.Event())
    assert status in {-signal.SIGKILL, 1}
    said = memory.ran_out(RunFolder(tmp_path))
    assert said == (f"its log says {KILLED_LINE!r}" if kills[1] > kills[0] and status != 1 else None)


def test_an_earlier_run_is_waited_for_until_it_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "SILENT_SECONDS", 1.0)
    begin(tmp_path, order()).end()
    second = begin(tmp_path, order())
    marks(tmp_path).mkdir()
    earlier, began, ending = marks(tmp_path) / "alive-1-0", time.monotonic(), threading.Event()

    def beat() -> None:
        while not ending.wait(0.1):
            earlier.write_text(str(time.monotonic()))

    earlier.write_text("0")

    thread = threading.Thread(target=beat)
    thread.start()
    threading.Timer(1.5, ending.set).start()
    assert supervisor._alone(second, threading.Event())
    thread.join()
    assert time.monotonic() - began > 2.4
    assert not earlier.exists()
