"""Runs functions in child processes: forked from a template, with limits, and killed if the client disconnects."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from alignkit import errors as library_errors
from alignkit.errors import AlignkitError
from alignkit_server.children.protocol import Failure, Task, receive, send
from alignkit_server.engines.process import child_environment, give_way
from alignkit_server.errors import ApiError

TEMPLATE = "alignkit_server.children.template"
START_SECONDS = 300.0
"""Time limit of the template's imports, generous enough for a busy machine."""
POLL_SECONDS = 0.1
NICE = 8
"""How much nicer than the server a child is; more than an engine, so that answers come before previews."""
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


class ChildRunner:
    """Starts children. Thread-safe; the template is started when it is first needed."""

    def __init__(
        self, *, memory_bytes: int, seconds: float, refusal: Callable[[str], ApiError] | None = None
    ) -> None:
        """`refusal` makes the error for work that would take more than the limits, which it gets as words."""
        self._memory_bytes = memory_bytes
        self._seconds = seconds
        self._refusal = refusal or _file_too_large
        self._lock = threading.Lock()
        self._template: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, gone: threading.Event | None = None) -> Any:
        """Call `function`, from a module of this service, in a child and return its result.

        Raises the library's errors that it raised there, and ApiError (400) if it exceeds its memory or time or once
        `gone` is set.
        """
        task = Task(
            function.__module__,
            function.__name__,
            arguments,
            memory_bytes=self._memory_bytes,
            seconds=self._seconds,
        )
        with self._child() as connection:
            pid = self._await(connection, time.monotonic() + START_SECONDS, gone, None)
            send(connection, task)
            answer = self._await(connection, time.monotonic() + self._seconds, gone, pid)
        if isinstance(answer, Failure):
            raise self._error(answer)
        return answer

    def close(self) -> None:
        """End the template; children end with their connections."""
        with self._lock:
            if self._control is not None:
                self._control.close()
            if self._template is not None:
                self._template.kill()
                self._template.wait()
            self._control = self._template = None

    @contextlib.contextmanager
    def _child(self) -> Any:
        """A connection to a new child."""
        ours, theirs = socket.socketpair()
        with ours, theirs, self._lock:
            try:
                socket.send_fds(self._running(), [b"1"], [theirs.fileno()])
            except OSError:  # the template was killed: start another
                self._control = None
                socket.send_fds(self._running(), [b"1"], [theirs.fileno()])
            theirs.close()
            connection = ours.dup()
        with connection:
            yield connection

    def _running(self) -> socket.socket:
        if self._control is None or self._template is None or self._template.poll() is not None:
            ours, theirs = socket.socketpair()
            environment = child_environment(QUIET | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
            self._template = subprocess.Popen(
                [sys.executable, "-m", TEMPLATE, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            give_way(self._template.pid, NICE)
            theirs.close()
            self._control = ours
        return self._control

    def _await(
        self, connection: socket.socket, deadline: float, gone: threading.Event | None, pid: int | None
    ) -> Any:
        while not select.select([connection], [], [], POLL_SECONDS)[0]:
            if gone is not None and gone.is_set():
                _kill(pid)
                raise ApiError(400, "The client disconnected before the answer.", code="client_gone")
            if time.monotonic() > deadline:
                _kill(pid)
                raise self._too_much()
        try:
            return receive(connection)
        except (EOFError, OSError) as error:  # the system ended it at one of its limits
            raise self._too_much() from error

    def _error(self, failure: Failure) -> Exception:
        if failure.kind == "MemoryError":
            return self._too_much()
        known = getattr(library_errors, failure.kind, None)
        if isinstance(known, type) and issubclass(known, AlignkitError):
            return known(failure.message)
        return RuntimeError(failure.message)

    def _too_much(self) -> ApiError:
        return self._refusal(f"{self._memory_bytes / 2**30:.1f} GiB of memory or {self._seconds:g} seconds")


def _file_too_large(limits: str) -> ApiError:
    return ApiError(
        400,
        f"Reading the file takes more than {limits}: use fewer or shorter rows.",
        param="training_file",
        code="file_too_large",
    )


def _kill(pid: int | None) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
