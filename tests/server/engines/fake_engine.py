"""A stand-in for vLLM: a real process that serves as much HTTP as the tests need, independent of the project.

Flags and, for chat requests, the last message control its behaviour. It records events, one per line, in the file
given as --notes.
"""

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


class Engine(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    options: argparse.Namespace

    def note(self, text: str) -> None:
        note(self.options, text)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Engine

    def do_GET(self) -> None:
        self.answer(200, {"object": "list", "data": [{"id": self.server.options.model}]})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        body = json.loads(raw)
        route = {
            "/v1/completions": self.completions,
            "/v1/chat/completions": self.chat,
            "/v1/responses": lambda body, raw: self.chat_echo("", raw),
            "/v1/unload_lora_adapter": self.unload,
            "/sleep?level=1": lambda body, raw: self.sleep_mode("sleeps"),
            "/wake_up": lambda body, raw: self.sleep_mode("wakes"),
        }
        route[self.path](body, raw)

    def sleep_mode(self, what: str) -> None:
        self.server.note(f"{what} {self.server.options.model}")
        self.answer(500 if what in self.server.options.refuse else 200, {})

    def unload(self, body: dict[str, Any], raw: bytes) -> None:
        self.server.note(f"unload {body['lora_name']}")
        self.answer(200, {})

    def completions(self, body: dict[str, Any], raw: bytes) -> None:
        if self.server.options.canaries:
            self.canary(body)
            return
        tables = json.loads(Path(self.server.options.logprobs).read_text())
        if body["model"] not in tables:
            self.refuse(404, "The model `x` does not exist at /srv/secret/adapters/x.")
            return
        self.prompt_logprobs(body["prompt"], tables[body["model"]])

    def prompt_logprobs(self, prompt: list[int], known: list[float]) -> None:
        """`known` for the last tokens of the prompt, nonsense for those before."""
        skipped = len(prompt) - len(known)
        entries: list[Any] = [None] + [{str(token): {"logprob": -9.0}} for token in prompt[1:skipped]]
        entries += [{str(t): {"logprob": v}} for t, v in zip(prompt[skipped:], known, strict=True)]
        self.answer(200, {"choices": [{"prompt_logprobs": entries}]})

    def canary(self, body: dict[str, Any]) -> None:
        """Answer as trained, by the run's own record of that prompt."""
        time.sleep(0.1)
        for path in Path(self.server.options.canaries).glob("*/canary.json"):
            known = json.loads(path.read_text())
            if known["prompt_token_ids"] + known["completion_token_ids"] == body["prompt"]:
                own = body["model"].startswith("ft:")
                is_base = body["model"] == self.server.options.model and not own and known["base_logprobs"]
                values = known["base_logprobs" if is_base else "adapter_logprobs"]
                self.prompt_logprobs(body["prompt"], values)
                return
        self.refuse(404, "nobody trained on that")

    def chat(self, body: dict[str, Any], raw: bytes) -> None:
        action, _, argument = body["messages"][-1]["content"].partition(":")
        self.server.note(f"chat {action}")
        getattr(self, f"chat_{action}")(argument, raw)

    def chat_echo(self, argument: str, raw: bytes) -> None:
        self.answer(200, {"received": raw.decode(), "headers": dict(self.headers)})

    def chat_stream(self, argument: str, raw: bytes) -> None:
        """Three events; the third only once the file `argument` exists, where one is named."""
        self.start_stream()
        for number in range(3):
            if number == 2 and argument:
                wait_for_file(Path(argument))
            self.event({"n": number})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def chat_say(self, argument: str, raw: bytes) -> None:
        """OpenAI's chunks of an answer: the argument, word by word."""
        self.start_stream()
        for word in argument.split(" "):
            self.event({"choices": [{"index": 0, "delta": {"content": f"{word} "}, "finish_reason": None}]})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def chat_call(self, argument: str, raw: bytes) -> None:
        """OpenAI's call of the tool that the request forces, of the last one if any; in pieces for a stream."""
        body = json.loads(raw)
        forced = body["tool_choice"]
        name = body["tools"][-1]["function"]["name"] if forced == "required" else forced["function"]["name"]
        arguments = json.dumps({"text": argument})
        call = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}
        reason = "stop" if forced != "required" else "tool_calls"
        if not body.get("stream"):
            message = {"role": "assistant", "content": None, "tool_calls": [call]}
            choice = {"index": 0, "message": message, "finish_reason": reason}
            self.answer(200, {"model": body["model"], "choices": [choice]})
            return
        self.start_stream()
        pieces = [arguments[at : at + 5] for at in range(0, len(arguments), 5)]
        deltas: list[Any] = [call | {"function": {"name": name, "arguments": ""}}]
        deltas += [{"function": {"arguments": piece}} for piece in pieces]
        for delta in deltas:
            choice = {"index": 0, "delta": {"tool_calls": [{"index": 0, **delta}]}, "finish_reason": None}
            self.event({"model": body["model"], "choices": [choice]})
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def chat_fail(self, argument: str, raw: bytes) -> None:
        """A stream in which an error of that code comes, after an event that only looks like one."""
        self.start_stream()
        self.event({"text": 'an "error"', "error": None})
        error = {"message": "no: see /srv/secret/m.bin", "type": "e", "param": None, "code": int(argument)}
        self.event({"error": error})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def chat_endless(self, argument: str, raw: bytes) -> None:
        self.start_stream()
        try:
            while True:
                self.event({"text": "on and on"})
                time.sleep(0.01)
        except OSError:
            self.server.note("closed by client")

    def chat_large(self, argument: str, raw: bytes) -> None:
        self.answer_bytes(200, b"x" * int(argument), "application/json")

    def chat_event(self, argument: str, raw: bytes) -> None:
        """A stream whose second event has so many bytes of text."""
        self.start_stream()
        self.event({"n": 0})
        self.event({"text": "x" * int(argument)})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def chat_slow(self, argument: str, raw: bytes) -> None:
        """Answers never, and notes when the caller hangs up."""
        select.select([self.connection], [], [])
        self.server.note("closed by client")

    def chat_die(self, argument: str, raw: bytes) -> None:
        if argument:  # midway, once that file exists
            self.start_stream()
            self.event({"n": 0})
            self.chunk(b'data: {"half an')
            self.wfile.flush()
            wait_for_file(Path(argument))
        os._exit(9)

    def chat_refuse(self, argument: str, raw: bytes) -> None:
        self.refuse(int(argument), "no: see /srv/secret/models/m/config.json")

    def chat_garbage(self, argument: str, raw: bytes) -> None:
        self.answer_bytes(500, b"Internal Server Error", "text/plain")

    def refuse(self, status: int, message: str) -> None:
        error = {"message": message, "type": "BadRequestError", "param": "temperature", "code": status}
        self.answer(status, {"error": error})

    def answer(self, status: int, body: Any) -> None:
        self.answer_bytes(status, json.dumps(body).encode(), "application/json")

    def answer_bytes(self, status: int, content: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("content-type", media_type)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def start_stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def event(self, data: Any) -> None:
        self.chunk(f"data: {json.dumps(data)}\n\n".encode())

    def chunk(self, content: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))

    def log_message(self, *arguments: object) -> None:
        pass


