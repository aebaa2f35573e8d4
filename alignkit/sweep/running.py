"""Runs a sweep: the points' runs, as many at once as there are devices, and the halving between them.

Every run is a process of `alignkit train` in a folder of its own. What is done is read from the folders, so a sweep
that was interrupted goes on where it stopped.
"""

import os
import queue
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from alignkit.errors import AlignkitError, FieldIssue, RecipeError
from alignkit.launch import interrupt, launch_command
from alignkit.sweep.folder import Row, SweepFolder
from alignkit.sweep.points import Point

Start = Callable[[Sequence[str], Path, dict[str, str]], "subprocess.Popen[bytes]"]
"""A function (command, log, environment) -> the process that it started."""
DEVICES = "CUDA_VISIBLE_DEVICES"


class InterruptedSweepError(AlignkitError):
    """The sweep was asked to stop; its runs are paused."""


def start_process(
    command: Sequence[str], log: Path, environment: dict[str, str]
) -> "subprocess.Popen[bytes]":
    """Start a run that appends its output to `log`, in a session of its own."""
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


class Sweep:
    """The runs of a sweep. `report` gets a sentence about each run that ends, and about each that is stopped."""

    def __init__(
        self,
        folder: SweepFolder,
        *,
        devices: Sequence[str | None] = (None,),
        report: Callable[[str], None] = lambda _: None,
        start: Start = start_process,
    ) -> None:
        """`devices` are the values of CUDA_VISIBLE_DEVICES of the runs at one time; None leaves the variable."""
        self.folder = folder
        self._devices = devices
        self._report = report
        self._start = start
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._interrupted = False

    def run(self) -> list[Row]:
        """Run every point to its end, or until it is stopped; a run that fails does not end the others.

        Raises RecipeError if no run reports the halving's metric, and InterruptedSweepError after `interrupt`.
        """
        halving = self.folder.spec.halving
        for rung in halving.rungs if halving else []:
            self._run_all(self._left(), rung)
            self._halve(rung)
        self._run_all(self._left(), None)
        return self.folder.rows()

    def interrupt(self) -> None:
        """Ask all runs to pause, and start no others. Safe in a signal handler."""
        self._interrupted = True
        for process in list(self._running.values()):
            interrupt(process.pid)

    def _left(self) -> list[Point]:
        """The points whose runs have not ended and were not stopped."""
        return [row.point for row in self.folder.rows() if row.status in {"waiting", "paused", "unfinished"}]

    def _run_all(self, points: Sequence[Point], until: int | None) -> None:
        free: queue.Queue[str | None] = queue.Queue()
        for device in self._devices:
            free.put(device)
        with ThreadPoolExecutor(len(self._devices)) as pool:
            list(pool.map(lambda point: self._run_one(point, until, free), points))
        if self._interrupted:
            raise InterruptedSweepError("the sweep was interrupted; the same command resumes it")

    def _run_one(self, point: Point, until: int | None, free: "queue.Queue[str | None]") -> None:
        if self._interrupted or (until is not None and self.folder.reached(point) >= until):
            return
        with _taken(free) as device:
            resume = self.folder.run_of(point).events.exists()
            command = launch_command(
                self.folder.write_given(point),
                [f"training.pause_at={'null' if until is None else until}"],
                resume=resume,
            )
            environment = dict(os.environ) | ({} if device is None else {DEVICES: device})
            process = self._start(command, self.folder.path / point.name / "train.log", environment)
            self._running[point.name] = process
            if self._interrupted:  # between the check and the start
                interrupt(process.pid)
            status = process.wait()
            self._running.pop(point.name)
        self._note(point, status)

    def _note(self, point: Point, status: int) -> None:
        """Report how a run ended; one that died without a result counts as failed."""
        row = self.folder.row(point)
        if row.status in {"waiting", "unfinished"} and not self._interrupted:
            self.folder.fail(point, f"the process ended with status {status} and no result")
            row = self.folder.row(point)
        reason = f": {row.reason}" if row.reason else ""
        self._report(f"{point.name} ({point.label()}) {row.status} at step {row.step}{reason}")

    def _halve(self, rung: int) -> None:
        """Stop the runs beyond the halving's share; those that have ended already are not compared."""
        halving = self.folder.spec.halving
        assert halving is not None  # noqa: S101 - only called with one
        left = self._left()
        values = {point.name: self.folder.value_at(point, halving.metric, rung) for point in left}
        if left and not any(value is not None for value in values.values()):
            reported = ", ".join(self.folder.reported()) or "none"
            message = f"no run reported {halving.metric} up to step {rung}; reported were {reported}"
            raise RecipeError([FieldIssue("sweep.halving.metric", message)])
        reasons = halving.stopped(values, rung)
        for point in left:
            if (reason := reasons.get(point.name)) is not None:
                self.folder.stop(point, reason)
                self._report(f"{point.name} ({point.label()}) stopped: {reason}")


@contextmanager
def _taken(free: "queue.Queue[str | None]") -> Iterator[str | None]:
    device = free.get()
    try:
        yield device
    finally:
        free.put(device)
