"""Messages between the server and its children: pickled, each preceded by its length, over a socket pair."""

import pickle
import socket
import struct
from dataclasses import dataclass
from typing import Any

_LENGTH = struct.Struct("!Q")


@dataclass(frozen=True, slots=True)
class Task:
    """A function to call, by module and name, with its arguments and the child's limits."""

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
    """The next message. Raises EOFError if the other side has closed the connection."""
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
