"""The process that children are forked from: `python -m alignkit_server.children.template FD`.

It imports their modules once, holds none of the server's connections or secrets, and runs a single thread. For every
task the server passes it a socket, over which the child receives the task and answers. It ends with the server.
"""

import contextlib
import importlib
import os
import resource
import signal
import socket
import sys
import threading
from pathlib import Path

from alignkit import startup
from alignkit.errors import AlignkitError
from alignkit_server.children.protocol import Failure, Task, receive, send

PRELOADED = ("alignkit_server.children.work",)


def main(descriptor: int) -> None:
    """Fork a child for every socket received, until the server closes the connection."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps the children
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    startup.begin()
    for module in PRELOADED:
        importlib.import_module(module)
    startup.end()  # children share the memory of what is not looked through
    control = socket.socket(fileno=descriptor)
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not message:
            return
        if os.fork() == 0:
            control.close()
            work(socket.socket(fileno=descriptors[0]))
            os._exit(0)
        os.close(descriptors[0])


def work(connection: socket.socket) -> None:
    """Do one task within its limits, and answer. Ends as soon as the server closes its side."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        send(connection, os.getpid())
        task: Task = receive(connection)
    except (EOFError, OSError):
        return
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    _bound(task)
    answer: object
    try:
        answer = getattr(importlib.import_module(task.module), task.function)(*task.arguments)
    except AlignkitError as error:
        answer = Failure(type(error).__name__, str(error))
    except MemoryError:
        answer = Failure("MemoryError", "")
    except Exception as error:
        answer = Failure(type(error).__name__, f"{type(error).__name__}: {error}")
    with contextlib.suppress(OSError):
        send(connection, answer)


def _bound(task: Task) -> None:
    """Limit this process's further memory and its processor time to the task's."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most = pages * resource.getpagesize() + task.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    seconds = int(task.seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _end_with(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        if not connection.recv(1):
            os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