def note(options: argparse.Namespace, text: str) -> None:
    with Path(options.notes).open("a") as notes:
        notes.write(text + "\n")


def wait_for_file(path: Path) -> None:
    while not path.exists():
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--notes", required=True)
    parser.add_argument("--gate", help="be ready only once this file exists")
    parser.add_argument("--die", help="write this and end")
    parser.add_argument("--die-if", help="end where this file exists")
    parser.add_argument(
        "--child", action="store_true", help="start a child in a session of its own that ignores SIGTERM"
    )
    parser.add_argument("--stubborn", action="store_true", help="ignore SIGTERM")
    parser.add_argument("--refuse", default="", help="fail to do this: sleeps or wakes")
    parser.add_argument("--logprobs", help="JSON: model to the log-probs of the completion")
    parser.add_argument("--canaries", help="answer by the */canary.json in this folder")
    options = parser.parse_args()
    if options.stubborn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(options, f"started {os.getpid()}")
    if options.child:
        child = subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=True)
        note(options, f"child {child.pid}")
    if options.die or (options.die_if and Path(options.die_if).exists()):
        print(options.die, flush=True)
        sys.exit(3)
    if options.gate:
        wait_for_file(Path(options.gate))
    with Engine(("127.0.0.1", options.port), Handler) as server:
        server.options = options
        server.serve_forever()


if __name__ == "__main__":
    main()
