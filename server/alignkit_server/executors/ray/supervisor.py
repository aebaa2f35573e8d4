"""Supervises a run's processes on one node: starts them, watches them, and stops them before it exits.

Ray may lose track of a run: it kills at once the process it started, without knowing the launcher's children, and
a restarted head does not know earlier jobs. So the supervisor runs in its own session. It ends the run, with time
to save, when its parent (started by Ray) is gone or another submission took its place. It counts up a file for as
long as the run may write to its folder, and starts only when no earlier supervisor does.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from alignkit.launch import Machine, launch_command
from alignkit.run.checkpoint_store import CheckpointStore
from alignkit.run.folder import RunFolder
from alignkit_server.engines.process import ManagedProcess
from alignkit_server.executors.oom import KILLED_LINE, oom_kills, was_killed
from alignkit_server.executors.ray.submission import Submission, marks, read

BEAT_SECONDS = 1.0
SILENT_SECONDS = 10.0
"""Seconds without a new count after which an earlier run, with its node, is considered dead."""
COPY_SECONDS = 2.0
MODULE = "alignkit_server.executors.ray.supervisor"


def supervise(submission: Submission, machine: Machine | None = None) -> int:
    """Run the submission's processes on this node until they end; returns the launcher's exit status."""
    command = _command(submission, machine)
    rank = str(machine.rank if machine else 0)
    line = [sys.executable, "-m", MODULE, str(submission.folder), str(submission.number), rank, *command]
    # The pipe ties the supervisor to this process: it closes when this process ends for whatever reason.
    child = subprocess.Popen(line, stdin=subprocess.PIPE, start_new_session=True)
    return child.wait()


def _command(submission: Submission, machine: Machine | None) -> list[str]:
    folder, order = RunFolder(submission.folder), submission.order
    return launch_command(
        folder.recipe,
        config_file=Path(order.accelerate_config) if order.accelerate_config else None,
        num_processes=order.gpus or None,
        machine=machine,
        resume=order.resume,
    )


def main(arguments: Sequence[str]) -> int:
    """Run the supervisor with arguments `FOLDER NUMBER RANK COMMAND…`; see the module's docstring."""
    folder, number, rank, *command = arguments
    submission = read(Path(folder))
    if submission is None or submission.number != int(number):
        return 0
    # Ray's stop signals all processes, but the supervisor must end last. Not SIG_IGN: the trainer would inherit it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    parent_gone = threading.Event()
    threading.Thread(target=_await_end, args=(parent_gone,), daemon=True).start()
    beat = _Beat(submission, rank)
    beat.start()
    try:
        if not _alone(submission, parent_gone):
            return 0
        with _copies(submission) if rank == "0" else contextlib.nullcontext():
            return _run(submission, int(rank), command, parent_gone)
    finally:
        beat.stop()


def _await_end(parent_gone: threading.Event) -> None:
    """Set the event when the parent is gone. Reads the pipe unbuffered: a buffered read would delay the exit."""
    os.read(sys.stdin.fileno(), 1)
    parent_gone.set()


def _alone(submission: Submission, parent_gone: threading.Event) -> bool:
    """Wait until no earlier submission's run can write; False if this submission ended before that."""
    seen: dict[Path, tuple[str, float]] = {}
    while submission.current() and not submission.pausing() and not parent_gone.is_set():
        earlier = [
            path for path in marks(submission.folder).glob("alive-*") if _number(path) < submission.number
        ]
        for path in earlier:
            count = _text(path)
            if path not in seen or seen[path][0] != count:
                seen[path] = (count, time.monotonic())
            elif time.monotonic() - seen[path][1] > SILENT_SECONDS:
                path.unlink(missing_ok=True)
        if not earlier:
            return True
        time.sleep(BEAT_SECONDS / 2)
    return False


def _run(submission: Submission, rank: int, command: list[str], parent_gone: threading.Event) -> int:
    folder = RunFolder(submission.folder)
    with tempfile.TemporaryDirectory() as own:
        killed = oom_kills()
        process = ManagedProcess.start(
            command,
            log_path=folder.log if rank == 0 else folder.path / f"train-{rank}.log",
            identity_path=Path(own) / "process.json",
            environment=os.environ,
            cwd=submission.folder,
        )
        pausing = False
        try:
            while process.alive() and submission.current() and not parent_gone.wait(BEAT_SECONDS / 2):
                if not pausing and submission.pausing():
                    pausing = True
                    process.interrupt()
        finally:
            process.terminate(submission.order.grace)
        if was_killed(process.returncode) and (oom_kills() or 0) > (killed or 0):
            _tell_killed(folder, rank)
        return process.returncode or 0


def _tell_killed(folder: RunFolder, rank: int) -> None:
    """Append to the run's log, which the server reads, that this node's memory was used up."""
    with folder.log.open("a", encoding="utf-8") as log:
        log.write(f"node {rank}: {KILLED_LINE}\n")


@contextlib.contextmanager
def _copies(submission: Submission) -> Iterator[None]:
    """Keep copies of the run's complete checkpoints in its storage, if any, and restore those missing locally."""
    url, checkpoints = submission.order.storage, RunFolder(submission.folder).checkpoints
    if url is None:
        yield
        return
    store, ended = CheckpointStore(url), threading.Event()
    fetched = store.fetch(checkpoints)
    if fetched:
        print(f"{fetched} was restored from the checkpoint storage", flush=True)

    def copy() -> None:
        while True:
            last = ended.wait(COPY_SECONDS)
            try:
                store.sync(checkpoints)
            except OSError as error:  # storage is unavailable: the next turn copies what is missing
                print(f"checkpoints cannot be copied: {error}", flush=True)
            if last:
                return

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Beat:
    """Counts up the supervisor's file in a thread until it is stopped."""

    def __init__(self, submission: Submission, rank: str) -> None:
        self._path = marks(submission.folder) / f"alive-{submission.number}-{rank}"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)

    def start(self) -> None:
        self._path.parent.mkdir(exist_ok=True)
        self._path.write_text("0", encoding="utf-8")
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _count(self) -> None:
        count = 0
        while not self._stopping.wait(BEAT_SECONDS):
            count += 1
            try:
                self._path.write_text(str(count), encoding="utf-8")
            except OSError as error:  # storage is temporarily unavailable
                print(f"{self._path} cannot be written: {error}", flush=True)


def _number(path: Path) -> int:
    return int(path.name.split("-")[1])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
