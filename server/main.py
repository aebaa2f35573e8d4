"""Starts the service as a process: settings in, uvicorn on a socket that is ours before anything else starts."""

import errno
import socket

import uvicorn

from alignkit.errors import AlignkitError
from server.app import create_app
from server.settings import Settings


def serve(settings: Settings) -> None:
    """Run until SIGINT or SIGTERM; raises AlignkitError where the port is taken."""
    listener = listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    settings.root.mkdir(parents=True, exist_ok=True)
    address = settings.root / "address"
    address.write_text(f"http://{host}:{port}\n", encoding="utf-8")
    print(f"alignkit serves http://{host}:{port}/v1 from {settings.root}", flush=True)  # noqa: T201
    config = uvicorn.Config(create_app(settings), log_config=None, timeout_graceful_shutdown=5)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        address.unlink(missing_ok=True)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a taken port is told before a database is touched."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
        raise AlignkitError(f"port {port} of {host} {reason}: choose another with --port") from error
    listener.listen(128)
    return listener
