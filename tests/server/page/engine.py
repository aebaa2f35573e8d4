"""An engine that answers every chat, word by word, with the name of the model and what it was asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """vLLM's stream of a chat; of a question that begins with "Say " the answer is the rest."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        asked = body["messages"][-1]["content"]
        words = asked.removeprefix("Say ") if asked.startswith("Say ") else f"{body['model']} heard: {asked}"
        common = {"id": "x", "created": 1, "model": body["model"], "object": "chat.completion.chunk"}
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for word in words.split(" "):
            choice: Any = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}
            self.chunk(f"data: {json.dumps(common | {'choices': [choice]})}\n\n")
        self.chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, text: str) -> None:
        raw = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))

    def log_message(self, *_: Any) -> None:
        pass


@dataclass(frozen=True)
class OneEngine:
    """One engine for every model."""

    url: str

    def running_endpoint(self, base_model: str) -> str:
        return self.url

    def endpoint(self, base_model: str) -> str:
        return self.url

    def hold(self, base_model: str) -> None:
        pass

    def release(self, base_model: str) -> None:
        pass


@contextmanager
def talking() -> Iterator[OneEngine]:
    """The engine, while it answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield OneEngine(f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        server.shutdown()
        server.server_close()
