"""A stand-in for an OpenAI-shaped endpoint: a function answers its chat requests."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]
"""A status, and a JSON value or text."""


def chat(*texts: str) -> Reply:
    """The answer of a chat with these choices."""
    choices = [
        {"index": at, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        for at, text in enumerate(texts)
    ]
    return 200, {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}


class Endpoint:
    """The endpoint's address, and the bodies and headers of what it was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str] = set()


@contextmanager
def endpoint(answer: Callable[[dict[str, Any]], Reply]) -> Iterator[Endpoint]:
    """Serve on a free port of this machine; `answer` is called with each body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            found.asked.append(body)
            found.keys.add(self.headers.get("authorization", ""))
            status, value = answer(body)
            is_text = isinstance(value, str)
            content = (value if is_text else json.dumps(value)).encode()
            self.send_response(status)
            self.send_header("content-type", "text/html" if is_text else "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
