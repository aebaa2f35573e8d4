"""How the server and its children speak: pickled messages with their length before them, over a socket pair."""

import pickle
import socket
import struct
from dataclasses import dataclass
from typing import Any

_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Task:
    """A call of a function, by its module and name, and what the child may take for it."""

    module: str
    function: str
    arguments: tuple[Any, ...]
    memory_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that the function raised: the name of its class and its message."""

    kind: str
    message: str


def send(connection: socket.socket, message: object) -> None:
    """Send one message."""
    content = pickle.dumps(message)
    connection.sendall(_LENGTH.pack(len(content)) + content)


def receive(connection: socket.socket) -> Any:
    """The next message. Raises EOFError where the other side is gone."""
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return pickle.loads(_exactly(connection, length))  # noqa: S301 - from our own child


def _exactly(connection: socket.socket, count: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        piece = connection.recv(min(count - len(content), 2**20))
        if not piece:
            raise EOFError
        content += piece
    return bytes(content)
