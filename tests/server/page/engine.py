"""An engine that answers every chat, word by word, with the name of the model and what it was asked.

Its tokens are words. Its log-probs are made up by rule: a base model gives every token -1; a fine-tuned one gives the
first token of a chat's answer -0.25, the second -2.5, and so on by turns.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from alignkit_server.engines.facts import EngineFacts, Lease

PROMPT_IDS = [7, 8, 9]
FOREIGN = "foreign"
"""Part of the name of a model whose tokens are others."""


class Handler(BaseHTTPRequestHandler):
    """vLLM's stream of a chat, and its log-probs of a prompt; of a question that begins with "Say " the answer is
    the rest; "Fill " ends it at the context's end, too. At "Break" it hangs up after a word."""

    protocol_version = "HTTP/1.1"
    words: dict[int, str] = {}  # noqa: RUF012 - what all requests of this engine share

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/completions":
            self.score(body["model"], body["prompt"])
        else:
            self.chat(body)

    def chat(self, body: dict[str, Any]) -> None:
        asked = body["messages"][-1]["content"]
        command, _, rest = asked.partition(" ")
        words = rest if command in {"Say", "Fill"} else f"{body['model']} heard: {asked}"
        length = len(words.split(" "))
        common = {"id": "x", "created": 1, "model": body["model"], "object": "chat.completion.chunk"}
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        ids = bool(body.get("return_token_ids"))
        first = {"choices": [], **({"prompt_token_ids": PROMPT_IDS} if ids else {})}
        self.chunk(f"data: {json.dumps(common | first)}\n\n")
        for place, word in enumerate(words.split(" ")):
            number = 1000 * len(self.words) + 10 + place
            self.words[number] = f"{word} "
            end = "length" if command == "Fill" and place == length - 1 else None
            choice: Any = {"index": 0, "delta": {"content": f"{word} "}, "finish_reason": end}
            choice |= {"token_ids": [number]} if ids else {}
            self.chunk(f"data: {json.dumps(common | {'choices': [choice]})}\n\n")
            if asked == "Break":
                self.close_connection = True
                return
        self.chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def score(self, model: str, prompt: list[int]) -> None:
        """The log-prob of every token of `prompt` but the first."""
        tuned = (-0.25, -2.5)
        entries: list[Any] = [None]
        for number in prompt[1:]:
            text = "?" if FOREIGN in model else self.words.get(number, "p")
            logprob = tuned[number % 2] if model.startswith("ft:") else -1.0
            entries.append({str(number): {"logprob": logprob, "rank": 1, "decoded_token": text}})
        raw = json.dumps({"object": "text_completion", "choices": [{"prompt_logprobs": entries}]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

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

    def lease(self, base_model: str, rank: int = 0) -> Lease:
        return Lease(self.url, lambda: None)

    def endpoint(self, base_model: str, rank: int = 0) -> str:
        return self.url

    def hold(self, base_model: str, project_id: str = "") -> None:
        pass

    def release(self, base_model: str, project_id: str = "") -> None:
        pass

    def facts(self) -> list[EngineFacts]:
        return [EngineFacts("tiny-llama", "ready", 1), EngineFacts("too-big", "failed", 0, "no room for it")]


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
