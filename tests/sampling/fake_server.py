"""A small server that speaks as much of OpenAI's protocol as drawing needs."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class FakeServer(ThreadingHTTPServer):
    """OpenAI's /v1/models and /v1/completions, and vLLM's loading of adapters.

    Answer n to a prompt is its last token and token 40 + n, as text " is {40 + n}".
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[dict[str, Any]] = []
        self.adapters: list[dict[str, Any]] = []
        self.failures = 0
        self.status = 503
        self.token_ids = True
        self.models = ["base"]
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def log_message(self, *_: Any) -> None:
        pass

    def _send(self, status: int, body: Any) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self) -> None:
        self._send(200, {"data": [{"id": name} for name in self.server.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.failures:
            self.server.failures -= 1
            self._send(self.server.status, {"error": "not now"})
        elif self.path == "/v1/load_lora_adapter":
            self.server.adapters.append(body)
            self._send(200, {})
        elif self.path == "/v1/completions":
            self.server.bodies.append(body)
            choices = [
                {"text": f" is {n}", "finish_reason": "stop"}
                | ({"token_ids": [body["prompt"][-1], n]} if self.server.token_ids else {})
                for n in range(40, 40 + body["n"])
            ]
            self._send(200, {"choices": choices})
